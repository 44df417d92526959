"""Two characters in one LoRA: who appears when whom is asked for, by how their pictures
and captions are given.

Two mascots with one body, told apart by colour and mark. Each variant draws its
pictures, trains the quickstart's job on them and asks for each character alone, for
other mascots, and for both in one picture. `seen` are scenes of the training, `new`
poses, places and hats that no picture of them shows.

`python benchmarks/figures/characters.py` trains all variants; `--variant alone together
masks` some."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import ALL, NONE, Casting, Lots, Mascot, random_mascot  # noqa: E402
from mascots.words import PLACES, caption, caption_in  # noqa: E402
from PIL import Image  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.figures.learning import LOOKS, MEASURED, SCENE, SEED, training  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, pixels_of, trained  # noqa: E402
from benchmarks.mascot_model import SIDE, TinyModel  # noqa: E402
from extensions.tools.best.characters import NOBODY, Table, lines_of  # noqa: E402

QUICKSTART = MEASURED[0]
CHARACTERS = {
    "pipo": {"body": "star", "colour": "teal", "mark": "stripes", "eyes": "big eyes"},
    "lulu": {"body": "star", "colour": "brown", "mark": "heart", "eyes": "happy eyes"},
}
SCENES = {
    "pose": ("standing", "jumping", "sitting"),
    "place": ("meadow", "room", "night"),
    "hat": (NONE, "cap"),
}
NEW = {
    name: tuple(value for value in ALL[name] if value not in (NONE, *SCENES[name]))
    for name in SCENE
}
BOTH = "both"

USES = 150
"""Uses of the pictures of both characters in an epoch, beside 48 of others."""


@dataclass(frozen=True)
class Variant:
    """How the characters are given."""

    alone: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys(CHARACTERS, 15)
    )
    """Pictures of one character."""

    together: int = 0
    """Pictures of both, side by side."""

    masks: bool = False
    """Each picture of both is used for one character at a time, with the other half
    masked and a caption of one."""

    names: bool = True
    """Whether captions say the names; else `a mascot`."""

    captions: str = "full"
    """full: the whole scene. name: the name alone. lines: both and a short one, with
    `captions: lines`."""

    others: bool = True
    """Regularisation images of other mascots."""

    train: Mapping[str, Any] = field(default_factory=dict)


ALONE = Variant()
TOGETHER = replace(ALONE, alone={}, together=30)
PRESERVED = {
    "diff_output_preservation": True,
    "diff_output_preservation_class": "round blue",
}
VARIANTS = {
    "alone": ALONE,
    "without others": replace(ALONE, others=False),
    "preserved": replace(ALONE, others=False, train=PRESERVED),
    "15 and 3": replace(ALONE, alone={"pipo": 15, "lulu": 3}),
    "names only": replace(ALONE, captions="name"),
    "lines": replace(ALONE, captions="lines"),
    "together": TOGETHER,
    "together, nameless": replace(TOGETHER, names=False),
    "masks": replace(TOGETHER, masks=True),
    "alone and together": replace(ALONE, together=15),
    "alone and together, preserved": replace(
        ALONE, together=15, others=False, train=PRESERVED
    ),
}


# ------------------------------------------------------------ pictures


def scene(
    name: str, kind: str, index: int, only: Mapping[str, tuple[str, ...]] = SCENES
) -> Mascot:
    """The character in a scene."""
    return random_mascot(
        Lots(SEED, f"{kind} {name}", index),
        Casting(fixed=CHARACTERS[name] | {"trigger": name}, only=only),
    )


def pair(kind: str, index: int) -> tuple[Mascot, Mascot]:
    """Both in one place, the first named one to the left in every second picture."""
    names = [*CHARACTERS][:: -1 if index % 2 else 1]
    first, second = (scene(name, kind, index) for name in names)
    return first, replace(second, place=first.place)


def words_of(pair: Sequence[Mascot], names: bool = True) -> str:
    first, second = (
        f"a {mascot.trigger} mascot" if names else "a mascot" for mascot in pair
    )
    return f"{first} and {second} side by side, {PLACES[pair[0].place]}"


def texts_of(mascot: Mascot, variant: Variant, index: int) -> list[str]:
    name = f"a {mascot.trigger} mascot"
    lots = Lots(SEED, "short caption", index)
    texts = {
        "name": [name],
        "full": [caption(mascot)],
        "lines": [caption(mascot), caption_in("short", mascot, lots), name],
    }
    return texts[variant.captions]


def write(folder: Path, index: int, picture: Image.Image, texts: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{index:03}.png")
    (folder / f"{index:03}.txt").write_text("\n".join(texts), encoding="utf-8")


def datasets(variant: Variant) -> list[dict[str, Any]]:
    """Draws the pictures of a variant into the working directory; the datasets of the
    job."""
    found: dict[str, int] = {}
    for name, count in variant.alone.items():
        for index in range(count):
            mascot = scene(name, "alone", index)
            write(
                Path(name),
                index,
                draw([mascot], SIDE, SIDE),
                texts_of(mascot, variant, index),
            )
        found[name] = count
    for index in range(variant.together):
        both = pair("together", index)
        picture = draw(both, SIDE, SIDE)
        for number, mascot in enumerate(both if variant.masks else ()):
            write(Path(f"in both {mascot.trigger}"), index, picture, [caption(mascot)])
            mask = Image.new("L", (SIDE, SIDE))
            mask.paste(255, (number * SIDE // 2, 0, (number + 1) * SIDE // 2, SIDE))
            Path(f"masks {mascot.trigger}").mkdir(exist_ok=True)
            mask.save(Path(f"masks {mascot.trigger}", f"{index:03}.png"))
        if not variant.masks:
            write(Path("both"), index, picture, [words_of(both, variant.names)])
    if variant.together:
        found |= (
            {f"in both {name}": variant.together for name in CHARACTERS}
            if variant.masks
            else {"both": variant.together}
        )
    for index in range(48 if variant.others else 0):
        mascot = random_mascot(
            Lots(SEED, "others", index), Casting(only={"place": SCENES["place"]})
        )
        write(Path("others"), index, draw([mascot], SIDE, SIDE), [caption(mascot)])
    made = [
        dataset(folder, max(1, round(USES / len(found) / count)), variant)
        for folder, count in found.items()
    ]
    quickstart = training(QUICKSTART.job())["datasets"]
    return [
        *made,
        *([quickstart[1] | {"folder_path": "others"}] if variant.others else []),
    ]


def dataset(folder: str, repeats: int, variant: Variant) -> dict[str, Any]:
    name = folder.removeprefix("in both ")
    return {
        "folder_path": folder,
        "num_repeats": repeats,
        "resolution": SIDE,
        **({"captions": "lines"} if variant.captions == "lines" else {}),
        **({"trigger_word": name} if name in CHARACTERS else {}),
        **({"mask_path": f"masks {name}"} if folder != name else {}),
    }


# ------------------------------------------------------------ figures


class Judge:
    """Names characters by body, colour and mark at once."""

    def __init__(self, classifier: MascotClassifier) -> None:
        self.classifier = classifier

    def rows(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        return self.classifier.attributes(pixels_of(pictures))

    def names(
        self, pictures: Sequence[Image.Image], keys: Sequence[str] = LOOKS
    ) -> list[str]:
        looks = {
            name: {key: of[key] for key in keys} for name, of in CHARACTERS.items()
        }
        seen = [{key: row[key] for key in keys} for row in self.rows(pictures)]
        return [
            next((name for name, of in looks.items() if of == row), NOBODY)
            for row in seen
        ]

    def halves(self, pictures: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """Who is to the left and to the right, by colour and mark: each figure has half
        the size, on the same ground, and the classifier does not know such outlines."""
        half, top = SIDE // 2, SIDE // 2 - 8
        sides = [
            [p.crop((left, top, left + half, top + half)) for p in pictures]
            for left in (0, half)
        ]
        return list(
            zip(*(self.names(side, ("colour", "mark")) for side in sides), strict=True)
        )

    def who(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Who is in each picture: one character in its middle, or in one half with the
        other nowhere, or both."""
        halves = [
            {name for name in pair if name != NOBODY} for pair in self.halves(pictures)
        ]
        whole = self.names(pictures)
        return [
            name
            if name != NOBODY or not found
            else found.pop()
            if len(found) == 1
            else BOTH
            for name, found in zip(whole, halves, strict=True)
        ]


def share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def table_of(
    tiny: TinyModel,
    judge: Judge,
    kind: str,
    only: Mapping[str, tuple[str, ...]],
    count: int,
) -> tuple[Table, float]:
    """Asked for -> recognised -> share; and the share of samples with the pose, the
    place and the hat asked for."""
    table, follows = Table(), list[bool]()
    for name in CHARACTERS:
        asked = [scene(name, kind, index, only) for index in range(count)]
        pictures = tiny.samples([caption(mascot) for mascot in asked])
        seen = judge.who(pictures)
        table[name] = {
            who: share([one == who for one in seen])
            for who in (*CHARACTERS, BOTH, NOBODY)
        }
        rows = zip(judge.rows(pictures), asked, strict=True)
        follows += [
            all(row[key] == getattr(mascot, key) for key in SCENE)
            for row, mascot in rows
        ]
    return table, share(follows)


def figures_of(tiny: TinyModel, judge: Judge, count: int) -> dict[str, Any]:
    seen, _ = table_of(tiny, judge, "seen", SCENES, count)
    new, follows = table_of(tiny, judge, "new", NEW, count)
    others = [
        random_mascot(Lots(SEED, "stays", index), Casting("pretraining"))
        for index in range(count)
    ]
    rows = judge.rows(tiny.samples([caption(mascot) for mascot in others]))
    keeps = [
        all(row[key] == getattr(mascot, key) for key in ("body", "colour"))
        for row, mascot in zip(rows, others, strict=True)
    ]
    pairs = [pair("asked", index) for index in range(count)]
    sides = judge.halves(tiny.samples([words_of(both) for both in pairs]))
    asked = [tuple(mascot.trigger for mascot in both) for both in pairs]
    return {
        "seen": seen,
        "new": new,
        "scene": follows,
        "others": share(keeps),
        "both, each in its place": share(
            [found == want for found, want in zip(sides, asked, strict=True)]
        ),
        "both, exchanged": share(
            [found == want[::-1] for found, want in zip(sides, asked, strict=True)]
        ),
        "twice the same": share([found[0] == found[1] != NOBODY for found in sides]),
    }


def measured(name: str, steps: int, count: int, judge: Judge) -> dict[str, Any]:
    """Draws, trains and asks, in a new folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("config").symlink_to(ROOT / "config")
            job, variant = QUICKSTART.job(), VARIANTS[name]
            section = training(job)
            section["datasets"] = datasets(variant)
            section["train"] |= {"steps": steps, **variant.train}
            section["save"]["save_every"] = 0
            del section["sample"]
            job["config"] |= {"name": "characters", "process": [section]}
            Path("job.yaml").write_text(
                yaml.safe_dump(job, sort_keys=False), encoding="utf-8"
            )
            if code := run.main(["job.yaml"]):
                sys.exit(code)
            tiny = QUICKSTART.tiny(
                "output/characters/characters.safetensors", judge.classifier
            )
            return figures_of(tiny, judge, count)
        finally:
            os.chdir(here)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", choices=VARIANTS, nargs="*", default=[*VARIANTS])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--count", type=int, default=40, help="samples of each kind")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card(
        "characters", f"{asked.steps} steps, {asked.count} samples of each kind"
    )
    judge, found = Judge(trained()), {}
    drawn = [pair("asked", index) for index in range(asked.count)]
    right = zip(
        judge.halves([draw(both, SIDE, SIDE) for both in drawn]), drawn, strict=True
    )
    print(
        f"drawings of both: {share([seen == tuple(m.trigger for m in both) for seen, both in right]):.0%} recognised"
    )
    for name in asked.variant:
        found[name] = measured(name, asked.steps, asked.count, judge)
        print(f"\n{name}")
        for kind in ("seen", "new"):
            print(kind, *lines_of(found[name][kind]), sep="\n")
        print(
            ", ".join(
                f"{what} {value:.0%}"
                for what, value in found[name].items()
                if isinstance(value, float)
            ),
            flush=True,
        )
    report.finish("characters", steps=asked.steps, count=asked.count, figures=found)


if __name__ == "__main__":
    main()

"""What a model of mascots has learned: drawn pictures through its autoencoder, and
samples judged by a classifier.

Parts:
- `vae`: PSNR of reconstructions, by kind of character and by size;
- `text`: whether 200 samples show what their captions name;
- `edits`: whether the named attributes change and the others stay, given a reference;
- `strangers`: the same for characters of bodies, colours and marks that pretraining
  never showed;
- `two`: whether both references are in the picture.

`python benchmarks/figures/tiny_mascots.py config/examples/tiny_mascots` measures all of
them; `--lora FILE` with an adapter.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import (  # noqa: E402
    ALL,
    NONE,
    Casting,
    Characters,
    Lots,
    Mascot,
    Pair,
    random_mascot,
)
from mascots.words import caption, edit, edit_of_two  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.mascot_classifier import agreement, pixels_of, trained  # noqa: E402
from benchmarks.mascot_model import (  # noqa: E402
    GUIDANCE,
    GUIDANCE_OF,
    NAMED,
    SEED,
    SIDE,
    STEPS,
    TinyModel,
    load,
)

SIZES = ((96, 96), (128, 128), (160, 160), (192, 192), (192, 128), (96, 160))
"""Width and height of what the autoencoder is tried on."""

# ------------------------------------------------------------ parts


def vae(tiny: TinyModel, count: int, sheet: Path | None) -> dict[str, float]:
    """Kind or size -> mean PSNR in dB."""

    def psnr(characters: Characters, size: tuple[int, int], pictures: int) -> float:
        found = []
        for index in range(pictures):
            mascot = random_mascot(Lots(SEED, "vae", index), Casting(characters))
            pixels_BCHW = pixels_of([draw([mascot], *size)])
            with torch.no_grad():
                again_BCHW = tiny.model.decode_latents(
                    tiny.model.encode_images(pixels_BCHW)
                ).clamp(-1, 1)
            found.append(
                float(10 * torch.log10(4 / (again_BCHW - pixels_BCHW).square().mean()))
            )
        return sum(found) / len(found)

    kinds: tuple[Characters, ...] = ("pretraining", "held_out", "reserved", "random")
    figures = {kind: psnr(kind, (SIDE, SIDE), count) for kind in kinds}
    return figures | {
        f"{w}x{h}": psnr("held_out", (w, h), max(1, count // 4)) for w, h in SIZES
    }


def text(tiny: TinyModel, count: int, sheet: Path | None) -> dict[str, float]:
    """Attribute -> share of samples that show what the caption names; half of them are
    of held-out characters."""
    wanted = [
        random_mascot(
            Lots(SEED, "text", index),
            Casting("held_out" if index % 2 else "pretraining"),
        )
        for index in range(count)
    ]
    pictures = tiny.samples([caption(mascot) for mascot in wanted])
    _show(
        sheet,
        "text",
        [
            (picture, draw([m], SIDE, SIDE))
            for picture, m in zip(pictures, wanted, strict=True)
        ],
    )
    shares = agreement(tiny.classifier, pixels_of(pictures), wanted)
    return {name: shares[name] for name in NAMED}


def edits(tiny: TinyModel, count: int, sheet: Path | None) -> dict[str, float]:
    return _edited(tiny, count, "held_out", sheet, "edits")


def strangers(tiny: TinyModel, count: int, sheet: Path | None) -> dict[str, float]:
    return _edited(tiny, count, "reserved", sheet, "strangers")


def _edited(
    tiny: TinyModel, count: int, characters: Characters, sheet: Path | None, name: str
) -> dict[str, float]:
    """Shares of the named attributes that change as asked, and of the others that
    stay."""
    pairs = [edit(SEED, index, Casting(characters)) for index in range(count)]
    pictures = _after(tiny, pairs, sheet, name)
    changed, stayed, kept = [], [], {name: [] for name in ("body", "colour", "mark")}
    for pair, row in zip(pairs, tiny.seen(pictures), strict=True):
        before, after = pair.before[0], pair.after[0]
        for attribute in _shown(after):
            right = row[attribute] == getattr(after, attribute)
            is_new = getattr(before, attribute) != getattr(after, attribute) or (
                attribute == "hat_colour" and before.hat == NONE
            )
            (changed if is_new else stayed).append(right)
            if attribute in kept and not is_new:
                kept[attribute].append(right)
    looks = {f"{attribute} stays": _share(right) for attribute, right in kept.items()}
    return {"changed": _share(changed), "stayed": _share(stayed), **looks}


def two(tiny: TinyModel, count: int, sheet: Path | None) -> dict[str, float]:
    """Share of pictures in which the colours of both are right, each in its half."""
    every = (
        edit_of_two(SEED, index, Casting("pretraining")) for index in range(20 * count)
    )
    pairs = [pair for pair in every if len(pair.after) == 2][:count]
    pictures = _after(tiny, pairs, sheet, "two")

    def colours(picture: Image.Image) -> list[str]:
        halves = (
            picture.crop((0, 0, SIDE // 2, SIDE)),
            picture.crop((SIDE // 2, 0, SIDE, SIDE)),
        )
        return [row["colour"] for row in tiny.seen(halves)]

    # A half is not a picture that the classifier knows: it must see the same in the
    # sample as in the drawing.
    drawn = [draw(pair.after, SIDE, SIDE) for pair in pairs]
    right = [
        colours(ours) == colours(theirs)
        for ours, theirs in zip(pictures, drawn, strict=True)
    ]
    return {"colours of both": _share(right)}


def _after(
    tiny: TinyModel, pairs: Sequence[Pair], sheet: Path | None, name: str
) -> list[Image.Image]:
    references = [
        [draw([before], SIDE, SIDE) for before in pair.before] for pair in pairs
    ]
    pictures = tiny.samples([pair.instruction for pair in pairs], references)
    drawn = [draw(pair.after, SIDE, SIDE) for pair in pairs]
    _show(
        sheet,
        name,
        [(*r, p, d) for r, p, d in zip(references, pictures, drawn, strict=True)],
    )
    return pictures


def _shown(mascot: Mascot) -> Iterator[str]:
    return (name for name in ALL if name != "hat_colour" or mascot.hat != NONE)


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(1, len(right))


def _show(
    folder: Path | None, name: str, rows: Sequence[Sequence[Image.Image]]
) -> None:
    """Writes a sheet of groups: what goes in, the sample, what was drawn."""
    if folder is None:
        return
    wide, columns = len(rows[0]), max(1, 12 // len(rows[0]))
    sheet = Image.new(
        "RGB",
        (columns * (wide * SIDE + 8), -(-len(rows) // columns) * (SIDE + 4)),
        "white",
    )
    for index, group in enumerate(rows):
        left, top = index % columns * (wide * SIDE + 8), index // columns * (SIDE + 4)
        for number, picture in enumerate(group):
            sheet.paste(picture, (left + number * SIDE, top))
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"{name}.png")


PARTS: dict[str, Callable[[TinyModel, int, Path | None], dict[str, float]]] = {
    "vae": vae,
    "text": text,
    "edits": edits,
    "strangers": strangers,
    "two": two,
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", help="model folder")
    add("--part", choices=PARTS, nargs="*", help="default: all")
    add("--count", type=int, default=200, help="samples of each part")
    add("--steps", type=int, default=STEPS)
    add(
        "--guidance",
        type=float,
        help=f"default: {GUIDANCE:g}, of captions {GUIDANCE_OF['text']:g}",
    )
    add("--lora", default="", help="adapter file")
    add("--qtype", default="", help="quantize the model's blocks, such as int8 or int4")
    add("--sheets", type=Path, help="folder for sheets of the samples")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card(
        "mascots", f"{asked.model}, {asked.count} samples a part, {asked.steps} steps"
    )
    model = load(asked.model, asked.lora, qtype=asked.qtype)
    classifier = trained()
    figures = {}
    for part in asked.part or PARTS:
        guidance = (
            GUIDANCE_OF.get(part, GUIDANCE)
            if asked.guidance is None
            else asked.guidance
        )
        tiny = TinyModel(model, classifier, asked.steps, guidance)
        figures[part] = PARTS[part](tiny, asked.count, asked.sheets)
        unit = "{:.1f} dB" if part == "vae" else "{:.1%}"
        print(
            f"{part:<10} {', '.join(f'{name} {unit.format(value)}' for name, value in figures[part].items())}"
        )
    report.finish("mascots", model=asked.model, count=asked.count, figures=figures)


if __name__ == "__main__":
    main()

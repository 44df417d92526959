"""Does it learn? The quickstart and variants of it, judged by a classifier on samples.

Each variant is a separate job: it trains on the shipped model, then samples show the
new character in poses, places and hats that were in none of its pictures, and other
mascots, which should stay what they are. Variants that are right agree within noise.
Variants that are broken on purpose show which mistakes these figures would see.

`python benchmarks/figures/learning.py` measures all of them; `--variant ema_off int8`
some; `--model FOLDER` on another model, with files in the same layout."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.config import OnlyConfig  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import ALL, NONE, Casting, Lots, Mascot, Pair, random_mascot  # noqa: E402
from mascots.words import caption, edit_of_two  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, trained  # noqa: E402
from benchmarks.mascot_model import SIDE, TinyModel, load  # noqa: E402

EXAMPLES = ROOT / "config" / "examples"
SEED = 99
"""Of the mascots and the noise of the samples."""

LOOKS = ("body", "colour", "mark")
SCENE = ("pose", "place", "hat")

Job = dict[str, Any]
Figures = dict[str, float]


def training(job: Job) -> dict[str, Any]:
    """The trainer's section of a job."""
    return next(
        section
        for section in job["config"]["process"]
        if section["type"] == "sd_trainer"
    )


def character(job: Job) -> dict[str, str]:
    """The looks and the trigger word of the new character."""
    return _drawn(job)["character"]


def unseen(job: Job) -> dict[str, tuple[str, ...]]:
    """The poses, places and hats that the pictures of the new character do not show; no
    hat is none of these."""
    shown = OnlyConfig.model_validate(_drawn(job)["only"]).given()
    return {
        name: tuple(value for value in ALL[name] if value not in (NONE, *shown[name]))
        for name in SCENE
    }


def _drawn(job: Job) -> dict[str, Any]:
    return next(
        section for section in job["config"]["process"] if "character" in section
    )


# ------------------------------------------------------------ variants


def as_it_is(job: Job) -> None:
    """The example."""


def another_seed(job: Job) -> None:
    training(job)["training_seed"] += 1


def ema_off(job: Job) -> None:
    training(job)["train"]["ema_config"] = {"use_ema": False}


def int8(job: Job) -> None:
    training(job)["model"] |= {"quantize": True, "qtype": "int8"}


def int4(job: Job) -> None:
    training(job)["model"] |= {"quantize": True, "qtype": "int4"}


def resumed(job: Job) -> None:
    """Stopped after its first checkpoint, and started again."""


def captions_shuffled(job: Job) -> None:
    """Broken: the character's captions stand with the pictures of the others, theirs
    with its own."""
    own, others = training(job)["datasets"]
    own["folder_path"], others["folder_path"] = (
        others["folder_path"],
        own["folder_path"],
    )
    training(job)["trigger_word"] = character(job)["trigger"]


def without_captions(job: Job) -> None:
    """Broken: nothing says which pictures are the character's."""
    for dataset in training(job)["datasets"]:
        dataset["caption_dropout_rate"] = 1.0


def references_left_out(job: Job) -> None:
    """Broken: the pictures that the captions speak of are not shown."""
    for dataset in training(job)["datasets"]:
        del dataset["control_path"]


def references_swapped(job: Job) -> None:
    """Broken: Picture 1 is Picture 2."""
    for dataset in training(job)["datasets"]:
        dataset["control_path"].reverse()


def positions_lost(job: Job) -> None:
    """Broken: all pictures have the positions of the one that is made."""


def features_after_norm(job: Job) -> None:
    """Broken: the text's features are taken behind the final norm of a text encoder
    whose transformer knows those in front of it."""


def _one_place_for_all_pictures() -> None:
    """Breaks the positions by which the transformer tells its pictures apart."""
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    from toolkit.models.qwen_image21 import forward

    right_of_21 = forward._rotary

    def wrong_of_21(model: Any, parts: Sequence[tuple[int, bool]], *rest: Any) -> Any:
        rotary_SE, begin = right_of_21(model, parts, *rest), 0
        for length, is_text in parts:
            if not is_text:  # all pictures have the same size
                rotary_SE[begin : begin + length] = rotary_SE[-length:]
            begin += length
        return rotary_SE

    forward._rotary = wrong_of_21
    right = QwenEmbedRope._compute_video_freqs

    def wrong(
        self: Any, frame: int, height: int, width: int, idx: int = 0, *rest: Any
    ) -> Any:
        return right(self, frame, height, width, 0, *rest)

    QwenEmbedRope._compute_video_freqs = wrong  # type: ignore[method-assign]


def _features_after_norm() -> None:
    from extensions.from_scratch.latent_flow.family import TEXT_ENCODERS

    TEXT_ENCODERS.update(
        {name: kind._replace(norm="") for name, kind in TEXT_ENCODERS.items()}
    )


Variant = Callable[[Job], None]
OF_QUICKSTART: tuple[Variant, ...] = (
    as_it_is,
    another_seed,
    ema_off,
    int8,
    int4,
    resumed,
    captions_shuffled,
    without_captions,
)
OF_PAIRS: tuple[Variant, ...] = (
    as_it_is,
    references_left_out,
    references_swapped,
    positions_lost,
)
OF_OTHER_MODELS: tuple[Variant, ...] = (features_after_norm,)
"""With `--model`, of either example."""

IN_PROCESS = {
    positions_lost: _one_place_for_all_pictures,
    features_after_norm: _features_after_norm,
}
"""Variant -> what is broken in the process that trains."""


# ------------------------------------------------------------ figures


def of_character(tiny: TinyModel, job: Job, count: int) -> Figures:
    """Shares of samples in which the character is recognised by body, colour and mark
    at once, asked for by its trigger alone; in which it has the pose, is in the place
    and wears the hat that were asked for, none of which its pictures show; and in which
    a mascot of pretraining keeps body and colour."""
    looks, scenes = character(job), Casting("pretraining", only=unseen(job))
    asked = [
        Mascot(
            **{**vars(random_mascot(Lots(SEED, "learning", index), scenes)), **looks}
        )
        for index in range(count)
    ]
    others = [
        random_mascot(Lots(SEED, "stays", index), Casting("pretraining"))
        for index in range(count)
    ]

    def rows(mascots: Sequence[Mascot]) -> list[dict[str, str]]:
        return tiny.seen(tiny.samples([caption(mascot) for mascot in mascots]))

    new = rows(asked)
    return {
        "character": _share(new, asked, *LOOKS),
        **{name: _share(new, asked, name) for name in SCENE},
        "others": _share(rows(others), others, "body", "colour"),
    }


def of_pairs(tiny: TinyModel, job: Job, count: int) -> Figures:
    """Shares of samples that show the character of Picture 1, with the hat of Picture
    2."""
    casting = Casting(fixed=character(job))
    pairs: list[Pair] = []
    index = 0
    while len(pairs) < count:
        pair = edit_of_two(SEED, index, casting)
        pairs += [pair] if len(pair.after) == 1 else []
        index += 1
    references = [
        [draw([before], SIDE, SIDE) for before in pair.before] for pair in pairs
    ]
    asked = _drawn(job).get("instruction")
    rows = tiny.seen(
        tiny.samples([asked or pair.instruction for pair in pairs], references)
    )
    shown = [pair.after[0] for pair in pairs]
    return {
        "character": _share(rows, shown, *LOOKS),
        "hat": _share(rows, shown, "hat", "hat_colour"),
    }


def _share(
    rows: Sequence[dict[str, str]], mascots: Sequence[Mascot], *names: str
) -> float:
    """Of the samples in which all these attributes are seen as they were asked for."""
    right = [
        all(row[name] == getattr(m, name) for name in names)
        for row, m in zip(rows, mascots, strict=True)
    ]
    return sum(right) / len(right)


@dataclass(frozen=True)
class Example:
    """A job of the examples, its variants, and what is measured on them."""

    file: Path
    variants: tuple[Variant, ...]
    figures: Callable[[TinyModel, Job, int], Figures]
    model: str = ""
    """Folder of another model than that of the example."""

    def on(self, model: str) -> Example:
        """The same of another model; of its own where `model` is empty."""
        return (
            replace(self, model=model, variants=(*self.variants, *OF_OTHER_MODELS))
            if model
            else self
        )

    def job(self) -> Job:
        job = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        if self.model:
            training(job)["model"]["name_or_path"] = self.model
        return job

    def tiny(
        self, lora: str, classifier: MascotClassifier, qtype: str = ""
    ) -> TinyModel:
        """The model of the job with a LoRA file, to be sampled with the steps and the
        guidance of the job."""
        section = training(self.job())
        model = load(str(ROOT / section["model"]["name_or_path"]), lora, qtype=qtype)
        return TinyModel(
            model,
            classifier,
            section["sample"]["sample_steps"],
            section["sample"]["guidance_scale"],
        )


MEASURED = (
    Example(EXAMPLES / "quickstart.yaml", OF_QUICKSTART, of_character),
    Example(EXAMPLES / "mascot_hats.yaml", OF_PAIRS, of_pairs),
)


def train(job: Job, variant: Variant, folder: Path) -> tuple[Path, float]:
    """Runs the job of a variant in a new working directory; its LoRA, and the seconds
    it took."""
    folder.mkdir()
    (folder / "config").symlink_to(ROOT / "config")
    (folder / "job.yaml").write_text(
        yaml.safe_dump(job, sort_keys=False), encoding="utf-8"
    )
    name = job["config"]["name"]
    made = folder / "output" / name
    start = [sys.executable, __file__, "--start", variant.__name__]
    began = time.perf_counter()
    if variant is resumed:
        process = subprocess.Popen(start, cwd=folder, stdout=subprocess.DEVNULL)
        while process.poll() is None and not any(made.glob("state/step_*")):
            time.sleep(0.2)
        process.terminate()
        process.wait()
    subprocess.run(start, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return made / f"{name}.safetensors", time.perf_counter() - began


def measure(
    example: Example,
    chosen: Sequence[str],
    count: int,
    folder: Path,
    classifier: MascotClassifier,
) -> dict[str, Figures]:
    """Variant -> its figures; first those of the model alone."""
    found: dict[str, Figures] = {}

    def line(name: str, job: Job, lora: str, seconds: float) -> None:
        tiny = example.tiny(lora, classifier, training(job)["model"].get("qtype", ""))
        found[name] = example.figures(tiny, job, count)
        shares = ", ".join(f"{what} {share:.0%}" for what, share in found[name].items())
        print(
            f"{example.file.stem:<14} {name:<20} {shares}, {seconds:.0f} s", flush=True
        )

    line("before", example.job(), "", 0)
    for variant in example.variants:
        if not chosen or variant.__name__ in chosen:
            job = example.job()
            del training(job)["sample"]
            variant(job)
            lora, seconds = train(
                job, variant, folder / f"{example.file.stem}_{variant.__name__}"
            )
            line(variant.__name__, job, str(lora), seconds)
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--example",
        choices=[example.file.stem for example in MEASURED],
        nargs="*",
        help="default: all",
    )
    variants = {
        variant.__name__
        for example in MEASURED
        for variant in example.on("any").variants
    }
    add("--variant", choices=sorted(variants), nargs="*", help="default: all")
    add("--model", default="", help="folder; default: the example's")
    add("--count", type=int, default=100, help="samples of each kind")
    add("--start", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.start:
        for variant, breaks in IN_PROCESS.items():
            if asked.start == variant.__name__:
                breaks()
        sys.exit(run.main(["job.yaml"]))
    timing.one_thread()
    report.card("learning", f"{asked.count} samples of each kind")
    classifier = trained()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            example.file.stem: measure(
                example, asked.variant, asked.count, Path(folder), classifier
            )
            for example in (
                e.on(asked.model and str(Path(asked.model).resolve())) for e in MEASURED
            )
            if not asked.example or example.file.stem in asked.example
        }
    report.finish("learning", count=asked.count, model=asked.model, figures=figures)


if __name__ == "__main__":
    main()

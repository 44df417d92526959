"""Does a LoRA learn the shift of its pairs? Edit pairs of the tiny mascots whose results lie some pixels beside their
references, and the copies that `run.py align` makes of them: a LoRA is trained on each, and edits of other mascots are
measured against their references.

`python benchmarks/bench_drift.py` trains on both in turn, for each seed; about 4 minutes per seed on a core."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import Casting, Pair  # noqa: E402
from mascots.words import edit  # noqa: E402
from PIL import Image  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_mascots import SEED, SIDE, TinyModel, load  # noqa: E402
from toolkit.data.alignment import MEASURABLE, measure  # noqa: E402

MODEL = ROOT / "config" / "examples" / "tiny_mascots"
MARGIN = 16
"""Pixels that are drawn around an image, so that a shifted one has no empty border."""

CHANGES = ("held", "eyes")
"""What the edits change: the mascot stays where it is."""


def pairs(seed: int, count: int) -> list[Pair]:
    return [edit(seed, index, Casting("pretraining"), CHANGES) for index in range(count)]


def images(pair: Pair, shift: int = 0) -> tuple[Image.Image, Image.Image]:
    """Result and reference; what is in the result lies so many pixels further right."""

    def cut(mascots: Sequence[Any], left: int) -> Image.Image:
        whole = draw(mascots, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
        return whole.crop((left, MARGIN, left + SIDE, MARGIN + SIDE))

    return cut(pair.after, MARGIN - shift), cut(pair.before[:1], MARGIN)


def write(folder: Path, count: int, shift: int) -> None:
    for name in ("after", "before"):
        (folder / name).mkdir(parents=True)
    for index, pair in enumerate(pairs(SEED, count)):
        after, before = images(pair, shift)
        after.save(folder / "after" / f"{index:03}.png")
        before.save(folder / "before" / f"{index:03}.png")
        (folder / "after" / f"{index:03}.txt").write_text(pair.instruction, encoding="utf-8")


def train(name: str, after: str, before: str, seed: int, asked: argparse.Namespace) -> Path:
    """A LoRA of the pairs in these folders, by the job of config/examples/mascot_hats.yaml."""
    job = yaml.safe_load((ROOT / "config" / "examples" / "mascot_hats.yaml").read_text(encoding="utf-8"))
    section = next(each for each in job["config"]["process"] if each["type"] == "sd_trainer")
    del section["sample"]
    section["training_seed"] = seed
    section["network"] |= {"linear": asked.rank, "linear_alpha": asked.rank}
    section["datasets"] = [{"folder_path": after, "control_path": before, "resolution": SIDE}]
    section["train"] |= {"steps": asked.steps, "lr": asked.lr}
    section["save"] |= {"save_every": 0}
    section["model"]["name_or_path"] = str(MODEL)
    job["config"] |= {"name": name, "process": [section]}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    started(f"{name}.yaml")
    return Path("output", name, f"{name}.safetensors")


def started(*command: str) -> None:
    if code := run.main(list(command)):
        sys.exit(code)


def drift(lora: str, count: int) -> dict[str, float]:
    """Of edits that were not trained on, where they lie on their references: mean and spread of the shift to the right
    and down in pixels, and the mean of the corner that is farthest off, of those whose edges lie on each other; their
    share, and the share that `run.py lint` takes for measurable."""
    model = TinyModel(load(str(MODEL), lora), cast("Any", None))  # nothing is classified
    asked = pairs(SEED + 1, count)
    references = [images(pair)[1] for pair in asked]
    samples = model.samples([pair.instruction for pair in asked], [[each] for each in references])
    found = [measure(reference, sample) for sample, reference in zip(samples, references, strict=True)]
    alike = [each for each in found if each.peak >= MEASURABLE]
    right, down = ([each.shift[axis] for each in alike] for axis in (0, 1))
    return {
        "right": fmean(right),
        "right_spread": pstdev(right),
        "down": fmean(down),
        "down_spread": pstdev(down),
        "drift": fmean(each.drift for each in alike),
        "alike": len(alike) / count,
        "measurable": sum(each.is_measurable for each in found) / count,
    }


LINE = (
    "{pairs:<8} {seed!s:>5}  right {right:+.2f} +- {right_spread:.2f}, down {down:+.2f} +- {down_spread:.2f}, "
    "corner {drift:.2f} pixels; {alike:.0%} alike, {measurable:.0%} measurable, {seconds:.0f} s"
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--shift", type=int, default=8, help="pixels, at most 16")
    add("--pairs", type=int, default=128)
    add("--steps", type=int, default=450)
    add("--rank", type=int, default=64)
    add("--lr", type=float, default=0.002)
    add("--seeds", type=int, default=1)
    add("--count", type=int, default=24, help="samples of each LoRA")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    what = f"{asked.pairs} pairs shifted by {asked.shift} pixels, rank {asked.rank}, {asked.steps} steps"
    report.card("drift", f"{what}, {asked.count} samples of each LoRA")
    rows: list[dict[str, Any]] = []

    def line(name: str, seed: int | None, lora: str, began: float) -> None:
        rows.append({"pairs": name, "seed": seed, **drift(lora, asked.count), "seconds": time.perf_counter() - began})
        print(LINE.format(**rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write(Path("shifted"), asked.pairs, asked.shift)
        started("align", "shifted/after", "--control-path", "shifted/before", "--output", "aligned")
        line("none", None, "", time.perf_counter())
        folders = {"shifted": ("shifted/after", "shifted/before"), "aligned": ("aligned/images", "aligned/references")}
        for seed in range(1, asked.seeds + 1):
            for name, (after, before) in folders.items():
                began = time.perf_counter()
                line(name, seed, str(train(f"{name}_{seed}", after, before, seed, asked)), began)
    report.finish("drift", shift=asked.shift, rank=asked.rank, steps=asked.steps, figures=rows)


if __name__ == "__main__":
    main()

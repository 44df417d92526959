"""`stop_when: {no_better_within: 95%}` on runs that train: where would it have ended them, and was that false?

LoRAs, trained to their last step, with 32 validation images. On the tiny model with random weights: `many` trains on
120 others and still improves, `few` on 3 and `one` on 1 at high rates, `slow` as `many` with a hundredth of its rate.
On the small model of the quickstart, all of one character: `learns` trains on 60 and still improves, `overfits` on 4,
with the quickstart's optimizer and rate but without its images of others. The rule is then asked as if only 12 of the
validation images had been there, for 100 draws of these; the loss of all 32 stands for the true one.

`python benchmarks/bench_stopping_runs.py` trains 2 runs of each kind."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import Casting, Lots, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_influence import PIPO  # noqa: E402
from toolkit.models.tiny import write_tiny_model  # noqa: E402
from toolkit.train.paired import as_good_as_the_lowest, forecast  # noqa: E402
from toolkit.train.run_reader import read_losses_by_image  # noqa: E402

TRAINED = ROOT / "config" / "examples" / "tiny_mascots"


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    images: int
    """To train on."""

    lr: float
    optimizer: str = "adamw"
    of_one: bool = False
    """All images show one character, and the model knows mascots; else they show any, and it has random weights."""


KINDS = {
    "many": Kind(120, 0.003),
    "few": Kind(3, 0.03),
    "one": Kind(1, 0.1),
    "slow": Kind(120, 0.00003),
    "learns": Kind(60, 0.003, of_one=True),
    "overfits": Kind(4, 0.02, "muon", of_one=True),
}

HELD_OUT, DRAWN, DRAWS = 32, 12, 100

Losses = dict[int, dict[str, float]]


def job_of(kind: Kind, seed: int, steps: int) -> dict[str, Any]:
    """A job of that kind, in the folder that `make_inputs` filled."""
    rank, side = (64, 64) if kind.of_one else (8, 32)
    section = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cpu",
        "training_seed": 1 + seed,
        "network": {"type": "lora", "linear": rank, "linear_alpha": rank},
        "save": {"save_every": 0, "states": "never"},
        "datasets": [{"folder_path": "trained", "resolution": side}],
        "validation": {
            "folder_path": "held_out", "every": steps // 24, "timesteps": 2, "resolution": side
        },
        "train": {
            "batch_size": 4, "steps": steps, "lr": kind.lr, "optimizer": kind.optimizer, "dtype": "fp32",
            "lr_scheduler": "constant",
            "gradient_checkpointing": False, "disable_sampling": True, "compile": False,
            "ema_config": {"use_ema": True, "ema_decay": 0.9},
        },
        "model": {
            "name_or_path": str(TRAINED) if kind.of_one else "model", "model_kwargs": {"match_target_res": True}
        },
    }  # fmt: skip
    return {"job": "extension", "config": {"name": "stopping", "process": [section]}}


def make_inputs(kind: Kind, seed: int, held_out: int = HELD_OUT) -> None:
    """Writes the images of a job, and its model, into the working directory."""
    if not kind.of_one:
        write_tiny_model(Path("model"))
    images(Path("trained"), kind, kind.images, 100 + seed)
    images(Path("held_out"), kind, held_out, 7)


def images(folder: Path, kind: Kind, count: int, seed: int) -> None:
    """Mascots with their captions; of all kinds, with one caption."""
    folder.mkdir()
    casting, side = (Casting(fixed=PIPO), 64) if kind.of_one else (Casting("any", jitter=1), 32)
    for index in range(count):
        shown = random_mascot(Lots(seed, "stopping", index), casting)
        draw([shown], side, side).save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(caption(shown) if kind.of_one else "a mascot", encoding="utf-8")


def trained(kind: Kind, seed: int, steps: int) -> Losses:
    """Runs a job; its losses by image."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_inputs(kind, seed)
            Path("job.yaml").write_text(yaml.safe_dump(job_of(kind, seed, steps)), encoding="utf-8")
            if code := run.main(["job.yaml"]):
                sys.exit(code)
            return read_losses_by_image(Path("output/stopping"))
        finally:
            os.chdir(here)


@dataclass(frozen=True)
class Stop:
    """Where the rule ends a run."""

    step: int
    is_false: bool
    """A later step is better than the best one by more than the images resolve."""

    is_passed: bool
    """A later step is better than the best one at all."""


def asked(losses: Losses, images: Sequence[str]) -> Stop | None:
    """What the rule says if only these images are measured."""
    true = {step: fmean(row.values()) for step, row in losses.items()}
    part = {step: {image: row[image] for image in images} for step, row in losses.items()}
    for step in sorted(part):
        found = forecast({each: part[each] for each in part if each <= step}, max(part), 0.95)
        if found and found.is_over and step < max(part):
            later, best = min(value for each, value in true.items() if each > step), true[found.best]
            return Stop(step, later < best - found.resolvable, later < best)
    return None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    timing.one_thread()
    report.card("stopping_runs", f"{given.runs} runs of each kind, {given.steps} steps, {DRAWS} x {DRAWN} images")
    figures = {}
    for kind in given.kind:
        ends: list[Stop | None] = []
        for seed in range(given.runs):
            losses, lots = trained(KINDS[kind], seed, given.steps), random.Random(seed)
            means = {step: fmean(row.values()) for step, row in sorted(losses.items())}
            good = as_good_as_the_lowest({step: row for step, row in losses.items() if step})
            ends += [asked(losses, lots.sample(sorted(losses[0]), DRAWN)) for _ in range(DRAWS)]
            print(f"{kind} {seed}: " + " ".join(f"{mean:.4f}" for mean in means.values()), flush=True)
            print(f"  as good as the lowest of all {HELD_OUT}: {good and good.steps}", flush=True)
        stops = [end for end in ends if end]
        figures[kind] = {
            "stopped": len(stops) / len(ends),
            "false": sum(end.is_false for end in stops) / len(ends),
            "passed": sum(end.is_passed for end in stops) / len(ends),
            "median": median(end.step for end in stops) if stops else None,
        }
        print(kind, figures[kind], flush=True)
    report.finish("stopping_runs", runs=given.runs, steps=given.steps, figures=figures)


if __name__ == "__main__":
    main()

"""Which noise levels teach a new character best? The quickstart's job with each way of
drawing them, ten seeds each.

The samples show the character in poses, places and hats that were in none of its
pictures, and mascots that are not in the training at all; a classifier judges them.
Every seed is a training of its own with other initial weights, noise and order, the
same for each way. Prints the mean over the seeds, its standard error, and that of the
differences from the first way.

`python benchmarks/figures/levels.py` takes about 25 minutes on one core."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.figures.learning import MEASURED, SCENE, Figures, training  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, trained  # noqa: E402

QUICKSTART = MEASURED[0]
WAYS = ("weighted", "qwen_shift", "sigmoid")
FIRST_SEED = 100

OfSeeds = Mapping[str, Sequence[float]]
"""Figure -> its value with each seed."""


def draw_pictures() -> None:
    """The pictures of the quickstart, in the working directory."""
    job = QUICKSTART.job()
    job["config"]["process"] = [
        one for one in job["config"]["process"] if one is not training(job)
    ]
    _run(job)


def measured(
    way: str, seed: int, steps: int, count: int, classifier: MascotClassifier
) -> Figures:
    """Trains on the pictures in the working directory, and asks; the shares that
    `learning.py` measures, and the mean of those of pose, place and hat as `scene`."""
    job = QUICKSTART.job()
    name = f"{way}_{seed}"
    section = training(job)
    section["training_seed"] = seed
    section["train"] |= {"steps": steps, "timestep_type": way}
    section["save"]["save_every"] = 0
    del section["sample"]
    job["config"] |= {"name": name, "process": [section]}
    _run(job)
    tiny = QUICKSTART.tiny(f"output/{name}/{name}.safetensors", classifier)
    figures = QUICKSTART.figures(tiny, QUICKSTART.job(), count)
    return figures | {"scene": statistics.mean(figures[part] for part in SCENE)}


def _run(job: dict[str, object]) -> None:
    Path("job.yaml").write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    if code := run.main(["job.yaml"]):
        sys.exit(code)


def line_of(found: OfSeeds, first: OfSeeds) -> str:
    """Mean and standard error of each figure, and the same of the differences from
    `first`, seed by seed."""
    parts = []
    for name, values in found.items():
        text = f"{name} {_mean(values)}"
        if found is not first:
            differences = [
                one - other for one, other in zip(values, first[name], strict=True)
            ]
            text += f" ({_mean(differences, '+')})"
        parts.append(text)
    return ", ".join(parts)


def _mean(values: Sequence[float], sign: str = "") -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):{sign}.1f} +- {100 * error:.1f} %"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", choices=WAYS, nargs="*", default=[*WAYS])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--count", type=int, default=30, help="samples of each kind")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card(
        "levels",
        f"{asked.seeds} seeds, {asked.steps} steps, {asked.count} samples of each kind",
    )
    classifier = trained()
    found: dict[str, dict[str, list[float]]] = {way: {} for way in asked.way}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("config").symlink_to(ROOT / "config")
            draw_pictures()
            for seed in range(FIRST_SEED, FIRST_SEED + asked.seeds):
                for way in asked.way:  # by turns, so that an interrupted series is fair
                    figures = measured(way, seed, asked.steps, asked.count, classifier)
                    print(
                        f"{way} {seed}: {', '.join(f'{name} {share:.0%}' for name, share in figures.items())}"
                    )
                    for name, share in figures.items():
                        found[way].setdefault(name, []).append(share)
        finally:
            os.chdir(here)
    for way, of_seeds in found.items():
        print(f"{way}: {line_of(of_seeds, found[asked.way[0]])}", flush=True)
    report.finish(
        "levels", seeds=asked.seeds, steps=asked.steps, count=asked.count, figures=found
    )


if __name__ == "__main__":
    main()

"""`run.py JOB.yaml --seeds 1,2,3`: the same job once per seed, each in its own folder.

`read_seeds` reads the option, `run_folders` lists the folders of a job that trains, and
`compared` prints the losses of the runs with their mean and spread. The runs themselves
are started by `jobs/multi_run.py`. `run.py` calls all of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from toolkit.config.reading.process import JobConfig, JobContext, ProcessConfig
from toolkit.errors import UserError
from toolkit.files.run_files import read_status

MOST_SEEDS = 100
LARGEST = 2**32 - 1


def read_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `1,2,3`, 1 or larger. Raises UserError for any other text.

    >>> read_seeds("1, 2,3")
    (1, 2, 3)
    """
    words = [word.strip() for word in text.split(",")]
    if not all(_is_seed(word) for word in words):
        raise UserError(
            f"--seeds {text}: write whole numbers from 1 on with commas between them: --seeds 1,2,3"
        )
    seeds = tuple(map(int, words))
    if len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS:
        raise UserError(f"--seeds {text}: give different seeds, at most {MOST_SEEDS}.")
    return seeds


def _is_seed(word: str) -> bool:
    return word.isascii() and word.isdigit() and 1 <= int(word) <= LARGEST


def run_folders(config: JobConfig) -> list[Path]:
    """The run folders of the processes that train, in their order. Other processes are
    left out. The folders need not exist."""
    job = JobContext(config.name)
    sections = [
        entry.section
        for entry in config.processes
        if isinstance(entry.section, ProcessConfig)
    ]
    folders = [
        section.run_folder(job)
        for section in sections
        if hasattr(section, "training_seed")
    ]
    return [folder for folder in folders if folder]


def compared(by_seed: Mapping[int, Sequence[Path]]) -> Iterator[str]:
    """A line for each run, then one for each number with its spread. by_seed: the
    folders of the runs of each seed."""
    numbers: dict[str, list[float]] = {}
    for seed, folders in by_seed.items():
        for folder in folders:
            of_run = _numbers(folder)
            yield f"seed {seed}: {', '.join(f'{name} {value:.4f}' for name, value in of_run.items()) or '-'}; {folder}"
            for name, value in of_run.items():
                numbers.setdefault(name, []).append(value)
    for name, values in numbers.items():
        if len(values) > 1:
            spread = f"{min(values):.4f} to {max(values):.4f}, standard deviation {stdev(values):.4f}"
            yield f"{name} of {len(values)} runs: mean {fmean(values):.4f}, {spread}"


def _numbers(folder: Path) -> dict[str, float]:
    """The numbers of one run by which the runs of a sweep are compared."""
    status = read_status(folder)
    best = status.get("best")
    numbers = {
        "loss": status.get("loss"),
        "best validation loss": best.get("loss") if isinstance(best, dict) else None,
    }
    finite = {
        name: value
        for name, value in numbers.items()
        if isinstance(value, float) and math.isfinite(value)
    }
    return finite

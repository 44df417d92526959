"""`run.py JOB.yaml --seeds 1,2,3 --sweep train.lr=1e-4,2e-4`: the same job once per
seed and value, each in its own folder.

`variants` reads the options, `run_folders` lists the folders of a job that trains, and
`compared` prints the losses of the runs with their mean and spread. The runs themselves
are started by `jobs/multi_run.py`. `run.py` calls all of these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from toolkit.config.reading.changes import Change, read_changes
from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.process import JobConfig, JobContext, ProcessConfig
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import UserError
from toolkit.files.run_files import read_status

MOST_SEEDS = 100
MOST_RUNS = 1000
LARGEST = 2**32 - 1


class Variant(NamedTuple):
    """One run of several of a job.

    >>> one = Variant((Change("train.lr", "1e-4", "--sweep train.lr"),), 7)
    >>> str(one), one.suffix, one.flags()
    ('train.lr 1e-4, seed 7', '_lr1e-4_seed7', ('--seeds=7', '--sweep', 'train.lr=1e-4'))
    """

    swept: tuple[Change, ...] = ()
    seed: int | None = None

    @property
    def cells(self) -> dict[str, str]:
        """What tells it from the others."""
        cells = {change.key: change.text for change in self.swept}
        return cells | ({} if self.seed is None else {"seed": str(self.seed)})

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.cells.items())

    @property
    def suffix(self) -> str:
        """The end of the job's name."""
        words = (
            (re.split(r"[.\]]", key.rstrip("]"))[-1], value)
            for key, value in self.cells.items()
        )
        text = "".join(f"_{key}{value}" for key, value in words)
        return re.sub(r"[^\w.+-]+", "_", text)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes of the job."""
        if self.seed is None:
            return self.swept
        key = "process.*.training_seed"
        return (*self.swept, Change(key, str(self.seed), "--seeds"))

    def flags(self) -> tuple[str, ...]:
        """The flags that ask for this run alone."""
        seeds = () if self.seed is None else (f"--seeds={self.seed}",)
        words = [f"{change.key}={change.text}" for change in self.swept]
        return (*seeds, *(("--sweep", *words) if words else ()))


def variants(
    sweep: Sequence[str], seeds: str | None, fixed: Sequence[str] = ()
) -> tuple[Variant, ...]:
    """The runs of `--sweep` and `--seeds`, all seeds of a setting in a row. Raises
    UserError for words that are not KEY=VALUE,VALUE, and for a key of `fixed`, the
    words of `--set`."""
    choices: dict[str, list[Change]] = {}
    for key, text, place in read_changes(sweep, "--sweep"):
        inside = Diagnostics(place)
        listed = f"v: [{text if ':' in text else text.strip('{}')}]"
        values = read_yaml(listed, inside).value["v"].value
        inside.raise_errors()
        texts = [listed[slice(*value.span)].strip() for value in values]
        # a shell makes of `train.lr={1,2}` the key twice
        choices.setdefault(key, []).extend(Change(key, text, place) for text in texts)
    for key, _, place in read_changes(fixed, "--set"):
        if key in choices:
            raise UserError(f"{place}: --sweep gives it, too. Leave one of them out.")
    numbers = read_seeds(seeds) if seeds is not None else (None,)
    count = math.prod(map(len, choices.values())) * len(numbers)
    ways = product(product(*choices.values()), numbers) if count <= MOST_RUNS else ()
    runs = tuple(Variant(*way) for way in ways)
    if not runs or len({run.suffix for run in runs}) < count:
        raise UserError(
            f"--sweep {' '.join(sweep)}: give each key once, with different values, at most {MOST_RUNS} runs in all."
        )
    return runs


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


def comparison(runs: Mapping[Variant, Sequence[Path]]) -> dict[str, Any]:
    """The runs with their numbers, and each number of a setting over its seeds, as
    plain data. runs: the folders of each."""
    rows: list[dict[str, Any]] = []
    numbers: dict[tuple[tuple[Change, ...], str], list[float]] = {}
    for run, folders in runs.items():
        for folder in folders:
            of_run = _numbers(folder)
            row = {"values": run.cells, "folder": str(folder)}
            rows.append(row | {name: of_run.get(name) for name in NUMBERS})
            for name, value in of_run.items():
                numbers.setdefault((run.swept, name), []).append(value)
    spreads = [
        {
            "values": Variant(swept).cells,
            "number": name,
            "runs": len(values),
            "mean": fmean(values),
            "least": min(values),
            "most": max(values),
            "deviation": stdev(values),
        }
        for (swept, name), values in numbers.items()
        if len(values) > 1
    ]
    return {"runs": rows, "spreads": spreads}


def compared(runs: Mapping[Variant, Sequence[Path]]) -> Iterator[str]:
    """A table of the runs, then a line for each number of a setting with its spread
    over the seeds. runs: as for `comparison`."""
    found = comparison(runs)
    shown = [
        (
            *row["values"].values(),
            *("-" if row[name] is None else f"{row[name]:.4f}" for name in NUMBERS),
            row["folder"],
        )
        for row in found["runs"]
    ]
    head = (*next(iter(runs)).cells, *NUMBERS.values(), "folder")
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    for row in (head, *shown):
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    for one in found["spreads"]:
        setting = ", ".join(f"{key} {value}" for key, value in one["values"].items())
        what = f"{setting and f'{setting}: '}{NUMBERS[one['number']]} of {one['runs']} runs"
        spread = f"{one['least']:.4f} to {one['most']:.4f}, standard deviation {one['deviation']:.4f}"
        yield f"{what}: mean {one['mean']:.4f}, {spread}"


NUMBERS = {"loss": "loss", "best_validation_loss": "best validation loss"}
"""By which runs are compared -> its name for people."""


def _numbers(folder: Path) -> dict[str, float]:
    """The numbers of one run by which the runs of a sweep are compared."""
    status = read_status(folder)
    best = status.get("best")
    values = (status.get("loss"), best.get("loss") if isinstance(best, dict) else None)
    return {
        name: value
        for name, value in zip(NUMBERS, values, strict=True)
        if isinstance(value, float) and math.isfinite(value)
    }

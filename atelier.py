"""The package of an installed program: all its other modules lie beside this file.

A wheel has this file as `atelier/__init__.py`. The command `atelier` begins here, and so
does a script that trains or reads runs:

    import atelier

    done = atelier.train("config/my_char.yaml", "--set", "train.lr=2e-4")
    for run in atelier.runs("output"):
        print(run.folder, run.steps, run.best)

Its folder is put first in the path: another program's `toolkit/` or `run.py`, in the
working directory or on PYTHONPATH, is not ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from run import Trained


class Run(NamedTuple):
    """A run as its folder records it.

    Example::

        [run] = atelier.runs("output/my_char")
        print(run.status, run.losses[-1], len(run.samples))
    """

    folder: Path
    status: str
    """running, finished, stopped, failed, killed, or unknown."""

    steps: int
    """Optimizer steps done."""

    losses: list[tuple[int, float]]
    """The step, from 1, and its loss, for each step."""

    best: Path | None
    """The saved weights of the lowest validation loss; of a run without validation the
    last. None: nothing is saved."""

    samples: list[Path]
    """Images, by step and by their place in the job."""


def train(job: str | os.PathLike[str] | Mapping[str, Any], *flags: str) -> Trained:
    """Runs one job in this process, as `atelier JOB FLAGS` does, and may be called
    again. Raises nothing for a job that is refused, fails or is stopped.

    job: its file, or what would be in the file. flags: such as `"--set",
    "train.lr=2e-4"`. Returns `exit_code`, `folder` and `answer`: see docs/json.md.
    """
    _begin()
    from run import train as own

    return own(job, *flags)


def runs(folder: str | os.PathLike[str] = "output") -> list[Run]:
    """The run in a folder, or all runs below it, by their paths."""
    _begin()
    from toolkit.files.run_files import METRICS
    from toolkit.train.run_reader import (
        list_network_files,
        list_samples,
        rows_by_step,
        runs_in,
    )

    found = []
    for run in runs_in(Path(folder).expanduser()):
        with rows_by_step(run.folder / METRICS) as rows:
            losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        files = list_network_files(run.folder)
        of_best = [file for file in files if file.step == run.best_step]
        best = [file.path for file in of_best or files]
        samples = [sample.path for sample in list_samples(run.folder)]
        weights = best[-1] if best else None
        found.append(
            Run(run.folder, str(run.status), run.step or 0, losses, weights, samples)
        )
    return found


def console() -> None:
    """The command `atelier` of an installation."""
    _begin()
    from run import console as run

    run()


def _begin() -> None:
    """Puts the program's folder first in the path. Raises ImportError where another
    program's modules of the same names are imported already."""
    folder = Path(__file__).resolve().parent
    for name in ("run", "toolkit"):
        place = getattr(sys.modules.get(name), "__file__", None)
        if place and not Path(place).resolve().is_relative_to(folder):
            message = f"'{name}' is imported already, from {place}"
            raise ImportError(f"{message}. Use atelier in a process of its own.")
    if sys.path[0] != str(folder):
        sys.path.insert(0, str(folder))

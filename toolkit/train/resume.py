"""Which checkpoint a run resumes from: the newest good one, a given one, or none. Nothing is ever deleted for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from toolkit.errors import RunError
from toolkit.run_files import SAMPLE_FILE, SAMPLES, SUPERSEDED, best_stem, final_files, step_files, step_in
from toolkit.train.checkpoint_store import (
    checkpoint_dir,
    checkpoint_folders,
    is_state_name,
    latest_checkpoint,
    step_of,
    verify,
)
from toolkit.train.lock import FILE as LOCK_FILE

logger = logging.getLogger(__name__)


def select_checkpoint(folder: Path, resume: str | int, restart: bool) -> Path | None:
    """The checkpoint to resume from, or None to start from scratch.

    resume: `auto` (the newest good one), `never`, a step number, or the path of a checkpoint.
    restart: where no checkpoint is good, move the run aside and start from scratch instead of refusing.
    Raises RunError when the given checkpoint is missing or damaged, or when checkpoints exist and none is good.
    """
    root = checkpoint_dir(folder)
    if resume == "never":
        archive_run(folder)
        return None
    if resume != "auto":
        return _checked(root / f"step_{resume:09d}" if isinstance(resume, int) else Path(resume).expanduser(), root)
    newest = latest_checkpoint(root)
    if newest is None and checkpoint_folders(root):
        if not restart:
            raise RunError(
                f"{root}: no valid checkpoint found, all failed verification. To start over, run the job again "
                "with --restart: it moves the old run aside and overwrites nothing."
            )
        archive_run(folder)
    return newest


def _checked(path: Path, root: Path) -> Path:
    problem = "its name has to be step_ and nine digits" if not is_state_name(path.name) else None
    problem = problem or (verify(path) if path.is_dir() else "it does not exist")
    if problem:
        available = ", ".join(str(step_of(p)) for p in checkpoint_folders(root)) or "none"
        raise RunError(f"resume: {path} cannot be used: {problem}. Steps with a state here: {available}.")
    return path


def archive_run(folder: Path) -> None:
    """Moves the files of a run to `<folder>.old-<n>`; the folder itself stays, with its lock."""
    entries = [path for path in folder.iterdir() if path.name != LOCK_FILE] if folder.is_dir() else []
    if not entries:
        return
    target = _numbered(folder.parent, f"{folder.name}.old-")
    _move(entries, target)
    logger.info(f"moved the old run to {target}")


def archive_later_files(folder: Path, name: str, step: int | None) -> None:
    """Moves checkpoints, step files and samples of steps after `step` to superseded/<n>, so that no step appears twice.

    The final files and the best one count by the step they were written at. step: None for a run from scratch.
    """
    step = -1 if step is None else step
    moved = [path for path in final_files(folder, name) if step_in(path) > step]
    # A best file without a step stays: unlike the final one it is not rewritten by every run.
    moved += [path for path in final_files(folder, best_stem(name)) if step < step_in(path) < math.inf]
    moved += [path for path in checkpoint_folders(checkpoint_dir(folder)) if step_of(path) > step]
    moved += [path for number, paths in step_files(folder, name).items() if number > step for path in paths]
    samples = folder / SAMPLES
    for path in sorted(samples.iterdir()) if samples.is_dir() else ():
        if (match := SAMPLE_FILE.fullmatch(path.name)) and int(match["step"]) > step:
            moved.append(path)
    if moved:
        target = _numbered(folder / SUPERSEDED, "")
        _move(moved, target)
        what = f"of steps after {step}" if step >= 0 else "of an earlier run"
        logger.info(f"moved {len(moved)} file{'s' * (len(moved) != 1)} {what} to {target}")


def _numbered(parent: Path, prefix: str) -> Path:
    """The first of `<prefix>1`, `<prefix>2`, ... that does not exist."""
    number = 1
    while (parent / f"{prefix}{number}").exists():
        number += 1
    return parent / f"{prefix}{number}"


def _move(paths: Iterable[Path], target: Path) -> None:
    target.mkdir(parents=True)
    for path in paths:
        path.rename(target / path.name)

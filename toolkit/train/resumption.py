"""How a job resumes: which checkpoint it resumes from (the newest good one, a given one, or none), which settings may
have changed, and what happens to the run's files. Nothing is ever deleted for it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config.process import ProcessConfig
from toolkit.data.epoch_order import epoch_cursor
from toolkit.data.fingerprint import DatasetHashes, compare, digest_of
from toolkit.errors import RunError, UserError
from toolkit.files import write_json
from toolkit.redact import redact_json
from toolkit.run_files import (
    DATASET_PREFIX,
    SAMPLE_FILE,
    SAMPLES,
    SUPERSEDED,
    best_stem,
    final_files,
    step_files,
    step_in,
)
from toolkit.train.checkpoint_state import load_state
from toolkit.train.checkpoint_store import (
    checkpoint_dir,
    checkpoint_folders,
    is_state_name,
    latest_checkpoint,
    read_checkpoint_json,
    step_of,
    verify,
)
from toolkit.train.config_diff import REVISION, ConfigChange, diff_configs
from toolkit.train.lock import FILE as LOCK_FILE
from toolkit.train.run import Run

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


Corrections = Callable[[int], list[ConfigChange]]
"""From the revision of the program that wrote a checkpoint to what this one computes differently."""


@dataclass(frozen=True)
class ResumePlan:
    """How a run begins, after all checks: from the checkpoint `state`, or from scratch where that is None."""

    state: Path | None
    record: dict[str, Any]
    """Metadata of every checkpoint of this run: the job's settings, the hash of its dataset, the program's revision."""

    found: DatasetHashes
    new_optimizer: bool = False
    """The job changed the optimizer: the saved optimizer state is not loaded."""

    new_dataset: bool = False
    base: Mapping[str, str] | None = None
    """The checkpoint's record of `check_base`; None: it has none."""

    @classmethod
    def of(
        cls,
        state: Path | None,
        section: ProcessConfig,
        found: DatasetHashes,
        allow_change: bool,
        corrections: Corrections = lambda revision: [],
    ) -> ResumePlan:
        """Compares the job with the one that wrote the checkpoint.

        found: hashes of the dataset. corrections: what the program computes differently for this job since a revision.
        Raises UserError when they differ in what cannot change, or without `allow_change` in what changes the result.
        """
        # The recorded settings are redacted, so the settings compared with them are too.
        settings = redact_json(section.recorded_settings(), by_key=True)
        record = {"settings": settings, "dataset": digest_of(found), "revision": REVISION}
        if state is None:
            return cls(None, record, found)
        document = read_checkpoint_json(state)
        given = section.model_dump(mode="json", exclude_unset=True)
        differing = diff_configs(type(section), redact_json(document["settings"], by_key=True), settings, given)
        differing += corrections(document.get("revision", 1))
        base = document.get("base")
        _refuse_changes(state, differing, allow_change, knows_base=base is not None)
        return cls(
            state,
            record,
            found,
            new_optimizer=any(change.key == "train.optimizer" for change in differing),
            new_dataset=document["dataset"] != record["dataset"],
            base=base,
        )

    def check_base(self, hashes: Mapping[str, str]) -> None:
        """Records what the run trains on: the hash of each part of the base model and of the files that change it.

        Raises UserError when the checkpoint was trained on something else.
        """
        self.record["base"] = dict(hashes)
        if self.base is None:
            return
        differing = sorted(part for part in self.base.keys() | hashes.keys() if self.base.get(part) != hashes.get(part))
        if differing:
            verb = "differs" if len(differing) == 1 else "differ"
            raise UserError(
                f"{self.state} was trained on another base model: {', '.join(differing)} {verb}. "
                "Restore the model, or give the job another name."
            )

    def apply(self, run: Run) -> None:
        """Loads the checkpoint into the run, moves files of later steps aside, and saves the dataset's hashes.

        Only rank 0 touches files.
        """
        if self.state is not None:
            load_state(self.state, run, fresh_optimizer=self.new_optimizer)
        if run.process_group.is_main_process:
            archive_later_files(run.folder, run.name, run.state.step if self.state else None)
        if self.state is not None:
            logger.info(f"resuming from {self.state}")
            if self.new_dataset:
                self._begin_next_epoch(self.state, run)
        if run.process_group.is_main_process:
            self._save_fingerprint(run.folder)

    def _save_fingerprint(self, folder: Path) -> None:
        write_json(_fingerprint_file(folder, self.record["dataset"]), self.found)

    def _begin_next_epoch(self, checkpoint: Path, run: Run) -> None:
        """A changed dataset has another epoch order: it begins with a complete epoch."""
        old = _fingerprint_file(run.folder, read_checkpoint_json(checkpoint)["dataset"])
        logger.info(f"the dataset has changed: {_change(old, self.found)}. The next epoch begins with it.")
        state = run.state
        if state.cursor and state.cursor["batch"]:
            state.epoch += 1
            state.cursor = epoch_cursor(state.epoch, 0)
            state.epochs_done = state.epochs_before = state.epoch


def _refuse_changes(state: Path, differing: list[ConfigChange], allow_change: bool, knows_base: bool) -> None:
    refused = {"impossible"} if knows_base else {"impossible", "place"}
    impossible = [change for change in differing if change.kind in refused]
    if impossible:
        raise UserError(
            f"{state} was written with different settings, and these cannot change:\n{_listed(impossible)}\n"
            "Restore them, or give the job another name."
        )
    serious = [change for change in differing if change.kind == "changes the result"]
    if serious and not allow_change:
        raise UserError(
            f"{state} was made by a job, or an earlier version of this program, that differs in what changes the "
            f"result:\n{_listed(serious)}\n"
            "Restore the settings, add --allow-change to resume with the new values, or give the job another name."
        )
    for change in differing:
        logger.info(f"changed since the last run: {change}")


def _listed(differing: list[ConfigChange]) -> str:
    return "\n".join(f"  {change}" for change in differing)


def _change(old: Path, found: DatasetHashes) -> str:
    try:
        return str(compare(json.loads(old.read_text(encoding="utf-8")), redact_json(found)))
    except (OSError, ValueError, AttributeError, TypeError):
        return f"{old} is missing or damaged, so it is not known in what"


def _fingerprint_file(folder: Path, digest: str) -> Path:
    return folder / f"{DATASET_PREFIX}{digest[:12]}.json"

"""How a job resumes from a checkpoint: which settings may have changed, and what happens to the run's files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config.process import ProcessConfig
from toolkit.data.epoch_order import epoch_cursor
from toolkit.data.fingerprint import DatasetHashes, compare, digest_of
from toolkit.errors import UserError
from toolkit.files import write_json
from toolkit.redact import redact_json
from toolkit.run_files import DATASET_PREFIX
from toolkit.train.checkpoint_state import load_state
from toolkit.train.checkpoint_store import read_checkpoint_json
from toolkit.train.config_diff import REVISION, ConfigChange, diff_configs
from toolkit.train.resume import archive_later_files
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

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
        _refuse_changes(state, differing, allow_change)
        return cls(
            state,
            record,
            found,
            new_optimizer=any(change.key == "train.optimizer" for change in differing),
            new_dataset=document["dataset"] != record["dataset"],
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


def _refuse_changes(state: Path, differing: list[ConfigChange], allow_change: bool) -> None:
    impossible = [change for change in differing if change.kind == "impossible"]
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
            "Restore the settings, add --allow-change to go on with the new values, or give the job another name."
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

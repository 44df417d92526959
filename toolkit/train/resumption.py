"""How a job resumes from a state: what it may have changed since, and what becomes of the run's files."""

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
"""From the revision of the program that wrote a state to what this one computes otherwise."""


@dataclass(frozen=True)
class ResumePlan:
    """A checked way to begin: from `state`, or anew when that is None."""

    state: Path | None
    record: dict[str, Any]
    """What every state of this run keeps: the job's settings, the digest of its dataset, the program's revision."""

    found: DatasetHashes
    new_optimizer: bool = False
    """The job changed the optimizer: the saved optimizer state means nothing to it."""

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
        """Compares the job with the one the state was made with.

        found: the dataset. corrections: what the program computes otherwise for this job since a revision.
        Raises UserError when it differs in what cannot change, or in what changes the result without `allow_change`.
        """
        # What is recorded has no secrets in it, so neither has what is compared with it.
        settings = redact_json(section.recorded_settings(), by_key=True)
        record = {"settings": settings, "dataset": digest_of(found), "revision": REVISION}
        if state is None:
            return cls(None, record, found)
        document = read_checkpoint_json(state)
        given = section.model_dump(mode="json", exclude_unset=True)
        differing = diff_configs(type(section), redact_json(document["settings"], by_key=True), settings, given)
        differing += corrections(document.get("revision", 1))
        _judge(state, differing, allow_change)
        return cls(
            state,
            record,
            found,
            new_optimizer=any(change.key == "train.optimizer" for change in differing),
            new_dataset=document["dataset"] != record["dataset"],
        )

    def apply(self, run: Run) -> None:
        """Puts the state into the run, moves what is later out of its way, and keeps the dataset's fingerprint.

        Of several processes the first alone touches files.
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
            self._keep_fingerprint(run.folder)

    def _keep_fingerprint(self, folder: Path) -> None:
        write_json(_fingerprint_file(folder, self.record["dataset"]), self.found)

    def _begin_next_epoch(self, begun_from: Path, run: Run) -> None:
        """The order of a changed dataset is another one: its first epoch is trained whole."""
        old = _fingerprint_file(run.folder, read_checkpoint_json(begun_from)["dataset"])
        logger.info(f"the dataset has changed: {_change(old, self.found)}. The next epoch begins with it.")
        state = run.state
        if state.cursor and state.cursor["batch"]:
            state.epoch += 1
            state.cursor = epoch_cursor(state.epoch, 0)
            state.epochs_done = state.epochs_before = state.epoch


def _judge(state: Path, differing: list[ConfigChange], allow_change: bool) -> None:
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

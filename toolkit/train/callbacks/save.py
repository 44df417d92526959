"""Saves the network file and the checkpoint at their interval, at the end, and when a
stop is requested.

The contents are copied while training waits. A background thread then writes them, one
task at a time, so that training continues. The trainer's `PrepareNetwork` decides the
contents of a network file, `checkpoint_store` the format of a checkpoint. Added by
`standard`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from toolkit.errors import RunError
from toolkit.files import now
from toolkit.files.writing import os_error_as_run_error, short
from toolkit.networks.save import remove_old_step_files
from toolkit.train.checkpoint_state import snapshot_state
from toolkit.train.checkpoint_store import (
    begin_checkpoint,
    checkpoint_dir,
    free_disk_space,
    remove_old_states,
    write_checkpoint,
)
from toolkit.train.run import Callback, Interval, Run

logger = logging.getLogger(__name__)

PrepareNetwork = Callable[[Run, int | Literal["best"] | None], Callable[[], list[Path]]]
"""Copies the contents of the network files of a step (None: the final files; "best":
the files of the best step). The result writes them and returns their paths."""


class SaveCallback(Callback):
    """Copies the weights and the state, and writes them while training continues: the
    network file first, then the checkpoint.

    In this order a checkpoint never refers to a missing file.

    Example::

        saving = SaveCallback(writer.snapshot, Interval(steps=250), keep=4, keep_states=2)
        run.callbacks = [MetricsCallback(), saving]
    """

    included_in_step_time = False

    def __init__(
        self,
        prepare_network: PrepareNetwork,
        every: Interval,
        keep: int,
        keep_states: int,
        states: str = "always",
    ) -> None:
        """every: with 0 only the final file is written. keep, keep_states: number of
        files and checkpoints; 0: all. states: as `save.states`.
        """
        self.prepare_network = prepare_network
        self.every = every
        self.keep = keep
        self.keep_states = keep_states
        self.states = states
        self._writer = ThreadPoolExecutor(1, "save")
        self._writing: Future[str] | None = None
        self._checkpoint_step = -1
        self._network_step = -1

    def on_start(self, run: Run) -> None:
        self._checkpoint_step = run.state.step

    def after_step(self, run: Run) -> None:
        self._collect(wait=False)
        if self.every.due(run):
            self.save_now(run)

    def coming(self, run: Run) -> Mapping[str, float]:
        return {"saving": self.every.coming(run)}

    def save_now(self, run: Run) -> None:
        """Saves the current step, whatever the interval."""
        self._start_save(run, step=run.state.step)

    def on_end(self, run: Run, finished: bool) -> None:
        self._collect(wait=True)
        begun = True
        if finished:
            begun = self._start_save(run, step=None)
        elif self.states == "never":
            begun = self._network_step == run.state.step or self._start_save(
                run, step=run.state.step
            )
        elif self._checkpoint_step != run.state.step:
            begun = self._start_save(run, step=run.state.step, checkpoint_only=True)
        self._collect(wait=True)
        if not begun:
            raise RunError(
                f"{run.folder}: the end of the run could not be saved. Free some space and start it again."
            )

    def on_error(self, run: Run, error: BaseException) -> None:
        try:
            self._collect(wait=True)
        except Exception as failed:  # noqa: BLE001 - `error` ends the run; this one is logged
            logger.warning(f"the save in progress failed too: {failed}")

    def _collect(self, wait: bool) -> None:
        """Logs the line of a finished save, and raises what it raised. wait: for the
        save in progress."""
        if self._writing and (wait or self._writing.done()):
            writing = self._writing
            self._writing = None
            with nullcontext() if writing.done() else now.during("saving"):
                report_line = writing.result()
            logger.info(report_line)

    def _start_save(
        self, run: Run, step: int | None, checkpoint_only: bool = False
    ) -> bool:
        """Starts writing the network file, and the checkpoint where one is wanted and
        does not exist. Returns whether there is room.
        """
        run.flush_metrics()
        with now.during("saving"):
            return self._start_writing(run, step, checkpoint_only)

    def _start_writing(self, run: Run, step: int | None, checkpoint_only: bool) -> bool:
        folder = run.folder
        name = run.name
        done = run.state.step
        epoch = run.state.epochs_done
        wanted = (
            checkpoint_only
            or self.states == "always"
            or (self.states == "at_end" and step is None)
        )
        # The checkpoint of this step may be on disk already: the end of a run often
        # follows a save.
        snapshot = (
            snapshot_state(run) if wanted and self._checkpoint_step != done else None
        )
        # The weights of the roles are an upper bound of a network file's size.
        size = 0 if checkpoint_only else sum(role.size for role in run.roles.values())
        with os_error_as_run_error(checkpoint_dir(folder)):
            has_room = free_disk_space(
                checkpoint_dir(folder), size + (snapshot.size if snapshot else 0)
            )
        if not has_room:
            return False
        write_network = None if checkpoint_only else self.prepare_network(run, step)
        self._collect(wait=True)
        with os_error_as_run_error(checkpoint_dir(folder)):
            part = (
                begin_checkpoint(checkpoint_dir(folder), snapshot)
                if snapshot and snapshot.rows_size
                else None
            )

        def work() -> str:
            files = write_network() if write_network else []
            with os_error_as_run_error(checkpoint_dir(folder)):
                if snapshot:
                    write_checkpoint(
                        checkpoint_dir(folder), snapshot, self.keep_states, part
                    )
                else:  # the process may have been killed between writing this checkpoint and removing old ones
                    remove_old_states(checkpoint_dir(folder), self.keep_states)
            if not write_network:
                return f"saved the checkpoint of step {done}: run the same command to resume"
            removed = remove_old_step_files(folder, name, self.keep)
            names = {
                "files": [p.name for p in files],
                "removed": [p.name for p in removed],
            }
            run.event("save", step=done, epoch=epoch, **names)
            return f"saved {', '.join(p.name if step is not None else short(p) for p in files)}"

        self._writing = self._writer.submit(work)
        if write_network:
            self._network_step = done
        if snapshot:
            self._checkpoint_step = done
        return True

"""Saves the network file and the checkpoint at their interval, at the end, and when a stop is requested; a background
thread writes them, one task at a time, so that the training does not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from toolkit.errors import RunError
from toolkit.files.writing import os_error_as_run_error
from toolkit.networks.save import remove_old_step_files
from toolkit.train.checkpoint_state import snapshot_state
from toolkit.train.checkpoint_store import checkpoint_dir, free_disk_space, remove_old_states, write_checkpoint
from toolkit.train.run import Callback, Interval, Run


class AsyncWriter:
    """Runs one task at a time; its message or exception is returned or raised by the next `collect` or `submit`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._messages: list[str] = []
        self._error: Exception | None = None

    def submit(self, work: Callable[[], str]) -> list[str]:
        """Starts `work`, which returns a line for the user, once the previous task has ended.

        Returns the messages of finished tasks; raises what they raised.
        """
        messages = self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="save")
        self._thread.start()
        return messages

    def wait(self) -> list[str]:
        """Waits until nothing is being written; then as `collect`."""
        if self._thread:
            self._thread.join()
        return self.collect()

    def collect(self) -> list[str]:
        """The messages of finished tasks, without waiting. Raises what a task raised."""
        if self._thread and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error
        messages, self._messages = self._messages, []
        return messages

    def _run(self, work: Callable[[], str]) -> None:
        try:
            line = work()
            self._messages.append(line)
        except Exception as error:  # noqa: BLE001 - `collect` raises it in the training thread
            self._error = error


logger = logging.getLogger(__name__)

PrepareNetwork = Callable[[Run, int | Literal["best"] | None], Callable[[], list[Path]]]
"""Copies the contents of the network files of a step (None: the final files; "best": those of the best step). The
result writes them and returns their paths."""


class SaveCallback(Callback):
    """Copies what is saved, and writes it while training goes on: the network file first, then the checkpoint.

    In this order a checkpoint never refers to a missing file.
    """

    included_in_step_time = False

    def __init__(
        self,
        prepare_network: PrepareNetwork,
        every: Interval,
        keep: int,
        keep_states: int,
        event: Callable[..., None],
        states: str = "always",
    ) -> None:
        """every: with 0 only the final file is written. keep, keep_states: number of files and checkpoints; 0: all.
        states: as `save.states`.
        """
        self.prepare_network = prepare_network
        self.every = every
        self.keep = keep
        self.keep_states = keep_states
        self.event = event
        self.states = states
        self._background = AsyncWriter()
        self._checkpoint_step = -1
        self._network_step = -1

    def on_start(self, run: Run) -> None:
        self._checkpoint_step = run.state.step

    def after_step(self, run: Run) -> None:
        self._log(self._background.collect())
        if self.every.due(run):
            self.save_now(run)

    def save_now(self, run: Run) -> None:
        """Saves the current step, whatever the interval."""
        self._start_save(run, step=run.state.step)

    def on_end(self, run: Run, finished: bool) -> None:
        self._log(self._background.wait())
        begun = True
        if finished:
            begun = self._start_save(run, step=None)
        elif self.states == "never":
            begun = self._network_step == run.state.step or self._start_save(run, step=run.state.step)
        elif self._checkpoint_step != run.state.step:
            begun = self._start_checkpoint_only(run)
        self._log(self._background.wait())
        if not begun:
            raise RunError(f"{run.folder}: the end of the run could not be saved. Free some space and start it again.")

    def on_error(self, run: Run, error: BaseException) -> None:
        try:
            self._log(self._background.wait())
        except Exception as failed:  # noqa: BLE001 - `error` ends the run; this one is logged
            logger.warning(f"the save in progress failed too: {failed}")

    def _start_save(self, run: Run, step: int | None) -> bool:
        """Starts writing the network file, and the checkpoint where one is wanted and does not exist. Returns whether
        there is room.
        """
        run.flush_metrics()
        wanted = self.states == "always" or (self.states == "at_end" and step is None)
        # The checkpoint of this step may be on disk already: the end of a run often follows a save.
        snapshot = snapshot_state(run) if wanted and self._checkpoint_step != run.state.step else None
        if not self._has_room(run, (snapshot.size if snapshot else 0) + _network_size(run)):
            return False
        write_network = self.prepare_network(run, step)
        folder, name, done, epoch = run.folder, run.name, run.state.step, run.state.epochs_done

        def work() -> str:
            files = write_network()
            with os_error_as_run_error(checkpoint_dir(folder)):
                if snapshot:
                    write_checkpoint(checkpoint_dir(folder), snapshot, self.keep_states)
                else:  # the process may have been killed between writing this checkpoint and removing old ones
                    remove_old_states(checkpoint_dir(folder), self.keep_states)
            removed = remove_old_step_files(folder, name, self.keep)
            names = {"files": [p.name for p in files], "removed": [p.name for p in removed]}
            self.event("save", step=done, epoch=epoch, **names)
            return f"saved {', '.join(p.name if step is not None else str(p) for p in files)}"

        self._log(self._background.submit(work))
        self._network_step = done
        if snapshot:
            self._checkpoint_step = done
        return True

    def _start_checkpoint_only(self, run: Run) -> bool:
        run.flush_metrics()
        snapshot = snapshot_state(run)
        if not self._has_room(run, snapshot.size):
            return False

        def work() -> str:
            with os_error_as_run_error(checkpoint_dir(run.folder)):
                write_checkpoint(checkpoint_dir(run.folder), snapshot, self.keep_states)
            return f"saved the checkpoint of step {snapshot.step}: run the same command to resume"

        self._log(self._background.submit(work))
        self._checkpoint_step = snapshot.step
        return True

    def _has_room(self, run: Run, size: int) -> bool:
        return free_disk_space(checkpoint_dir(run.folder), size)

    def _log(self, lines: list[str]) -> None:
        for line in lines:
            logger.info(line)


def _network_size(run: Run) -> int:
    """Upper bound of the size of a network file in bytes: the trained parameters."""
    return sum(role.size for role in run.roles.values())

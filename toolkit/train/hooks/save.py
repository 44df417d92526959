"""Saves the network file and the state folder at their interval, at the end, and when a stop is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolkit.errors import RunError
from toolkit.files import naming_failures
from toolkit.networks.files import remove_old_step_files
from toolkit.train.background import BackgroundWriter
from toolkit.train.checkpoint import capture
from toolkit.train.hook import Hook
from toolkit.train.hooks.intervals import due
from toolkit.train.run import Run
from toolkit.train.state_folder import Snapshot, make_room, remove_old_states, state_root, write_state

PrepareNetwork = Callable[[Run, int | None], Callable[[], list[Path]]]
"""Copies what the network's files for a step (None: the final ones) hold; the result writes and names them."""


class SaveHook(Hook):
    """Copies what is saved, and writes it while training goes on: the network file first, then the state.

    In this order a state never promises a file that is not there.
    """

    counts_as_step_time = False

    def __init__(
        self,
        prepare_network: PrepareNetwork,
        every: int,
        keep: int,
        keep_states: int,
        note: Callable[[str], None],
        event: Callable[..., None],
    ) -> None:
        """every: optimizer steps, 0 = only the final file. keep, keep_states: how many stay, 0 = all."""
        self.prepare_network = prepare_network
        self.every = every
        self.keep = keep
        self.keep_states = keep_states
        self.note = note
        self.event = event
        self._background = BackgroundWriter()
        self._state_at = -1

    def on_start(self, run: Run) -> None:
        self._state_at = run.state.step

    def after_step(self, run: Run) -> None:
        self._tell(self._background.collect())
        if due(run.state.step, self.every):
            self.save_now(run)

    def save_now(self, run: Run) -> None:
        """Saves the current step, whatever the interval."""
        self._begin(run, step=run.state.step)

    def on_end(self, run: Run, finished: bool) -> None:
        self._tell(self._background.wait())
        if finished:
            self._begin(run, step=None)
        elif self._state_at != run.state.step:
            self._begin_state_only(run)
        self._tell(self._background.wait())
        if self._state_at != run.state.step:
            raise RunError(f"{run.folder}: the end of the run could not be saved. Free some space and start it again.")

    def on_error(self, run: Run, error: BaseException) -> None:
        try:
            self._tell(self._background.wait())
        except Exception as failed:  # noqa: BLE001 - `error` ends the run; this one is told beside it
            self.note(f"the save in progress failed too: {failed}")

    def _begin(self, run: Run, step: int | None) -> None:
        run.settle()
        snapshot = capture(run)
        if not self._has_room(run, snapshot):
            return
        write_network = self.prepare_network(run, step)
        folder, name, done, state = run.folder, run.name, run.state.step, self._state_if_new(snapshot)

        def work() -> str:
            files = write_network()
            with naming_failures(state_root(folder)):
                if state:
                    write_state(state_root(folder), state, self.keep_states)
                else:  # a kill may have come between the writing of this state and the removal of old ones
                    remove_old_states(state_root(folder), self.keep_states)
            removed = remove_old_step_files(folder, name, self.keep)
            self.event("save", step=done, files=[p.name for p in files], removed=[p.name for p in removed])
            return f"saved {', '.join(p.name if step is not None else str(p) for p in files)}"

        self._tell(self._background.submit(work))
        self._state_at = done

    def _begin_state_only(self, run: Run) -> None:
        run.settle()
        snapshot = capture(run)
        if not self._has_room(run, snapshot):
            return

        def work() -> str:
            with naming_failures(state_root(run.folder)):
                write_state(state_root(run.folder), snapshot, self.keep_states)
            return f"saved the state of step {snapshot.step}: the same command goes on from here"

        self._tell(self._background.submit(work))
        self._state_at = snapshot.step

    def _has_room(self, run: Run, snapshot: Snapshot) -> bool:
        return make_room(state_root(run.folder), snapshot.size, self.note)

    def _state_if_new(self, snapshot: Snapshot) -> Snapshot | None:
        """Nothing to write when the state of this step is on disk already."""
        return snapshot if snapshot.step != self._state_at else None

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.note(line)

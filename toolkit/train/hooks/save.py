"""Saves the network file and the state folder at their interval, at the end, and when a stop is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolkit.contracts import StepResult
from toolkit.networks.files import remove_old_step_files
from toolkit.train.checkpoint import save_state
from toolkit.train.hook import Hook
from toolkit.train.hooks.intervals import due
from toolkit.train.run import Run

WriteNetwork = Callable[[Run, int | None], list[Path]]
"""Writes the network's files for a step, or the final ones for None; returns them."""

Note = Callable[[str], None]


class SaveHook(Hook):
    """One save is the network file first, then the state: a state never promises a file that is not there."""

    counts_as_step_time = False

    def __init__(
        self, write_network: WriteNetwork, every: int, keep: int, note: Note, event: Callable[..., None]
    ) -> None:
        """every: optimizer steps, 0 = only the final file. keep: step files that stay, 0 = all."""
        self.write_network = write_network
        self.every = every
        self.keep = keep
        self.note = note
        self.event = event
        self._state_at = -1

    def on_start(self, run: Run) -> None:
        self._state_at = run.state.step

    def after_step(self, run: Run, result: StepResult) -> None:
        if due(result.step, self.every):
            self.save_now(run)

    def save_now(self, run: Run) -> None:
        """Saves the current step, whatever the interval."""
        files = self.write_network(run, run.state.step)
        self._save_state(run)
        removed = remove_old_step_files(run.folder, run.name, self.keep)
        self.event("save", step=run.state.step, files=[p.name for p in files], removed=[p.name for p in removed])
        self.note(f"saved {', '.join(p.name for p in files)}")

    def on_end(self, run: Run, finished: bool) -> None:
        if finished:
            files = self.write_network(run, None)
            self._save_state(run)
            self.event("save", step=run.state.step, files=[p.name for p in files], removed=[])
            self.note(f"saved {', '.join(str(p) for p in files)}")
        elif self._state_at != run.state.step:
            self._save_state(run)
            self.note(f"saved the state of step {run.state.step}: the same command goes on from here")

    def _save_state(self, run: Run) -> None:
        if self._state_at != run.state.step:
            save_state(run)
            self._state_at = run.state.step

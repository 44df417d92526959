"""The control folder: the run acts on a file that appears there after the next step, and removes it.

`save_now` saves, `sample_now` generates a set of samples, `stop` ends the run after a save.
"""

from __future__ import annotations

from collections.abc import Callable

from toolkit.train.run import Callback, Run


class ControlFilesCallback(Callback):
    """Runs the action of each file in the control folder, by its name."""

    included_in_step_time = False

    def __init__(self, actions: dict[str, Callable[[Run], None]]) -> None:
        self.actions = actions

    def on_start(self, run: Run) -> None:
        (run.folder / "control").mkdir(parents=True, exist_ok=True)

    def after_step(self, run: Run) -> None:
        for name, action in self.actions.items():
            request = run.folder / "control" / name
            if request.exists():
                request.unlink()
                action(run)


def ask_to_stop(run: Run) -> None:
    """What `stop` does: the loop ends at the next boundary, and the run is saved."""
    run.stop_reason = "control/stop"

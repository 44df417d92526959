"""What may watch a run. The loop acts, hooks observe: a hook writes files and may ask for a stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.contracts import StepResult
    from toolkit.train.run import Run


class Hook:
    """Base of all hooks; each overrides the moments it needs. It never changes weights, batches or random state."""

    counts_as_step_time = True
    """Whether its time belongs to `step_s`: logging does, saving and sampling do not."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.state.step` is 0 or where the run goes on."""

    def after_step(self, run: Run) -> None:
        """After every optimizer step; `run.state.step` is its number. The moment to save or to draw."""

    def on_result(self, run: Run, result: StepResult) -> None:
        """The numbers of one step, in order: each step once, before its `after_step` or some steps later.

        Before anything is saved at a step, the results up to it have been given (`run.settle`).
        """

    def on_end(self, run: Run, finished: bool) -> None:
        """After the last step; `finished` is False when a stop was asked for before all steps were done."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """The run ends by `error`; files are closed and readers told."""

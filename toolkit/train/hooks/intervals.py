"""When something is due: every so many optimizer steps, or at the end of every so many epochs. Reads the cursor only,
so that a resume changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.train.run import Run


def due(step: int, every: int) -> bool:
    """Whether optimizer step `step` is a multiple of `every`; `every` 0 is never."""
    return bool(every) and step % every == 0


def epochs_done(run: Run, steps_ago: int = 0) -> int:
    """Epochs of which every micro-batch is trained, now or so many optimizer steps ago.

    An epoch that a changed dataset cut short counts as done from the resume on.
    """
    if not run.batches_per_epoch:
        return run.state.epoch
    trained = run.state.epoch * run.batches_per_epoch + run.state.batch - steps_ago * run.accumulation
    return max(0, trained) // run.batches_per_epoch


@dataclass(frozen=True)
class Interval:
    """Steps or epochs between two moments; 0 is never. Where both are given, both count."""

    steps: int = 0
    epochs: int = 0
    start: int = 0
    """Not before this optimizer step."""

    def due(self, run: Run) -> bool:
        """Whether the step just done is one of them: a multiple of `steps`, or the first after an epoch's end.

        An accumulation window may run across several ends; its step is due once.
        """
        step = run.state.step
        if step < self.start:
            return False
        ended = self.epochs and epochs_done(run) // self.epochs > epochs_done(run, steps_ago=1) // self.epochs
        return bool(ended) or due(step, self.steps)

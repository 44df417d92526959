"""When something is due: every n optimizer steps, or at the end of every n epochs. Depends on the training state only,
so that a resume changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.train.run import Run


def due(step: int, every: int) -> bool:
    """Whether optimizer step `step` is a multiple of `every`; never with `every` 0."""
    return bool(every) and step % every == 0


@dataclass(frozen=True)
class Interval:
    """An interval in steps or epochs; 0 is never. Where both are given, both count."""

    steps: int = 0
    epochs: int = 0
    start: int = 0
    """Not before this optimizer step."""

    def due(self, run: Run) -> bool:
        """Whether it is due after the step just done: a multiple of `steps`, or the first step after an epoch's end.

        An accumulation step may contain the ends of several epochs; it is due once.
        """
        state = run.state
        if state.step < self.start:
            return False
        ended = self.epochs and state.epochs_done // self.epochs > state.epochs_before // self.epochs
        return bool(ended) or due(state.step, self.steps)

"""Means of the loss for the trackers: over steps, over an epoch, and by timestep."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean

AVERAGE_OVER = 50
"""Optimizer steps that `loss/average` averages over."""

BANDS = 10
"""Number of equal bands of the timestep t in [0, 1]."""


class RunningLoss:
    """Mean loss of the latest steps and of the current epoch; losses that are not
    finite do not count.

    >>> losses = RunningLoss()
    >>> losses.add(epoch=0, loss=0.25)
    >>> losses.add(epoch=0, loss=0.75)
    >>> losses.recent()
    0.5
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=AVERAGE_OVER)
        self._epoch = 0
        self._of_epoch: list[float] = []

    def add(self, epoch: int, loss: float | None) -> float | None:
        """Adds a step. Returns the mean of the previous epoch when the step is the
        first of its epoch."""
        done = None
        if epoch != self._epoch:
            done = self.of_epoch()
            self._epoch = epoch
            self._of_epoch = []
        if loss is not None and math.isfinite(loss):
            self._recent.append(loss)
            self._of_epoch.append(loss)
        return done

    def recent(self) -> float | None:
        """Mean of the latest AVERAGE_OVER steps."""
        return fmean(self._recent) if self._recent else None

    def of_epoch(self) -> float | None:
        """Mean of the current epoch so far."""
        return fmean(self._of_epoch) if self._of_epoch else None


class LossByTimestep:
    """Mean loss of the samples in each band of the timestep t; the last band includes t
    = 1.

    >>> bands = LossByTimestep()
    >>> bands.add(t=[0.35, 0.95], loss=[0.25, 0.5])
    >>> bands.pop_means()
    {'0.3-0.4': 0.25, '0.9-1.0': 0.5}
    """

    def __init__(self) -> None:
        self._losses: list[list[float]] = [[] for _ in range(BANDS)]

    def add(self, t: Iterable[float], loss: Iterable[float]) -> None:
        """Adds samples; those whose loss or t is not finite do not count. A t outside
        of [0, 1] counts in the nearest band. Raises ValueError when the lengths differ.
        """
        for timestep, value in zip(t, loss, strict=True):
            if math.isfinite(timestep) and math.isfinite(value):
                self._losses[min(max(int(timestep * BANDS), 0), BANDS - 1)].append(
                    value
                )

    def pop_means(self) -> dict[str, float]:
        """The means since the last call by band, such as `0.3-0.4`; a band without
        samples is left out."""
        means = {
            f"{band / BANDS:.1f}-{(band + 1) / BANDS:.1f}": fmean(losses)
            for band, losses in enumerate(self._losses)
            if losses
        }
        self._losses = [[] for _ in range(BANDS)]
        return means

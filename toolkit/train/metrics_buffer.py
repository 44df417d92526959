"""Metrics of steps, and the wall time between steps by what it was spent on. Metrics
stay on the device until they are needed, because a copy to the host waits for all work
so far.

A copy begins after `Run.metrics_sync_interval` steps or METRICS_SYNC_SECONDS seconds,
and reaches the callbacks one step later, when the device has the next step to work on.
Before anything is saved (`Run.flush_metrics`) and at the end, all of them are waited
for. A CPU has them at once.

Used by the loop and, across ranks, by `collectives`.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from toolkit.contracts.data import Batch
from toolkit.contracts.training import SampleSource, StepLosses, StepResult
from toolkit.errors import RunError
from toolkit.system.device import begin_copy_to_host
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

TimerKey = Literal["step", "data", "outside"]


class StepTimer:
    """Seconds by key. Time counts as `step` unless it is inside a `track` block of
    another key.

    >>> timer = StepTimer()
    >>> with timer.track("data"):
    ...     pass  # waits for a batch
    >>> step_s, data_s = timer.lap()
    >>> data_s <= step_s
    True
    """

    def __init__(self) -> None:
        self._key: TimerKey = "step"
        self._since = time.monotonic()
        self._seconds: dict[TimerKey, float] = {
            "step": 0.0,
            "data": 0.0,
            "outside": 0.0,
        }

    @contextmanager
    def track(self, key: TimerKey) -> Iterator[None]:
        """Counts the time inside the block as `key`: waiting for data, or work that
        belongs to no step. Nests."""
        self._add_elapsed()
        outer = self._key
        self._key = key
        try:
            yield
        finally:
            self._add_elapsed()
            self._key = outer

    def exclude(self, seconds: float) -> None:
        """Takes `seconds` off the time of the present step: they belong to no step."""
        self._seconds["step"] -= seconds

    def lap(self) -> tuple[float, float]:
        """(step_s, data_s) since the last lap: seconds of steps with data loading, and
        of data loading alone."""
        self._add_elapsed()
        step_s = self._seconds["step"] + self._seconds["data"]
        data_s = self._seconds["data"]
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return step_s, data_s

    def _add_elapsed(self) -> None:
        now = time.monotonic()
        self._seconds[self._key] += now - self._since
        self._since = now


MAX_CONSECUTIVE_SKIPS = 3
FETCH_EVERY = 10
"""Optimizer steps between two flushes, where metrics are on another device than the
CPU."""

METRICS_SYNC_SECONDS = 1.0
BLOCKED_FETCH_S = 120.0


LEVEL = "/"
"""Between the name of a metric and the number of a further noise level of each
sample."""


ROW = "row"
"""Name under which the place of each value's sample passes through `_with_levels`."""


def _with_levels(
    by_sample: Mapping[str, tuple[float, ...]],
) -> dict[str, tuple[float, ...]]:
    """The values of all noise levels of all samples under one name. Values of levels
    that a sample lacks have no t, and are left out."""
    joined: dict[str, tuple[float, ...]] = {}
    for name, values in by_sample.items():
        first = name.split(LEVEL)[0]
        joined[first] = joined.get(first, ()) + values
    there = [not math.isnan(t) for t in joined["t"]]
    if all(there):
        return joined
    return {
        name: tuple(itertools.compress(values, there))
        for name, values in joined.items()
    }


class StepLossBuffer:
    """Losses and metrics of the micro-batches of one accumulation step; tensors stay on
    their device.

    >>> losses = StepLossBuffer()
    >>> losses.shares["network"].append(torch.tensor(0.5))
    >>> losses.finite("network")
    tensor(True)
    """

    def __init__(self) -> None:
        self.shares: dict[str, list[Tensor]] = defaultdict(list)
        """Role -> of each micro-batch its share of the mean loss over the accumulation
        step's samples, 0-dim."""

        self.per_sample: dict[str, list[Tensor]] = defaultdict(list)
        self.numbers: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        """Metric name -> of each micro-batch that has it: number of samples that count,
        and their mean (0-dim)."""

        self.sources: list[SampleSource] = []
        """Source of each sample."""

        self.uses: list[tuple[int, int]] = []
        """(epoch, position) of each sample."""

    def add(
        self, batch: Batch, losses: StepLosses, roles: Collection[str], main: str
    ) -> None:
        """Adds the losses and metrics of one micro-batch, except `shares`. roles: those
        trained in this step. main: the role whose loss counts as the loss
        of the step."""
        shape = batch.describe()
        self.sources.extend(SampleSource(name, shape) for name in batch.names)
        for position in batch.spec.positions:
            self.uses.append((batch.spec.epoch, position))
        loss_B = (
            {"loss": losses.by_role[main]}
            if main in roles and main in losses.by_role
            else {}
        )
        for name, values in {**loss_B, **losses.per_sample}.items():
            for level, values_B in enumerate(
                values.detach().view(len(values), -1).unbind(1)
            ):
                self.per_sample[f"{name}{LEVEL}{level}" if level else name].append(
                    values_B
                )
        for name, number in losses.numbers.items():
            self.numbers[name].append(
                (losses.counts.get(name, len(batch)), number.detach())
            )

    def finite(self, role: str) -> Tensor:
        """Whether all losses of a role so far are finite; 0-dim bool on the device.
        Does not wait for it."""
        return torch.isfinite(torch.stack(self.shares[role])).all()


@dataclass(frozen=True)
class PendingStepMetrics:
    """One step whose metrics are still on the device.

    Example::

        step = PendingStepMetrics(known, losses, norms, taken)
        values = iter(begin_to_host(step.tensors())())
        result = step.result(values, "network", step_s=0.5, data_s=0.1)
    """

    known: StepResult
    """The metrics that the host knows already; the flush fills in the rest."""

    losses: StepLossBuffer
    norms: dict[str, Tensor]
    """Role that had a loss -> its gradient norm (0-dim)."""

    taken: dict[str, Tensor]
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order in which `result` reads their values."""
        tensors: list[Tensor] = []
        for name in self.norms:
            tensors += [*self.losses.shares[name], self.norms[name], self.taken[name]]
        for per_sample in self.losses.per_sample.values():
            tensors += per_sample
        for counted in self.losses.numbers.values():
            tensors += [mean for _, mean in counted]
        return [*tensors, *self.numbers.values()]

    def result(
        self,
        values: Iterator[list[float]],
        main: str,
        step_s: float,
        data_s: float,
        compiled: bool = False,
    ) -> StepResult:
        """The step as callbacks see it. values: the values of each of `tensors`. main:
        the role whose loss counts as the loss of the step; NaN where it was not
        trained."""
        by_role = {}
        for name in self.norms:
            loss = sum(next(values)[0] for _ in self.losses.shares[name])
            (norm,) = next(values)
            (step_ok,) = next(values)
            by_role[name] = replace(
                self.known.by_role[name], loss=loss, grad_norm=norm, skipped=not step_ok
            )
        by_sample = {
            name: tuple(value for _ in tensors for value in next(values))
            for name, tensors in self.losses.per_sample.items()
        }
        sources = self.losses.sources
        if "t" in by_sample:
            rows = tuple(range(len(sources)))
            levels = {
                f"{ROW}{name[1:]}": rows
                for name in by_sample
                if name.split(LEVEL)[0] == "t"
            }
            by_sample = _with_levels(by_sample | levels)
            sources = [sources[int(row)] for row in by_sample.pop(ROW)]
        numbers = {}
        for name, counted in self.losses.numbers.items():
            total = sum(count * next(values)[0] for count, _ in counted)
            numbers[name] = total / sum(count for count, _ in counted)
        numbers |= {name: next(values)[0] for name in self.numbers}
        if len(self.known.by_role) > 1:
            for name, role in by_role.items():
                numbers |= {
                    f"loss/{name}": role.loss,
                    f"grad_norm/{name}": role.grad_norm,
                }
        steps = list(by_role.values())
        grad_norm = (
            steps[0].grad_norm
            if len(steps) == 1
            else math.hypot(*(role.grad_norm for role in steps))
        )
        return replace(
            self.known,
            loss=by_role[main].loss if main in by_role else math.nan,
            grad_norm=grad_norm,
            per_sample=by_sample,
            sources=tuple(sources),
            step_s=step_s,
            data_s=data_s,
            compiled=compiled,
            skipped=any(role.skipped for role in steps),
            extra_metrics=numbers,
            by_role=by_role,
        )


class MetricsBuffer:
    """Steps whose metrics are still on the device, in order.

    Example::

        metrics = MetricsBuffer(run, StepTimer())
        run.flush_metrics = metrics.flush
        metrics.add(PendingStepMetrics(known, losses, norms, taken))
    """

    def __init__(self, run: Run, timer: StepTimer) -> None:
        self._run = run
        self._timer = timer
        self._pending: list[PendingStepMetrics] = []
        self._copied: tuple[list[PendingStepMetrics], Values] | None = None
        """Steps whose metrics are being copied, and what waits for these."""

        self._copied_at = time.monotonic()
        self._skipped_in_a_row: Counter[str] = Counter()

    def add(self, step: PendingStepMetrics) -> None:
        """Adds the step just done and passes on what was copied after an earlier one.
        Copies all metrics when `metrics_sync_interval` steps are pending or
        METRICS_SYNC_SECONDS have passed since the last copy."""
        self._pending.append(step)
        self._publish_copied()
        if (
            len(self._pending) >= self._run.metrics_sync_interval
            or time.monotonic() - self._copied_at >= METRICS_SYNC_SECONDS
        ):
            self._copy()

    def flush(self) -> None:
        """Copies all metrics to the host and passes each step's result to the
        callbacks.

        Raises RunError when a role skipped MAX_CONSECUTIVE_SKIPS steps in a row.
        """
        self._publish_copied()
        self._copy()
        self._publish_copied()

    def _copy(self) -> None:
        """Begins to copy the metrics of all pending steps to the host, and passes them
        on where they are there at once: all but a GPU's."""
        steps = self._pending
        self._pending = []
        self._copied_at = time.monotonic()
        if steps:
            tensors = [tensor for step in steps for tensor in step.tensors()]
            self._copied = (steps, begin_to_host(tensors))
            if not any(tensor.is_cuda for tensor in tensors):
                self._publish_copied()

    def _publish_copied(self) -> None:
        """Waits for what was copied, and passes each step's result to the callbacks."""
        if not self._copied:
            return
        steps, arrived = self._copied
        self._copied = None
        message = f"step {steps[-1].known.step}: the device has not answered for {BLOCKED_FETCH_S:g} s."
        blocked = threading.Timer(
            BLOCKED_FETCH_S, logger.warning, [f"{message} See what `nvidia-smi` says."]
        )
        blocked.daemon = True
        blocked.start()
        try:
            with self._timer.track("step"):
                values = iter(arrived())
        finally:
            blocked.cancel()
        step_s, data_s = (seconds / len(steps) for seconds in self._timer.lap())
        compiled = any(step.known.compile_s for step in steps)
        for step in steps:
            self._publish(
                step.result(values, self._run.main_role, step_s, data_s, compiled),
                [source.name for source in step.losses.sources],
            )

    def _publish(self, result: StepResult, names: Sequence[str]) -> None:
        self._run.state.skipped += result.skipped
        for name, role in result.by_role.items():
            # Where only the loss scale was too large, the next step has a smaller one.
            overflowed = (
                math.isfinite(role.loss)
                and result.extra_metrics.get("loss_scale", 0.0) > 1
            )
            failed = role.skipped and not overflowed
            self._skipped_in_a_row[name] = (
                self._skipped_in_a_row[name] + 1 if failed else 0
            )
        for callback in self._run.listening():
            with (
                self._timer.track(
                    "step" if callback.included_in_step_time else "outside"
                ),
                self._run.contained(callback),
            ):
                callback.on_metrics(self._run, result)
        if MAX_CONSECUTIVE_SKIPS in self._skipped_in_a_row.values():
            raise RunError(
                f"the loss was not a finite number {MAX_CONSECUTIVE_SKIPS} steps in a row (up to step {result.step}); "
                f"nothing was learned in them. Images of the last step: {', '.join(dict.fromkeys(names))}. "
                "Look at these files, or lower train.lr."
            )


Values = Callable[[], list[list[float]]]
"""Waits for the values of tensors, and gives them."""


def begin_to_host(tensors: Sequence[Tensor]) -> Values:
    """Begins to copy tensors, with one copy per device; what it returns waits for them,
    and gives the values of each, flattened. As float32: integers above 2^24 are
    rounded.

    >>> begin_to_host([torch.ones(2), torch.tensor(3)])()
    [[1.0, 1.0], [3.0]]
    """
    arriving = []
    for device in {tensor.device for tensor in tensors}:
        indices = [
            index for index, tensor in enumerate(tensors) if tensor.device == device
        ]
        flat = torch.cat(
            [tensors[index].detach().reshape(-1).float() for index in indices]
        )
        arriving.append((indices, begin_copy_to_host(flat)))
    counts = [tensor.numel() for tensor in tensors]

    def values() -> list[list[float]]:
        by_index: dict[int, list[float]] = {}
        for indices, arrived in arriving:
            flat = iter(arrived().tolist())
            for index in indices:
                by_index[index] = list(itertools.islice(flat, counts[index]))
        return [by_index[index] for index in range(len(counts))]

    return values

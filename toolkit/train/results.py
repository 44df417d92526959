"""The numbers of steps, kept on the device until somebody needs them: fetching makes the host wait for all work so far.

A step's numbers reach the hooks at the next fetch: after `Run.fetch_every` steps or FETCH_AFTER_S seconds, before
anything is saved (`Run.settle`), and at the end.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from toolkit.contracts import Batch, StepLosses, StepResult
from toolkit.errors import RunError
from toolkit.train.clock import StepClock
from toolkit.train.run import Run

MOST_SKIPPED_IN_A_ROW = 3
FETCH_EVERY = 10
FETCH_AFTER_S = 1.0


def fetch_interval(device: torch.device) -> int:
    """Optimizer steps between two fetches: where host and device are one, nothing is gained by waiting for them."""
    return 1 if device.type == "cpu" else FETCH_EVERY


class WindowLosses:
    """What the micro-batches of one window gave; all tensors stay where they were computed."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []
        """Of each micro-batch, 0-dim: its part of the mean loss over the window's samples."""

        self.by_sample: dict[str, list[Tensor]] = defaultdict(list)
        self.names: list[str] = []
        self.uses: list[tuple[int, int]] = []
        """(epoch, position) of each sample."""

    def add(self, batch: Batch, share: Tensor, losses: StepLosses) -> None:
        """Takes what one micro-batch gave, before or after its backward pass."""
        self.names.extend(batch.names)
        self.uses.extend((batch.spec.epoch, position) for position in batch.spec.positions)
        self.shares.append(share.detach())
        loss_B = sum(losses.by_role.values())
        for name, values_B in {"loss": loss_B, **losses.by_sample}.items():
            self.by_sample[name].append(values_B.detach())

    def finite(self) -> Tensor:
        """Whether all losses so far are numbers; 0-dim bool on the device."""
        return torch.isfinite(torch.stack(self.shares)).all()


@dataclass(frozen=True)
class StepNumbers:
    """One step, of which the device still holds the numbers."""

    known: StepResult
    """What the host knows; the rest is filled in by the fetch."""

    losses: WindowLosses
    norm: Tensor
    taken: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All of it that is on the device, in the order in which `result` reads the values."""
        samples = (tensor for tensors in self.losses.by_sample.values() for tensor in tensors)
        return [*self.losses.shares, *samples, self.norm, self.taken, *self.numbers.values()]

    def result(self, values: Iterator[list[float]], step_s: float, data_s: float) -> StepResult:
        """The step as hooks see it. values: of each of `tensors`."""
        loss = sum(next(values)[0] for _ in self.losses.shares)
        by_sample = {
            name: tuple(value for _ in tensors for value in next(values))
            for name, tensors in self.losses.by_sample.items()
        }
        (norm,), (taken,) = next(values), next(values)
        return replace(
            self.known,
            loss=loss,
            grad_norm=norm,
            by_sample=by_sample,
            step_s=step_s,
            data_s=data_s,
            skipped=not taken,
            numbers={name: next(values)[0] for name in self.numbers},
        )


class Results:
    """Steps whose numbers are still on the device, in order."""

    def __init__(self, run: Run, clock: StepClock) -> None:
        self._run = run
        self._clock = clock
        self._pending: list[StepNumbers] = []
        self._fetched = time.monotonic()
        self._skipped_in_a_row = 0

    def add(self, step: StepNumbers) -> None:
        """Takes the numbers of the step just done, and fetches when it is time."""
        self._pending.append(step)
        if len(self._pending) >= self._run.fetch_every or time.monotonic() - self._fetched >= FETCH_AFTER_S:
            self.settle()

    def settle(self) -> None:
        """Fetches all numbers and gives each step's result to the hooks.

        Raises RunError when MOST_SKIPPED_IN_A_ROW steps in a row were skipped.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        with self._clock.charging("step"):
            values = iter(fetch([tensor for step in pending for tensor in step.tensors()]))
        step_s, data_s = (seconds / len(pending) for seconds in self._clock.lap())
        for step in pending:
            self._tell(step.result(values, step_s, data_s), step.losses.names)
        self._fetched = time.monotonic()

    def _tell(self, result: StepResult, names: Sequence[str]) -> None:
        self._run.state.skipped += result.skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.skipped else 0
        for hook in self._run.hooks:
            with self._clock.charging("step" if hook.counts_as_step_time else "outside"):
                hook.on_result(self._run, result)
        if self._skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise RunError(_not_finite_message(result.step, names))


def fetch(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The values of each tensor, flattened; one transfer for each device they are on. Counts above 2^24 are rounded."""
    values: dict[int, list[float]] = {}
    for device in {tensor.device for tensor in tensors}:
        there = [index for index, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[index].detach().reshape(-1).float() for index in there]).tolist()
        for index in there:
            values[index], flat = flat[: tensors[index].numel()], flat[tensors[index].numel() :]
    return [values[index] for index in range(len(tensors))]


def _not_finite_message(step: int, names: Sequence[str]) -> str:
    files = ", ".join(dict.fromkeys(names))
    return (
        f"the loss was not a finite number {MOST_SKIPPED_IN_A_ROW} steps in a row (up to step {step}); nothing was "
        f"learned in them. Images of the last step: {files}. Look at these files, or lower train.lr."
    )

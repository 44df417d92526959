"""The training loop: accumulation, clipping, schedules, EMA. It knows nothing of diffusion, files or screens.

It is given batches, a `TrainStep` and the weights by role; hooks watch. Every trainer shares it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch

from toolkit.contracts import Batch, BatchSpec, StepResult, TrainStep
from toolkit.errors import RunError
from toolkit.seeding import global_generator
from toolkit.train.run import Role, Run
from toolkit.train.windows import EpochBatches, Window, windows

MOST_SKIPPED_IN_A_ROW = 3

LoadBatches = Callable[[Iterable[BatchSpec]], Iterator[Batch]]
"""Loads batches ahead of their use, in order."""


def train(run: Run, epoch_batches: EpochBatches, load_batches: LoadBatches, step_fn: TrainStep) -> bool:
    """Trains until `run.steps` optimizer steps are done or a stop is asked for. Returns whether all are done.

    Raises RunError when the loss is not finite three steps in a row.
    """
    try:
        for hook in run.hooks:
            hook.on_start(run)
        _steps(run, epoch_batches, load_batches, step_fn)
        finished = run.state.step >= run.steps
        for hook in run.hooks:
            hook.on_end(run, finished)
    except BaseException as error:
        for hook in run.hooks:
            hook.on_error(run, error)
        raise
    return finished


def _steps(run: Run, epoch_batches: EpochBatches, load_batches: LoadBatches, step_fn: TrainStep) -> None:
    state = run.state
    planned = windows(epoch_batches, state.epoch, state.batch, run.accumulation)
    planned, ahead = itertools.tee(itertools.islice(planned, max(0, run.steps - state.step)))
    batches = load_batches(spec for window in ahead for spec in window.specs)
    skipped_windows: list[Window] = []
    clock = _StepClock()
    for window in planned:
        if run.stopping:
            return
        losses = _accumulate(run, window, batches, step_fn, clock)
        if losses is None:
            return
        grad_norm, skipped = _update(run, losses.loss)
        state.step += 1
        state.epoch, state.batch = window.epoch, window.batch
        state.samples += window.samples
        state.skipped += skipped
        skipped_windows = [*skipped_windows, window] if skipped else []
        _notify(run, losses, window, grad_norm, skipped, clock)
        if len(skipped_windows) == MOST_SKIPPED_IN_A_ROW:
            raise RunError(_not_finite_message(state.step, losses.names))


class _WindowLosses:
    """Sums over one window; `loss` is the mean over its samples."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.by_sample: dict[str, list[float]] = defaultdict(list)
        self.names: list[str] = []


def _accumulate(
    run: Run, window: Window, batches: Iterator[Batch], step_fn: TrainStep, clock: _StepClock
) -> _WindowLosses | None:
    """Adds up the gradients of a window, averaged over all its samples. None when a stop was asked for in between."""
    with clock.waiting():
        loaded = [next(batches) for _ in window.specs]
    losses, _ = _gradients_that_fit(run, window.samples, loaded, step_fn)
    return losses


def _gradients_that_fit(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep
) -> tuple[_WindowLosses | None, bool]:
    """`_gradients`; where they run out of memory, once more with each batch in halves. Returns (losses, halved).

    Raises RunError with advice when that does not fit either, or nothing can be halved.
    """
    try:
        return _gradients(run, samples, batches, step_fn), False
    except torch.OutOfMemoryError:
        halves = [half for batch in batches for half in batch.halves()]
    _free_memory(run)  # only here: within the handler the error still holds what was computed
    if len(halves) == len(batches):
        raise RunError(_out_of_memory_message(run, batches))
    try:
        return _gradients(run, samples, halves, step_fn), True
    except torch.OutOfMemoryError as error:
        _free_memory(run)
        raise RunError(_out_of_memory_message(run, halves)) from error


def _gradients(run: Run, samples: int, batches: Iterable[Batch], step_fn: TrainStep) -> _WindowLosses | None:
    """Forward and backward of each batch; `samples` is the number the gradients are averaged over."""
    sums = _WindowLosses()
    for batch in batches:
        if run.stopping:
            # The cursor still stands before this window: it is trained whole after a resume.
            _zero_grad(run)
            return None
        sums.names.extend(batch.names)
        # Dropout and stochastic rounding draw from torch's global generator: keyed per micro-batch.
        with global_generator(run.seed, "micro_step", batch.spec.epoch, batch.spec.positions[0]):
            losses = step_fn(batch)
            share = sum(loss_B.sum() for loss_B in losses.by_role.values()) / samples
            if torch.isfinite(share):
                share.backward()
        sums.loss += share.item()
        loss_B = sum(of_role_B.detach() for of_role_B in losses.by_role.values())
        for name, values_B in {"loss": loss_B, **losses.by_sample}.items():
            sums.by_sample[name].extend(values_B.tolist())
    return sums


def probe(run: Run, batch: Batch, step_fn: TrainStep) -> str | None:
    """Forward and backward of the largest batch, before anything is learned: what cannot fit fails at once.

    Returns a line for the user when the batch fits only in halves. Raises RunError with advice when it does not fit.
    """
    try:
        _, halved = _gradients_that_fit(run, len(batch), [batch], step_fn)
    finally:
        _free_memory(run)
    if not halved:
        return None
    return f"the largest batch ({len(batch)} images) fits only in halves: it takes longer. {run.memory_advice}"


def _free_memory(run: Run) -> None:
    _zero_grad(run)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory_message(run: Run, batches: Sequence[Batch]) -> str:
    largest = max(batches, key=lambda batch: batch.latents_BCHW.numel())
    shape = tuple(largest.latents_BCHW.shape)
    return f"out of memory with {', '.join(largest.names)} (latents {shape}). {run.memory_advice}".rstrip()


def _update(run: Run, loss: float) -> tuple[float, bool]:
    """One optimizer step of every role, unless loss or gradient is not finite. Returns (gradient norm, skipped)."""
    norms = {name: _grad_norm(role) for name, role in run.roles.items()}
    norm = math.sqrt(sum(value**2 for value in norms.values()))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        _zero_grad(run)
        return norm, True
    for name, role in run.roles.items():
        _clip(role, norms[name])
        for group in role.optimizer.param_groups:
            group["lr"] = role.lr_at(run.state.step)
        role.optimizer.step()
        if role.ema:
            role.ema.update()
    _zero_grad(run)
    return norm, False


def _grad_norm(role: Role) -> float:
    gradients = [p.grad for p in role.parameters.values() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _clip(role: Role, norm: float) -> None:
    if role.max_grad_norm and norm > role.max_grad_norm:
        gradients = [p.grad for p in role.parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, role.max_grad_norm / (norm + 1e-6))


def _zero_grad(run: Run) -> None:
    for role in run.roles.values():
        role.optimizer.zero_grad(set_to_none=True)


def _notify(
    run: Run, losses: _WindowLosses, window: Window, grad_norm: float, skipped: bool, clock: _StepClock
) -> None:
    """Tells the hooks; the time of those that save and sample is taken out of the step time."""
    role = next(iter(run.roles.values()))
    step_s, data_s = clock.step_done()
    result = StepResult(
        step=run.state.step,
        epoch=window.specs[-1].epoch,
        loss=losses.loss,
        lr=role.lr_at(run.state.step - 1),
        grad_norm=grad_norm,
        samples=run.state.samples,
        step_s=step_s,
        data_s=data_s,
        by_sample={name: tuple(values) for name, values in losses.by_sample.items()},
        skipped=skipped,
    )
    for hook in run.hooks:
        with nullcontext() if hook.counts_as_step_time else clock.excluded():
            hook.on_result(run, result)
    for hook in run.hooks:
        with nullcontext() if hook.counts_as_step_time else clock.excluded():
            hook.after_step(run)


class _StepClock:
    """Wall time between the ends of two optimizer steps, less what is excluded."""

    def __init__(self) -> None:
        self._end = time.monotonic()
        self._waited = 0.0
        self._excluded = 0.0

    def waiting(self) -> _Stopwatch:
        """Time inside the block is waiting for data."""
        return _Stopwatch(self, "_waited")

    def excluded(self) -> _Stopwatch:
        """Time inside the block belongs to no step."""
        return _Stopwatch(self, "_excluded")

    def step_done(self) -> tuple[float, float]:
        """(step_s, data_s) of the step that ends now, in seconds."""
        now = time.monotonic()
        seconds = now - self._end - self._excluded, self._waited
        self._end, self._waited, self._excluded = now, 0.0, 0.0
        return seconds


class _Stopwatch:
    def __init__(self, clock: _StepClock, sum_name: str) -> None:
        self._clock = clock
        self._sum_name = sum_name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = time.monotonic() - self._start
        setattr(self._clock, self._sum_name, getattr(self._clock, self._sum_name) + spent)


def _not_finite_message(step: int, names: list[str]) -> str:
    files = ", ".join(dict.fromkeys(names))
    return (
        f"the loss was not a finite number {MOST_SKIPPED_IN_A_ROW} steps in a row (up to step {step}); nothing was "
        f"learned in them. Images of the last step: {files}. Look at these files, or lower train.lr."
    )

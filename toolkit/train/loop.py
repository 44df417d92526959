"""The training loop: windows of micro-batches, their gradients, one step each. It knows nothing of diffusion, files or
screens, nor of how gradients become a step (`update`).

It is given batches, a `TrainStep` and the weights by role; hooks watch. Every trainer shares it. Nothing in it waits
for the device: what is known there only is fetched by `results`.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from toolkit.contracts import Batch, BatchSpec, StepResult, TrainStep
from toolkit.errors import RunError
from toolkit.seeding import global_generator
from toolkit.train.clock import StepClock
from toolkit.train.exchange import exchanged
from toolkit.train.results import Results, StepNumbers, WindowLosses
from toolkit.train.run import Run
from toolkit.train.update import Role
from toolkit.train.windows import EpochBatches, Window, dealt, windows

LoadBatches = Callable[[Iterable[BatchSpec]], Iterator[Batch]]
"""Loads batches ahead of their use, in order."""


def train(run: Run, epoch_batches: EpochBatches, load_batches: LoadBatches, step_fn: TrainStep) -> bool:
    """Trains until `run.steps` optimizer steps are done or a stop is asked for. Returns whether all are done.

    Raises RunError when the loss is not finite three steps in a row.
    """
    clock = StepClock()
    results = Results(run, clock)
    run.settle = results.settle
    try:
        with clock.charging("outside"):
            for hook in run.hooks:
                hook.on_start(run)
        _steps(run, epoch_batches, load_batches, step_fn, results, clock)
        results.settle()
        finished = run.complete
        for hook in run.hooks:
            hook.on_end(run, finished)
    except BaseException as error:
        with suppress(Exception):  # the last lines before a failure, where the device still gives them
            results.settle()
        for hook in run.hooks:
            hook.on_error(run, error)
        raise
    return finished


def _steps(
    run: Run,
    epoch_batches: EpochBatches,
    load_batches: LoadBatches,
    step_fn: TrainStep,
    results: Results,
    clock: StepClock,
) -> None:
    state = run.state
    planned = windows(epoch_batches, state.epoch, state.batch, run.accumulation)
    planned, ahead = itertools.tee(itertools.islice(planned, max(0, run.steps - state.step)))
    team = run.team
    batches = load_batches(spec for window in ahead for spec in dealt(window.specs, team.rank, team.size))
    for window in planned:
        if team.any(run.stopping):
            return
        with clock.charging("data"):
            loaded = [next(batches) for _ in dealt(window.specs, team.rank, team.size)]
        own = _gradients_that_fit(run, window.samples, loaded, step_fn, run.roles.values())
        losses = exchanged(run, window, own)
        if losses is None:
            _discard(run)
            return
        norm, taken, numbers = _update(run, losses)
        state.step += 1
        state.epoch, state.batch = window.epoch, window.batch
        state.samples += window.samples
        results.add(StepNumbers(_known(run, window), losses, norm, taken, numbers))
        for hook in run.hooks:
            with clock.charging("step" if hook.counts_as_step_time else "outside"):
                hook.after_step(run)


def _gradients_that_fit(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep, learning: Collection[Role]
) -> WindowLosses | None:
    """`_gradients`; where they run out of memory, once more with each batch in halves."""
    try:
        return _gradients(run, samples, batches, step_fn, learning)
    except torch.OutOfMemoryError:
        pass  # in halves below: within the handler the error still holds what was computed
    return _gradients_in_halves(run, samples, batches, step_fn, learning)


def _gradients_in_halves(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep, learning: Collection[Role]
) -> WindowLosses | None:
    """`_gradients` with each batch in halves, after an attempt that ran out of memory.

    Raises RunError with advice when that does not fit either, or nothing can be halved: in lockstep it would be passes
    that the other processes do not make.
    """
    _free_memory(run)
    halves = batches if run.in_lockstep else [half for batch in batches for half in batch.halves()]
    if len(halves) == len(batches):
        raise RunError(_out_of_memory_message(run, batches))
    try:
        return _gradients(run, samples, halves, step_fn, learning)
    except torch.OutOfMemoryError as error:
        _free_memory(run)
        raise RunError(_out_of_memory_message(run, halves)) from error


def _gradients(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep, learning: Collection[Role]
) -> WindowLosses | None:
    """Adds up the gradients of a window, averaged over its samples. None when a stop was asked for in between.

    learning: the roles that take a step with them; none when a batch is only tried.
    """
    window = WindowLosses()
    for role in learning:
        role.update.begin_window(role)
    for index, batch in enumerate(batches, start=1):
        if run.stopping and not run.in_lockstep:
            # The cursor still stands before this window: it is trained whole after a resume.
            _discard(run)
            return None
        # Dropout and stochastic rounding draw from torch's global generator: keyed per micro-batch.
        with global_generator(run.seed, "micro_step", batch.spec.epoch, batch.spec.positions[0]):
            losses = step_fn(batch)
            share = sum(loss_B.sum() for loss_B in losses.by_role.values()) / samples
            window.add(batch, share, losses)
            if index == len(batches):
                for role in learning:
                    role.update.before_last_backward(role, run.state.step, window.finite())
            share.backward()
    return window


def probe(run: Run, batch: Batch, step_fn: TrainStep, save_more: Callable[[], bool] = lambda: False) -> str | None:
    """Forward and backward of the largest batch, before anything is learned: what cannot fit fails at once.

    save_more: called while the batch does not fit; makes a step take less memory, and returns whether it could.
    Returns a line for the user when the batch fits only in halves. Raises RunError with advice when it does not fit.
    """
    try:
        while not _fits(run, batch, step_fn):
            if not save_more():
                _gradients_in_halves(run, len(batch), [batch], step_fn, learning=())
                said = f"the largest batch ({len(batch)} images) fits only in halves: it takes longer."
                return f"{said} {run.memory_advice}"
    finally:
        _discard(run)
    return None


def _fits(run: Run, batch: Batch, step_fn: TrainStep) -> bool:
    try:
        _gradients(run, len(batch), [batch], step_fn, learning=())
    except torch.OutOfMemoryError:
        pass  # freed below: within the handler the error still holds what was computed
    else:
        return True
    _free_memory(run)
    return False


def _free_memory(run: Run) -> None:
    """Gives back what a pass has left that was broken off."""
    _discard(run)
    gc.collect()  # a block that was being computed again is held by a ring of references
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory_message(run: Run, batches: Sequence[Batch]) -> str:
    largest = max(batches, key=lambda batch: batch.latents_BCHW.numel())
    shape = tuple(largest.latents_BCHW.shape)
    return f"out of memory with {', '.join(largest.names)} (latents {shape}). {run.memory_advice}".rstrip()


def _update(run: Run, losses: WindowLosses) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One step of every role, unless loss or gradient is not finite: (gradient norm, taken, further numbers)."""
    norms = {name: role.update.norm(role) for name, role in run.roles.items()}
    norm = torch.linalg.vector_norm(torch.stack(list(norms.values()))) if len(norms) > 1 else next(iter(norms.values()))
    taken = losses.finite() & torch.isfinite(norm)
    numbers: dict[str, Tensor] = {}
    for name, role in run.roles.items():
        numbers |= role.update.finish(role, run.state.step, norms[name], taken)
    return norm, taken, numbers


def _discard(run: Run) -> None:
    for role in run.roles.values():
        role.update.discard(role)


def _known(run: Run, window: Window) -> StepResult:
    """What the host knows of the step just done."""
    role = next(iter(run.roles.values()))
    unknown = float("nan")
    return StepResult(
        step=run.state.step,
        epoch=window.specs[-1].epoch,
        loss=unknown,
        lr=role.lr_at(run.state.step - 1),
        grad_norm=unknown,
        samples=run.state.samples,
        step_s=unknown,
        data_s=unknown,
        lr_by_group=role.rates(),
    )

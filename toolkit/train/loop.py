"""The training loop: accumulation steps of micro-batches, their gradients, one step each. It knows nothing of
diffusion, files or screens, nor of how gradients become a step (`update`).

It is given a source of batches, a `TrainStep` and the weights by role; callbacks watch. Every trainer shares it.
Nothing in it waits for the device: what is known there only is fetched by `results`.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor

from toolkit.errors import RunError
from toolkit.interfaces import Batch, BatchSource, RoleResult, StepResult, TrainStep
from toolkit.optim.schedules import Plateau
from toolkit.seeding import global_generator
from toolkit.train.accumulation import accumulation_steps, shard_micro_batches
from toolkit.train.gradient_sync import all_reduce_gradients_and_losses
from toolkit.train.metrics_buffer import MetricsBuffer, PendingStepMetrics, StepLossBuffer
from toolkit.train.run import Run
from toolkit.train.step_timer import StepTimer


def train(run: Run, source: BatchSource, step_fn: TrainStep) -> bool:
    """Trains until `run.steps` optimizer steps are done, the source ends or a stop is asked for.

    Returns whether nothing is left to train. Raises RunError when the loss is not finite three steps in a row.
    """
    timer = StepTimer()
    results = MetricsBuffer(run, timer)
    run.flush_metrics = results.flush
    try:
        with timer.track("outside"):
            for callback in run.callbacks:
                callback.on_start(run)
        _steps(run, source, step_fn, results, timer)
        results.flush()
        finished = run.complete
        for callback in run.callbacks:
            callback.on_end(run, finished)
    except BaseException as error:
        with suppress(Exception):  # the last lines before a failure, where the device still gives them
            results.flush()
        for callback in run.callbacks:
            callback.on_error(run, error)
        raise
    return finished


def _steps(run: Run, source: BatchSource, step_fn: TrainStep, results: MetricsBuffer, timer: StepTimer) -> None:
    state, process_group = run.state, run.process_group
    planned = accumulation_steps(source.iterate(state.cursor), run.grad_accum_steps)
    planned, ahead = itertools.tee(itertools.islice(planned, max(0, run.steps - state.step)))
    batches = source.load(
        spec
        for accumulation_step in ahead
        for spec in shard_micro_batches(accumulation_step.specs, process_group.rank, process_group.world_size)
    )
    for accumulation_step in planned:
        if process_group.any(run.stopping):
            return
        _agree_on_rates(run)
        with timer.track("data"):
            loaded = [
                next(batches)
                for _ in shard_micro_batches(accumulation_step.specs, process_group.rank, process_group.world_size)
            ]
        own = _forward_backward_with_oom_retry(run, accumulation_step.samples, loaded, step_fn)
        losses = all_reduce_gradients_and_losses(run, accumulation_step, own)
        if losses is None:
            _zero_grad(run)
            return
        norms, step_ok, numbers = _optimizer_step(run, losses)
        state.step += 1
        state.cursor, state.epoch = accumulation_step.cursor, accumulation_step.specs[-1].epoch
        state.epochs_before = state.epochs_done
        state.epochs_done += accumulation_step.epochs_ended
        state.samples += accumulation_step.samples
        results.add(PendingStepMetrics(_host_metrics(run), losses, norms, step_ok, numbers))
        for callback in run.callbacks:
            with timer.track("step" if callback.included_in_step_time else "outside"):
                callback.after_step(run)
    if not run.complete:
        run.early_stop_reason = run.status_fields["reason"] = f"there are no more batches after step {state.step}"


def _agree_on_rates(run: Run) -> None:
    """What a schedule has observed only rank 0 knows, whose callbacks measure."""
    for role in run.roles.values():
        if isinstance(role.schedule, Plateau):
            role.schedule.load_state_dict(run.process_group.run_on_rank0_and_broadcast(role.schedule.state_dict))


class _NoMemory(Exception):
    """Memory ran out in the passes of this batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.describe())
        self.batch = batch


def _forward_backward_with_oom_retry(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep
) -> StepLossBuffer | None:
    """`_forward_backward`; where they run out of memory, once more with each batch in halves."""
    try:
        return _forward_backward(run, samples, batches, step_fn)
    except _NoMemory as error:
        large = error.batch  # in halves below: within the handler the error still holds what was computed
    return _forward_backward_split_batch(run, samples, batches, step_fn, large)


def _forward_backward_split_batch(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep, large: Batch, tried: bool = False
) -> StepLossBuffer | None:
    """`_forward_backward` with each batch in halves, after an attempt that ran out of memory with one of them
    (`large`).

    Raises RunError with advice when that does not fit either, or nothing can be halved: in lockstep it would be passes
    that the other processes do not make.
    """
    _free_memory(run)
    halves = batches if run.sharded else [half for batch in batches for half in batch.halves()]
    if len(halves) == len(batches):
        raise RunError(_out_of_memory_message(run, large))
    try:
        return _forward_backward(run, samples, halves, step_fn, tried)
    except _NoMemory as error:
        _free_memory(run)
        raise RunError(_out_of_memory_message(run, error.batch)) from error


def _forward_backward(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep, tried: bool = False
) -> StepLossBuffer | None:
    """Accumulates the gradients of one accumulation step, averaged over its samples. None after a stop request.

    tried: nothing is to be learned of them.
    """
    passes = _Passes(run, samples, tried)
    for index, batch in enumerate(batches, start=1):
        if run.stopping and not run.sharded:
            # The cursor still stands before this accumulation step: it is trained whole after a resume.
            _zero_grad(run)
            return None
        passes.is_last = index == len(batches)
        # Dropout and stochastic rounding draw from torch's global generator: keyed per micro-batch.
        with global_generator(run.seed, "micro_step", batch.spec.epoch, batch.spec.positions[0]):
            try:
                losses = step_fn.backward(batch, passes)
            except torch.OutOfMemoryError as error:
                raise _NoMemory(batch) from error
        passes.window.add(batch, losses, passes.roles)
    return passes.window


class _Passes:
    """The backward passes of an accumulation step (`contracts.Backward`), and the losses they were of."""

    def __init__(self, run: Run, samples: int, tried: bool) -> None:
        self.window = StepLossBuffer()
        self.step = run.state.step
        self.roles = frozenset(name for name, role in run.roles.items() if tried or role.learns_at(self.step))
        self.is_last = False
        self._run, self._samples, self._tried = run, samples, tried
        for name in () if tried else self.roles:
            run.roles[name].optimizer_step.begin_accumulation(run.roles[name])

    def __call__(self, losses: Mapping[str, Tensor], retain_graph: bool = False) -> None:
        shares = {name: loss_B.sum() / self._samples for name, loss_B in losses.items() if name in self.roles}
        if not shares:
            return
        roles = {name: self._run.roles[name] for name in shares}
        for name, share in shares.items():
            self.window.shares[name].append(share.detach())
        if self.is_last and not self._tried:
            for name, role in roles.items():
                role.optimizer_step.before_last_backward(role, self.step, self.window.finite(name))
        whole = cast("Tensor", sum(shares.values()))
        if self._run.loss_scaler:
            whole = whole * self._run.loss_scaler.scale.to(whole.device)
        # Of all roles: as it is. Of some: theirs alone, also where the graph leads to the weights of others.
        apart = len(roles) < len(self._run.roles)
        inputs = [p for role in roles.values() for p in role.parameters.values()] if apart else None
        whole.backward(retain_graph=retain_graph, inputs=inputs)


def try_largest_batch(
    run: Run, batch: Batch, step_fn: TrainStep, increase_checkpointing: Callable[[], bool] = lambda: False
) -> str | None:
    """Forward and backward of the largest batch, before anything is learned: what cannot fit fails at once.

    save_more: called while the batch does not fit; makes a step take less memory, and returns whether it could.
    Returns a line for the user when the batch fits only in halves. Raises RunError with advice when it does not fit.
    """
    try:
        while not _try_forward_backward(run, batch, step_fn):
            if not increase_checkpointing():
                _forward_backward_split_batch(run, len(batch), [batch], step_fn, batch, tried=True)
                said = f"the largest batch ({len(batch)} images) does not fit; it is split in two, which is slower."
                return f"{said} {run.oom_hint}"
    finally:
        _zero_grad(run)
    return None


def _try_forward_backward(run: Run, batch: Batch, step_fn: TrainStep) -> bool:
    try:
        _forward_backward(run, len(batch), [batch], step_fn, tried=True)
    except _NoMemory:
        pass  # freed below: within the handler the error still holds what was computed
    else:
        return True
    _free_memory(run)
    return False


def _free_memory(run: Run) -> None:
    """Frees what an aborted pass left behind."""
    _zero_grad(run)
    gc.collect()  # a block that was being recomputed is held by a ring of references
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory_message(run: Run, batch: Batch) -> str:
    return f"out of memory with {', '.join(batch.names)} ({batch.describe()}). {run.oom_hint}".rstrip()


def _optimizer_step(run: Run, losses: StepLossBuffer) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One step of every role that had a loss, unless its loss or gradient is not finite.

    Returns each such role's gradient norm, whether its step was taken, and further numbers.
    """
    learning = {name: role for name, role in run.roles.items() if name in losses.shares}
    scaler, numbers = run.loss_scaler, {}
    if scaler:
        scaler.unscale_([p.grad for role in learning.values() for p in role.parameters.values() if p.grad is not None])
        numbers["loss_scale"] = scaler.scale
    norms = {name: role.optimizer_step.norm(role) for name, role in learning.items()}
    step_ok = {name: losses.finite(name) & torch.isfinite(norm) for name, norm in norms.items()}
    for name, role in learning.items():
        found = role.optimizer_step.step(role, run.state.step, norms[name], step_ok[name])
        numbers |= {key if len(run.roles) == 1 else f"{key}/{name}": number for key, number in found.items()}
    for name in run.roles.keys() - learning.keys():
        run.roles[name].optimizer_step.zero_grad(run.roles[name])
    if scaler and norms:
        scaler.update(torch.isfinite(torch.stack([norm.to(scaler.scale.device) for norm in norms.values()])).all())
    return norms, step_ok, numbers


def _zero_grad(run: Run) -> None:
    for role in run.roles.values():
        role.optimizer_step.zero_grad(role)


def _host_metrics(run: Run) -> StepResult:
    """What the host knows of the step just done."""
    unknown, done = float("nan"), run.state.step - 1
    lrs = {name: role.lr_at(done) for name, role in run.roles.items()}
    by_group = next(iter(run.roles.values())).learning_rates()
    if len(run.roles) > 1:
        by_group = lrs | {
            f"{name}/{key}": lr for name, role in run.roles.items() for key, lr in role.learning_rates().items()
        }
    return StepResult(
        step=run.state.step,
        epoch=run.state.epoch,
        loss=unknown,
        lr=next(iter(lrs.values())),
        grad_norm=unknown,
        samples=run.state.samples,
        step_s=unknown,
        data_s=unknown,
        lr_by_group=by_group,
        by_role={name: RoleResult(unknown, lr, unknown) for name, lr in lrs.items()},
    )

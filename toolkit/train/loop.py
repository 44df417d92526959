"""The training loop of every trainer: accumulates the gradients of the micro-batches,
then takes one optimizer step.

It takes a source of batches, a `TrainStep` and the parameters by role, and calls the
callbacks. It knows nothing of diffusion, files or screens, nor of how gradients become
a step (`optimizer_step`). Nothing in it waits for the device: `metrics_buffer` fetches
what only the device knows.

The trainers call `try_largest_batch` and then `train`.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from toolkit.contracts.data import Batch, BatchSource, BatchSpec
from toolkit.contracts.training import RoleResult, StepResult, TrainStep
from toolkit.errors import OutOfMemory, RunError
from toolkit.memory.compiling import failure
from toolkit.optim.schedules import Plateau
from toolkit.system.device import is_out_of_memory
from toolkit.system.distributed import PeerFailedError
from toolkit.system.seeding import global_generator
from toolkit.train.accumulation import accumulation_steps, shard_micro_batches
from toolkit.train.collectives import (
    all_reduce_gradients_and_losses,
)
from toolkit.train.metrics_buffer import (
    MetricsBuffer,
    PendingStepMetrics,
    StepLossBuffer,
    StepTimer,
)
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run

T = TypeVar("T")


def train(run: Run, source: BatchSource, step_fn: TrainStep[Any]) -> bool:
    """Trains until `run.steps` optimizer steps are done, the source ends or a stop is
    requested.

    Returns whether nothing is left to train. Raises RunError when the loss is not
    finite three steps in a row. The RunError of a source that fails is raised once the
    run is saved, as after a stop.
    """
    timer = StepTimer()
    metrics = MetricsBuffer(run, timer)
    run.flush_metrics = metrics.flush
    try:
        with timer.track("outside"):
            for callback in run.listening():
                with run.contained(callback):
                    callback.on_start(run)
        failure = None
        begun = run.state.step
        try:
            _steps(run, source, step_fn, metrics, timer)
        except _SourceError as error:
            # A source that stops waiting because a stop is requested has not failed.
            if not (run.interrupted and run.process_group.is_single_process):
                failure = error.reason
        metrics.flush()
        finished = run.complete and failure is None
        # Of a sharded model the others would have to help with saving, and they wait
        # for this rank elsewhere.
        ends = failure is None or (run.state.step > begun and not run.sharded)
        if ends:
            for callback in run.listening():
                with (
                    suppress(RunError) if failure else nullcontext(),
                    run.contained(callback),
                ):
                    callback.on_end(run, finished)
        if failure:
            raise failure
    except BaseException as error:
        # The last lines before a failure, if the device still returns them. After the
        # end of another process it may wait for that, for as long as NCCL does.
        if not isinstance(error, PeerFailedError):
            with suppress(Exception):
                metrics.flush()
        run.fail(error)
        raise
    return finished


class _SourceError(Exception):
    """The source of batches failed between two steps."""

    def __init__(self, reason: RunError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _read(items: Iterator[T]) -> Iterator[T]:
    """The items of a source; its RunErrors as _SourceError."""
    try:
        yield from items
    except RunError as error:
        raise _SourceError(error) from error


def _steps(
    run: Run,
    source: BatchSource,
    step_fn: TrainStep[Any],
    metrics: MetricsBuffer,
    timer: StepTimer,
) -> None:
    state = run.state
    process_group = run.process_group
    steps = _read(
        accumulation_steps(source.iterate(state.cursor), run.grad_accum_steps)
    )
    own_share = partial(
        shard_micro_batches, rank=process_group.rank, size=process_group.world_size
    )
    steps, ahead = itertools.tee(
        itertools.islice(steps, max(0, run.steps - state.step))
    )

    def own_specs() -> Iterator[BatchSpec]:
        for accumulation_step in ahead:
            yield from own_share(accumulation_step.specs)

    batches = _read(source.load(own_specs()))
    for accumulation_step in steps:
        if process_group.any(run.stopping):
            return
        for role in run.roles.values():
            # Only the callbacks of rank 0 measure.
            if isinstance(role.schedule, Plateau):
                role.schedule.load_state_dict(
                    process_group.run_on_rank0_and_broadcast(role.schedule.state_dict)
                )
        with timer.track("data"):
            loaded = [next(batches) for _ in own_share(accumulation_step.specs)]
        before = run.programs.took.seconds
        local_losses = _forward_backward_with_oom_retry(
            run, accumulation_step.samples, loaded, step_fn
        )
        compile_s = run.programs.took.seconds - before
        timer.exclude(compile_s)
        losses = all_reduce_gradients_and_losses(run, accumulation_step, local_losses)
        if losses is None:
            _zero_grad(run)
            return
        norms, step_ok, numbers = _optimizer_step(run, losses)
        state.step += 1
        state.cursor = accumulation_step.cursor
        state.epochs_before = state.epochs_done
        state.epochs_done += accumulation_step.epochs_ended
        state.epoch = accumulation_step.specs[-1].epoch
        state.samples += accumulation_step.samples
        metrics.add(
            PendingStepMetrics(
                _host_metrics(run, compile_s), losses, norms, step_ok, numbers
            )
        )
        for callback in run.listening():
            with (
                timer.track("step" if callback.included_in_step_time else "outside"),
                run.contained(callback),
            ):
                callback.after_step(run)
    if not run.complete:
        run.early_stop_reason = run.status_fields["reason"] = (
            f"there are no more batches after step {state.step}"
        )


class _ProgramFailed(Exception):
    """A compiled program failed in a pass: the step has to be computed again without
    programs."""

    def __init__(self, reason: str = "") -> None:
        """reason: the message that is still to be logged."""
        super().__init__(reason)
        self.reason = reason


class _Untried(Exception):
    """A program was compiled in this step, and weights would move in its first backward
    pass."""


class _NoMemory(Exception):
    """The device ran out of memory in a pass of this batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.describe())
        self.batch = batch


def _forward_backward_with_oom_retry(
    run: Run, samples: int, batches: Sequence[Batch], step_fn: TrainStep[Any]
) -> StepLossBuffer | None:
    """`_forward_backward`; after an out-of-memory error once more with each batch split
    in two."""
    try:
        return _forward_backward(run, samples, batches, step_fn)
    except _NoMemory as error:
        # Retried below: inside the handler the error still holds the activations.
        large = error.batch
    return _forward_backward_split_batch(run, samples, batches, step_fn, large)


def _forward_backward_split_batch(
    run: Run,
    samples: int,
    batches: Sequence[Batch],
    step_fn: TrainStep[Any],
    large: Batch,
    trial: bool = False,
) -> StepLossBuffer | None:
    """`_forward_backward` with each batch split in two, after one of them (`large`) ran
    out of memory.

    Raises RunError with advice when that does not fit either, or when nothing can be
    split. Batches of a sharded model are not split: the other ranks would not make the
    same passes.
    """
    _free_memory(run)
    halves = (
        batches
        if run.sharded
        else [half for batch in batches for half in batch.halves()]
    )
    if len(halves) == len(batches):
        raise OutOfMemory(_out_of_memory_message(run, large))
    try:
        return _forward_backward(run, samples, halves, step_fn, trial)
    except _NoMemory as error:
        _free_memory(run)
        raise OutOfMemory(_out_of_memory_message(run, error.batch)) from error


def _forward_backward(
    run: Run,
    samples: int,
    batches: Sequence[Batch],
    step_fn: TrainStep[Any],
    trial: bool = False,
) -> StepLossBuffer | None:
    """Accumulates the gradients of one accumulation step, averaged over its samples.
    None after a stop request.

    trial: the gradients are not used; strategies that step in the backward pass do not
    step.
    """
    with suppress(_Untried):
        return _computed(run, samples, batches, step_fn, trial, tried=trial)
    _free_memory(run)
    _computed(run, samples, batches, step_fn, trial=True, tried=True)
    _zero_grad(run)
    return _computed(run, samples, batches, step_fn, trial, tried=True)


def _computed(
    run: Run,
    samples: int,
    batches: Sequence[Batch],
    step_fn: TrainStep[Any],
    trial: bool,
    tried: bool,
) -> StepLossBuffer | None:
    """As `_forward_backward`. Where a compiled program fails that may be given up, all
    of it is computed again without programs, at a level of checkpointing that fits. A
    failure without programs is raised as it is: the program was not its cause.

    Raises _Untried, unless `tried`, where weights would move in the first backward pass
    of a program, or in its first one at a size.
    """
    programs = run.programs
    reason = ""
    while True:
        compiled = programs.used
        try:
            losses = _accumulate(run, samples, batches, step_fn, trial, tried)
            programs.report(reason)
            return losses
        except _ProgramFailed as error:
            # computed again below: inside the handler the error still holds the
            # activations
            reason = error.reason
            _require_unmoved(run, reason)
            programs.stop()
        except _NoMemory:
            # Where a forward pass has given up the programs, its first blocks kept what
            # compiled ones keep.
            if not (compiled and not programs.used) and not programs.save_memory():
                programs.report(reason)
                raise
        _free_memory(run)


def _require_unmoved(run: Run, reason: str) -> None:
    """Raises RunError where weights have moved in the middle of the step, which cannot
    be repeated then."""
    if any(role.optimizer_step.has_moved for role in run.roles.values()):
        raise RunError(
            f"a compiled block failed in the middle of a fused backward pass ({reason}), when some weights had moved "
            "already: the step cannot be repeated. Start the job again with train.compile: false; it resumes from the "
            "last save."
        )


def _accumulate(
    run: Run,
    samples: int,
    batches: Sequence[Batch],
    step_fn: TrainStep[Any],
    trial: bool,
    tried: bool,
) -> StepLossBuffer | None:
    """As `_computed`, once; raises _NoMemory and _ProgramFailed too."""
    passes = _Passes(run, samples, trial, tried)
    for index, batch in enumerate(batches, start=1):
        if run.stopping and not run.sharded:
            # The cursor still points to this accumulation step: a resume repeats all of
            # it.
            _zero_grad(run)
            return None
        passes.is_last = index == len(batches)
        # Dropout and stochastic rounding use torch's global generator: seeded per
        # micro-batch.
        with global_generator(
            run.seed, "micro_step", batch.spec.epoch, batch.spec.positions[0]
        ):
            try:
                losses = step_fn.backward(batch, passes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise _NoMemory(batch) from error
        passes.losses.add(batch, losses, passes.roles, run.main_role)
    return passes.losses


class _Passes:
    """The backward passes of an accumulation step (`Backward`), and their losses."""

    def __init__(self, run: Run, samples: int, trial: bool, tried: bool) -> None:
        self.losses = StepLossBuffer()
        self.step = run.state.step
        self.roles = frozenset(
            name
            for name, role in run.roles.items()
            if trial or self.step % role.every == 0
        )
        self.is_last = False
        self._run = run
        self._samples = samples
        self._trial = trial
        self._tried = tried
        self._compiled = run.programs.used
        self._programs = run.programs.tried
        if not trial:
            for name in self.roles:
                role = run.roles[name]
                role.optimizer_step.begin_accumulation(role)

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        retain_graph: bool = False,
        final: bool = True,
    ) -> None:
        shares = {
            name: loss_B.sum() / self._samples
            for name, loss_B in losses.items()
            if name in self.roles
        }
        if not shares:
            return
        roles = {name: self._run.roles[name] for name in shares}
        self._check_programs(roles, final)
        # of the roles with one loss the first has it
        first = {id(losses[name]): name for name in reversed(shares)}
        for name, share in shares.items():
            self.losses.shares[name].append(share.detach())
        if self.is_last and final and not self._trial:
            for name, role in roles.items():
                role.optimizer_step.before_last_backward(
                    role, self.step, self.losses.finite(name)
                )
        total = cast("Tensor", sum(shares[name] for name in first.values()))
        if self._run.loss_scaler:
            total = total * self._run.loss_scaler.scale.to(total.device)
        # Losses of some roles only: gradients for their parameters alone, even where
        # the graph reaches others.
        is_subset = len(roles) < len(self._run.roles)
        inputs = (
            [p for role in roles.values() for p in role.parameters.values()]
            if is_subset
            else None
        )
        try:
            total.backward(retain_graph=retain_graph, inputs=inputs)
        except Exception as error:
            if self._run.programs.may_replace(error):
                raise _ProgramFailed(failure(error)) from error
            raise

    def _check_programs(self, roles: Mapping[str, Role], final: bool) -> None:
        """Raises _ProgramFailed or _Untried where the pass of these roles is not to be
        made with what was computed."""
        programs = self._run.programs
        # Given up in a forward pass, whose first blocks ran compiled.
        if self._compiled and not programs.used:
            raise _ProgramFailed
        moves = (
            self.is_last
            and final
            and any(role.optimizer_step.in_backward for role in roles.values())
        )
        if (
            moves
            and not self._tried
            and programs.may_stop
            and programs.tried != self._programs
        ):
            raise _Untried


def try_largest_batch(
    run: Run,
    batch: Batch,
    step_fn: TrainStep[Any],
    increase_checkpointing: Callable[[], bool] = lambda: False,
) -> str | None:
    """Forward and backward of the largest batch before training, so that a job that
    does not fit fails at once.

    increase_checkpointing: called while the batch does not fit; reduces the memory of a
    step and returns whether it could. Returns a line for the user when the batch has to
    be split. Raises RunError with advice when it does not fit.
    """
    try:
        while True:
            try:
                _forward_backward(run, len(batch), [batch], step_fn, trial=True)
                return None
            except _NoMemory:
                # freed below: inside the handler the error still holds the activations
                pass
            _free_memory(run)
            if not increase_checkpointing():
                _forward_backward_split_batch(
                    run, len(batch), [batch], step_fn, batch, trial=True
                )
                return (
                    f"the largest batch ({len(batch)} images) does not fit; it is split "
                    f"in two, which is slower. {run.oom_hint()}"
                )
    finally:
        _zero_grad(run)


def _free_memory(run: Run) -> None:
    """Frees the memory of an aborted pass."""
    _zero_grad(run)
    gc.collect()  # a block that was being recomputed is part of a reference cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory_message(run: Run, batch: Batch) -> str:
    return f"out of memory with {', '.join(batch.names)} ({batch.describe()}). {run.oom_hint()}".rstrip()


def _optimizer_step(
    run: Run, losses: StepLossBuffer
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One optimizer step of every role that had a loss, unless its loss or gradient is
    not finite.

    Returns by role the gradient norm and whether the step was taken, and extra metrics
    by name.
    """
    active = {name: role for name, role in run.roles.items() if name in losses.shares}
    scaler = run.loss_scaler
    numbers = {}
    if scaler:
        scaler.unscale_(_gradients(active.values()))
        numbers["loss_scale"] = scaler.scale
    norms = {name: role.optimizer_step.norm(role) for name, role in active.items()}
    step_ok = {
        name: losses.finite(name) & torch.isfinite(norm) for name, norm in norms.items()
    }
    for name, role in active.items():
        role_numbers = role.optimizer_step.step(
            role, run.state.step, norms[name], step_ok[name]
        )
        for key, number in role_numbers.items():
            numbers[key if len(run.roles) == 1 else f"{key}/{name}"] = number
    for name in run.roles.keys() - active.keys():
        run.roles[name].optimizer_step.zero_grad(run.roles[name])
    if scaler and norms:
        scaler.update(
            torch.isfinite(
                torch.stack([norm.to(scaler.scale.device) for norm in norms.values()])
            ).all()
        )
    return norms, step_ok, numbers


def _gradients(roles: Iterable[Role]) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    return [
        p.grad for role in roles for p in role.parameters.values() if p.grad is not None
    ]


def _zero_grad(run: Run) -> None:
    for role in run.roles.values():
        role.optimizer_step.zero_grad(role)


def _host_metrics(run: Run, compile_s: float) -> StepResult:
    """The metrics of the step just done that need no copy from the device."""
    nan = float("nan")
    done = run.state.step - 1
    lrs = {name: role.lr * role.schedule(done) for name, role in run.roles.items()}
    by_group = next(iter(run.roles.values())).learning_rates()
    if len(run.roles) > 1:
        by_group = dict(lrs)
        for name, role in run.roles.items():
            for key, lr in role.learning_rates().items():
                by_group[f"{name}/{key}"] = lr
    return StepResult(
        step=run.state.step,
        epoch=run.state.epoch,
        loss=nan,
        lr=next(iter(lrs.values())),
        grad_norm=nan,
        samples=run.state.samples,
        step_s=nan,
        data_s=nan,
        compile_s=compile_s,
        lr_by_group=by_group,
        by_role={name: RoleResult(nan, lr, nan) for name, lr in lrs.items()},
    )

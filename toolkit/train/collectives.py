"""The joint work of the ranks of a run: all-reduce of gradients and losses, commands of
rank 0 to the others, full copies of sharded tensors.

Each rank divides its losses by the samples of the whole accumulation step, so the sums
are the means that a single process would compute. All ranks get the same bits, and so
take the same optimizer step. Gradients of sharded parameters are already reduced by
FSDP2 (`memory/fsdp.py`).

Rank 0 samples, validates and saves while the other ranks wait for it in a collective.
Whatever needs the weights of all ranks begins with a command (`Run.broadcast_command`):
the other ranks run it and wait again. A command is a picklable function; it is called
with the rank's `WorkerContext`.

Called by the loop, by the callbacks that sample, validate and save, and by the writers
of network files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.contracts.training import SampleSource
from toolkit.system.distributed import PeerFailedError, ProcessGroup
from toolkit.train.accumulation import AccumulationStep
from toolkit.train.metrics_buffer import StepLossBuffer
from toolkit.train.run import Run


@dataclass
class WorkerContext:
    """The objects of one rank that commands of rank 0 work on.

    Example::

        install_command_handler(WorkerContext(model, network, run))
    """

    model: DiffusionModel
    network: Network
    run: Run
    evaluation: ExitStack = field(default_factory=ExitStack)
    """Open while the eval weights (EMA) are swapped in."""


def install_command_handler(worker: WorkerContext) -> None:
    """Installs the command handler on ranks > 0 and the broadcaster on rank 0."""
    process_group = worker.run.process_group
    process_group.on_command = lambda command: command(worker)
    worker.run.broadcast_command = process_group.broadcast_command


def leading(
    model: DiffusionModel, process_group: ProcessGroup
) -> Callable[..., Tensor]:
    """`model.predict_velocity` for work of rank 0 alone (samples, validation): the
    other ranks run each pass too, and discard the result.
    """

    def predict_velocity(*inputs: Any) -> Tensor:
        process_group.broadcast_command(
            partial(_forward_on_worker, inputs=_on_cpu(inputs))
        )
        return model.predict_velocity(*inputs)

    return predict_velocity


@torch.no_grad()
def _forward_on_worker(worker: WorkerContext, inputs: tuple[Any, ...]) -> None:
    worker.model.predict_velocity(*inputs)


def _on_cpu(value: Any) -> Any:
    """The inputs of a pass in CPU memory, from which they can be broadcast."""
    if isinstance(value, Tensor | PromptEmbeds):
        return value.cpu()
    return tuple(map(_on_cpu, value))


@contextmanager
def using_eval_weights(run: Run) -> Iterator[None]:
    """Swaps the eval weights (EMA) in on all ranks inside the block, and restores the
    raw weights after it.

    An error inside ends the run.
    """
    run.broadcast_command(_swap_in_eval_weights)
    with run.using_eval_weights_local():
        yield
    # Not after an error: the other ranks may be in the middle of a pass and would not
    # receive the command.
    run.broadcast_command(_swap_out_eval_weights)


def _swap_in_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.enter_context(worker.run.using_eval_weights_local())


def _swap_out_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.close()


@contextmanager
def network_tensors_in_turn(
    run: Run,
    network: Network,
    role: str,
    dtype: torch.dtype,
    raw: bool = False,
    order: Callable[[Iterable[str]], Sequence[str]] = sorted,
) -> Iterator[tuple[dict[str, torch.Size], Callable[[str], Tensor]]]:
    """The tensors of a network file under their names there, with one in memory at a time: the shape of each, and what
    copies one to the CPU in `dtype`. Called by rank 0. raw: the raw weights, also where there is an EMA.

    Each has to be copied once, in this order of the names, before anything else is
    communicated: the other ranks are at it. After an error in the block (a full disk,
    say) the rest is copied for them.
    """
    shards = network.sharded_params()
    tensors = network.export(run.roles[role].weights(raw))
    shapes = {
        name: torch.Size(shards[name].shape) if name in shards else t.shape
        for name, t in tensors.items()
    }
    names = [name for name in order(shapes) if name in shards]
    run.broadcast_command(
        partial(_gather_on_worker, role=role, dtype=dtype, raw=raw, names=names)
    )

    def gather(name: str) -> Tensor:
        copy = run.process_group.gather_to_rank0(tensors[name], shards.get(name), dtype)
        assert copy is not None  # this is rank 0
        if name in shards:
            names.remove(name)
        return copy

    try:
        yield shapes, gather
    except PeerFailedError:
        raise
    except Exception:
        for name in [*names]:
            gather(name)
        raise


def _gather_on_worker(
    worker: WorkerContext,
    role: str,
    dtype: torch.dtype,
    raw: bool,
    names: Sequence[str],
) -> None:
    shards = worker.network.sharded_params()
    tensors = worker.network.export(worker.run.roles[role].weights(raw))
    for name in names:
        worker.run.process_group.gather_to_rank0(tensors[name], shards[name], dtype)


class _Report(NamedTuple):
    """The report of one rank to the others about its micro-batches."""

    uses: list[tuple[int, int]]
    sources: list[SampleSource]
    """Both as of `StepLossBuffer`."""

    roles: list[str]
    """Roles that had a loss."""

    kinds: list[str]
    """Names of the metrics per sample."""

    counts: dict[str, int]
    """Name of a metric per batch -> number of samples that it averages."""

    with_gradient: list[bool]
    """For each parameter that is not sharded, whether it has a gradient on this
    rank."""

    failure: str
    """Why this rank has given up its compiled programs; empty: it has not."""


def all_reduce_gradients_and_losses(
    run: Run, accumulation_step: AccumulationStep, local_losses: StepLossBuffer | None
) -> StepLossBuffer | None:
    """The losses of the whole accumulation step; gradients of parameters that are not
    sharded become the sums over all ranks.

    local_losses: of this rank; None where the accumulation step was aborted. The result
    is then None on all ranks.
    """
    if run.process_group.is_single_process:
        return local_losses
    parameters = [
        p
        for role in run.roles.values()
        for name, p in role.parameters.items()
        if name not in role.sharded
    ]
    report = None
    if local_losses is not None:
        counts = {
            name: sum(count for count, _ in counted)
            for name, counted in local_losses.numbers.items()
        }
        has_gradient = [p.grad is not None for p in parameters]
        report = _Report(
            local_losses.uses,
            local_losses.sources,
            list(local_losses.shares),
            list(local_losses.per_sample),
            counts,
            has_gradient,
            run.programs.failure,
        )
    gathered = run.process_group.all_gather_object(report)
    reports = [report for report in gathered if report is not None]
    if local_losses is None or len(reports) < len(gathered):
        return None
    _stop_programs(run, reports)
    for parameter, *has_gradient in zip(
        parameters, *(report.with_gradient for report in reports), strict=True
    ):
        if any(has_gradient) and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    roles = [
        name for name in run.roles if any(name in report.roles for report in reports)
    ]
    device = next(
        p.device for role in run.roles.values() for p in role.parameters.values()
    )
    numbers, whole = _summands(local_losses, accumulation_step, reports, roles, device)
    run.process_group.all_reduce_sum(
        [*(p.grad for p in parameters if p.grad is not None), numbers]
    )
    return whole


def _stop_programs(run: Run, reports: Sequence[_Report]) -> None:
    """Has all ranks run uncompiled blocks from the next step on, once one does: none
    would be faster than that one."""
    for rank, report in enumerate(reports):
        if report.failure and run.programs.used:
            run.programs.stop()
            run.programs.report(f"process {rank}: {report.failure}")


def _summands(
    local_losses: StepLossBuffer,
    accumulation_step: AccumulationStep,
    reports: Sequence[_Report],
    roles: Sequence[str],
    device: torch.device,
) -> tuple[Tensor, StepLossBuffer]:
    """This rank's summands in one vector, and the losses of the accumulation step,
    which are views of it: once it is summed over the ranks, they are as on a single
    process. Samples of other ranks are zero."""
    kinds = next(report.kinds for report in reports if report.uses)
    counts = sum((Counter(report.counts) for report in reports), Counter[str]())
    samples = accumulation_step.sample_keys
    sizes = [len(roles), len(counts), len(kinds) * len(samples)]
    numbers = torch.zeros(sum(sizes), device=device)
    of_roles, of_batches, of_samples = numbers.split(sizes)
    rows = of_samples.view(len(kinds), len(samples))
    for place, role in enumerate(roles):
        if role in local_losses.shares:
            of_roles[place] = torch.stack(local_losses.shares[role]).sum()
    for place, name in enumerate(counts):
        of_batches[place] = (
            sum(count * mean for count, mean in local_losses.numbers[name])
            / counts[name]
        )
    if local_losses.uses:
        index_of = {use: index for index, use in enumerate(samples)}
        own_indices = torch.tensor(
            [index_of[use] for use in local_losses.uses], device=device
        )
        for row, kind in zip(rows, kinds, strict=True):
            row[own_indices] = torch.cat(
                [v_B.to(device, row.dtype) for v_B in local_losses.per_sample[kind]]
            )
    whole = StepLossBuffer()
    for role, share in zip(roles, of_roles, strict=True):
        whole.shares[role] = [share]
    for name, mean in zip(counts, of_batches, strict=True):
        whole.numbers[name] = [(counts[name], mean)]
    whole.per_sample |= {kind: [row] for kind, row in zip(kinds, rows, strict=True)}
    sources = {
        use: source
        for report in reports
        for use, source in zip(report.uses, report.sources, strict=True)
    }
    whole.uses = samples
    whole.sources = [sources[use] for use in samples]
    return numbers, whole

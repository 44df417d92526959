"""All-reduce of gradients and losses after an accumulation step.

Each rank divides its losses by the samples of the whole accumulation step, so the sums are the means that a single
process would compute. All ranks get the same bits, and so take the same optimizer step. Gradients of sharded parameters
are already reduced by FSDP2 (`memory/fsdp.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.train.accumulation import AccumulationStep
from toolkit.train.metrics_buffer import StepLossBuffer
from toolkit.train.run import Run


@dataclass(frozen=True)
class _LocalPart:
    """What one rank reports of its micro-batches."""

    uses: list[tuple[int, int]]
    names: list[str]
    numbers: list[str]
    """Names of the metrics per sample."""

    roles: list[str]
    """Roles that had a loss."""

    batch_numbers: dict[str, int]
    """Name of a metric per batch -> samples of the micro-batches that have it."""

    with_gradient: list[bool]
    """Of each parameter that is not sharded, whether it has a gradient on this rank."""


def all_reduce_gradients_and_losses(
    run: Run, accumulation_step: AccumulationStep, own: StepLossBuffer | None
) -> StepLossBuffer | None:
    """The losses of the whole accumulation step; gradients of parameters that are not sharded become the sums over all
    ranks.

    own: the losses of this rank; None where the accumulation step was aborted. The result is then None on all ranks.
    """
    if run.process_group.is_single_process:
        return own
    parameters = [p for role in run.roles.values() for name, p in role.parameters.items() if name not in role.sharded]
    gathered = run.process_group.all_gather_object(None if own is None else _local_part(own, parameters))
    reports = [report for report in gathered if report is not None]
    if own is None or len(reports) < len(gathered):
        return None
    for parameter, *has_gradient in zip(parameters, *(report.with_gradient for report in reports), strict=True):
        if any(has_gradient) and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    kinds = next(report.numbers for report in reports if report.uses)
    roles = [name for name in run.roles if any(name in report.roles for report in reports)]
    counts = sum((Counter(report.batch_numbers) for report in reports), Counter[str]())
    numbers = _numbers(own, accumulation_step, roles, kinds, counts, _device(run))
    run.process_group.all_reduce_sum([*(p.grad for p in parameters if p.grad is not None), numbers])
    names = {use: name for report in reports for use, name in zip(report.uses, report.names, strict=True)}
    return _losses(numbers, accumulation_step, roles, kinds, counts, names)


def _device(run: Run) -> torch.device:
    return next(p.device for role in run.roles.values() for p in role.parameters.values())


def _local_part(own: StepLossBuffer, parameters: list[torch.nn.Parameter]) -> _LocalPart:
    counts = {name: sum(count for count, _ in counted) for name, counted in own.numbers.items()}
    with_gradient = [p.grad is not None for p in parameters]
    return _LocalPart(own.uses, own.names, list(own.per_sample), list(own.shares), counts, with_gradient)


def _numbers(
    own: StepLossBuffer,
    accumulation_step: AccumulationStep,
    roles: list[str],
    kinds: list[str],
    counts: Counter[str],
    device: torch.device,
) -> Tensor:
    """This rank's summands in one vector: mean loss of each role, each metric per batch, then each metric per sample
    of the accumulation step (zero for samples of other ranks)."""
    sums = [
        *(torch.stack(own.shares[role]).sum() if role in own.shares else 0.0 for role in roles),
        *(sum(count * mean for count, mean in own.numbers[name]) / counts[name] for name in counts),
    ]
    numbers = torch.zeros(len(sums) + len(kinds) * accumulation_step.samples, device=device)
    for index, value in enumerate(sums):
        numbers[index] = value
    if own.uses:
        index_of = {use: index for index, use in enumerate(accumulation_step.sample_keys)}
        own_indices = torch.tensor([index_of[use] for use in own.uses], device=device)
        rows = numbers[len(sums) :].view(len(kinds), accumulation_step.samples)
        for row, values in zip(rows, (own.per_sample[kind] for kind in kinds), strict=True):
            row[own_indices] = torch.cat([values_B.to(device, row.dtype) for values_B in values])
    return numbers


def _losses(
    numbers: Tensor,
    accumulation_step: AccumulationStep,
    roles: list[str],
    kinds: list[str],
    counts: Counter[str],
    names: dict[tuple[int, int], str],
) -> StepLossBuffer:
    """Losses of the full accumulation step, as on a single process."""
    whole = StepLossBuffer()
    of_roles, of_batches, of_samples = numbers.split([len(roles), len(counts), len(numbers) - len(roles) - len(counts)])
    whole.shares |= {role: [value] for role, value in zip(roles, of_roles, strict=True)}
    whole.numbers |= {name: [(counts[name], value)] for name, value in zip(counts, of_batches, strict=True)}
    whole.uses = accumulation_step.sample_keys
    whole.names = [names[use] for use in accumulation_step.sample_keys]
    whole.per_sample |= {
        kind: [row] for kind, row in zip(kinds, of_samples.view(len(kinds), accumulation_step.samples), strict=True)
    }
    return whole

"""What the processes of a run tell each other after an accumulation step: its gradients and losses, summed.

Each has divided its losses by the samples of the whole accumulation step, so the sums are the means that one process
would have computed. They are the same bits everywhere, and so is the step that every process then takes for itself.
Of weights that are sharded, FSDP2 has added the gradients up already (`memory/fsdp.py`).
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
    """What the host of one process knows of its part."""

    uses: list[tuple[int, int]]
    names: list[str]
    numbers: list[str]
    """Names of the numbers per sample."""

    roles: list[str]
    """Roles that had a loss."""

    batch_numbers: dict[str, int]
    """Name -> samples of the micro-batches that gave a number of the batch."""

    with_gradient: list[bool]
    """Of each parameter that is whole, whether it has a gradient here."""


def all_reduce_gradients_and_losses(
    run: Run, accumulation_step: AccumulationStep, own: StepLossBuffer | None
) -> StepLossBuffer | None:
    """The losses of the whole accumulation step, from each process's own; the gradients of weights that are whole
    here become the sums over all processes.

    own: None where the accumulation step was broken off, which then holds for all: None.
    """
    if run.process_group.is_single_process:
        return own
    parameters = [p for role in run.roles.values() for name, p in role.parameters.items() if name not in role.sharded]
    gathered = run.process_group.all_gather_object(None if own is None else _known(own, parameters))
    told = [known for known in gathered if known is not None]
    if own is None or len(told) < len(gathered):
        return None
    for parameter, *has_one in zip(parameters, *(known.with_gradient for known in told), strict=True):
        if any(has_one) and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    kinds = next(known.numbers for known in told if known.uses)
    roles = [name for name in run.roles if any(name in known.roles for known in told)]
    counts = sum((Counter(known.batch_numbers) for known in told), Counter[str]())
    numbers = _numbers(own, accumulation_step, roles, kinds, counts, _device(run))
    run.process_group.all_reduce_sum([*(p.grad for p in parameters if p.grad is not None), numbers])
    names = {use: name for known in told for use, name in zip(known.uses, known.names, strict=True)}
    return _losses(numbers, accumulation_step, roles, kinds, counts, names)


def _device(run: Run) -> torch.device:
    return next(p.device for role in run.roles.values() for p in role.parameters.values())


def _known(own: StepLossBuffer, parameters: list[torch.nn.Parameter]) -> _LocalPart:
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
    """The part of each role's mean loss, that of each number of a batch, then each kind of number for each sample of
    the accumulation step: zeros where another has it."""
    sums = [
        *(torch.stack(own.shares[role]).sum() if role in own.shares else 0.0 for role in roles),
        *(sum(count * mean for count, mean in own.numbers[name]) / counts[name] for name in counts),
    ]
    numbers = torch.zeros(len(sums) + len(kinds) * accumulation_step.samples, device=device)
    for index, value in enumerate(sums):
        numbers[index] = value
    if own.uses:
        place = {use: index for index, use in enumerate(accumulation_step.sample_keys)}
        mine = torch.tensor([place[use] for use in own.uses], device=device)
        rows = numbers[len(sums) :].view(len(kinds), accumulation_step.samples)
        for row, values in zip(rows, (own.per_sample[kind] for kind in kinds), strict=True):
            row[mine] = torch.cat([values_B.to(device, row.dtype) for values_B in values])
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

"""What the processes of a run tell each other after a window: its gradients and losses, added up.

Each has divided its losses by the samples of the whole window, so the sums are the means that one process would have
computed. They are the same bits everywhere, and so is the step that every process then takes for itself. Of weights
that are shared out, FSDP2 has added the gradients up already (`memory/sharding.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.train.results import WindowLosses
from toolkit.train.run import Run
from toolkit.train.windows import Window


@dataclass(frozen=True)
class _Known:
    """What the host of one process knows of its part."""

    uses: list[tuple[int, int]]
    names: list[str]
    numbers: list[str]
    """Names of the numbers per sample."""

    with_gradient: list[bool]
    """Of each parameter that is whole, whether it has a gradient here."""


def exchanged(run: Run, window: Window, own: WindowLosses | None) -> WindowLosses | None:
    """The losses of the whole window, from each process's own; the gradients of weights that are whole here become the
    sums over all processes.

    own: None where the window was broken off, which then holds for all: None.
    """
    if run.team.alone:
        return own
    parameters = [
        p for role in run.roles.values() for name, p in role.parameters.items() if name not in role.shared_out
    ]
    told = run.team.gather(None if own is None else _known(own, parameters))
    if None in told:
        return None
    for parameter, *has_one in zip(parameters, *(known.with_gradient for known in told), strict=True):
        if any(has_one) and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    kinds = next(known.numbers for known in told if known.uses)
    numbers = _numbers(own, window, kinds, _device(run))
    run.team.add_up([*(p.grad for p in parameters if p.grad is not None), numbers])
    names = {use: name for known in told for use, name in zip(known.uses, known.names, strict=True)}
    return _losses(numbers, window, kinds, names)


def _device(run: Run) -> torch.device:
    return next(p.device for role in run.roles.values() for p in role.parameters.values())


def _known(own: WindowLosses, parameters: list[Tensor]) -> _Known:
    return _Known(own.uses, own.names, list(own.by_sample), [p.grad is not None for p in parameters])


def _numbers(own: WindowLosses, window: Window, kinds: list[str], device: torch.device) -> Tensor:
    """The part of the mean loss, then each kind of number for each sample of the window: zeros where another has it."""
    numbers = torch.zeros(1 + len(kinds) * window.samples, device=device)
    if own.uses:
        numbers[0] = torch.stack(own.shares).sum()
        place = {use: index for index, use in enumerate(window.uses)}
        mine = torch.tensor([place[use] for use in own.uses], device=device)
        for row, values in zip(numbers[1:].view(len(kinds), -1), map(own.by_sample.get, kinds), strict=True):
            row[mine] = torch.cat([values_B.to(device, row.dtype) for values_B in values])
    return numbers


def _losses(numbers: Tensor, window: Window, kinds: list[str], names: dict[tuple[int, int], str]) -> WindowLosses:
    """As if one process had computed the whole window."""
    whole = WindowLosses()
    whole.shares, whole.uses = [numbers[0]], window.uses
    whole.names = [names[use] for use in window.uses]
    whole.by_sample |= {kind: [row] for kind, row in zip(kinds, numbers[1:].view(len(kinds), -1), strict=True)}
    return whole

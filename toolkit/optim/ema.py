"""An exponential moving average of the trained weights.

`Ema` holds the average of a role's parameters and updates it after each optimizer step,
without waiting for the device. `gamma_of` gives the power function of a width, by which
saved files are averaged afterwards.

`toolkit/train/roles.py` and `toolkit/train/optimizer_step.py` use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.errors import UserError


class Ema:
    """A float32 exponential moving average of named parameters, updated once per
    optimizer step.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> ema = Ema({"weight": weight}, decay=0.5)
    >>> with torch.no_grad():
    ...     _ = weight.zero_()
    >>> ema.update()
    >>> ema.averages["weight"]
    tensor([0.1818, 0.1818])
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """decay: in [0, 1); the average starts from the present parameters."""
        self.decay = decay
        self._parameters = dict(parameters)
        self.averages = {
            name: p.detach().clone().float() for name, p in self._parameters.items()
        }
        device = next((average.device for average in self.averages.values()), None)
        self._updates = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def updates(self) -> int:
        """Updates so far, without those where `step_ok` was false. Reading it waits for
        the device."""
        return int(self._updates)

    def load(self, averages: Mapping[str, Tensor], updates: int) -> None:
        """Restores the average and its update count from a checkpoint. Raises KeyError
        when the average of a parameter is missing."""
        copy_into(self.averages, averages)
        self._updates.fill_(updates)

    @torch.no_grad()
    def update(self, step_ok: Tensor | None = None) -> None:
        """average := decay * average + (1 - decay) * parameter; nothing where `step_ok`
        (0-dim bool) is false.

        Update n takes min(decay, (1 + n) / (10 + n)) as its decay, so that the first
        parameters are soon forgotten. It waits for the device only where averages are in
        CPU memory.
        """
        step_ok = (
            torch.ones_like(self._updates, dtype=torch.bool)
            if step_ok is None
            else step_ok.to(self._updates.device)
        )
        self._updates += step_ok
        # 1 - min(decay, (1 + n) / (10 + n)), on the device: only there the number of
        # updates n is known.
        weight = torch.full_like(self._updates, 1 - self.decay, dtype=torch.float32)
        weight = torch.maximum(weight, 9 / (10 + self._updates))
        weight = torch.where(step_ok, weight, 0.0)
        _lerp_(list(self.averages.values()), list(self._parameters.values()), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swaps the averages into the parameters inside the block, and restores the raw
        values after it, also after an error."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            copy_into(self._parameters, self.averages)
            yield
        finally:
            copy_into(self._parameters, trained)


def _lerp_(
    averages: Sequence[Tensor], parameters: Sequence[nn.Parameter], weight: Tensor
) -> None:
    """Moves each average towards its parameter. The averages of a swapped block may be
    in CPU memory while its parameters are on the device. One parameter is copied at a
    time."""
    on = {device: weight.to(device) for device in {a.device for a in averages}}
    weights = [on[average.device] for average in averages]
    if all(
        p.dtype == a.dtype and p.device == a.device
        for p, a in zip(parameters, averages, strict=True)
    ):
        torch._foreach_lerp_(list(averages), [p.detach() for p in parameters], weights)
        return
    for average, parameter, share in zip(averages, parameters, weights, strict=True):
        average.lerp_(parameter.detach().to(average.device, average.dtype), share)


MAX_SIGMA_REL = 12**-0.5
"""The width of gamma = 0, an even mean over all steps; no power with gamma >= 0 is
wider."""


def gamma_of(sigma_rel: float) -> float:
    """The power whose profile has this relative standard deviation, in (0,
    MAX_SIGMA_REL].

    The largest real root of (g + 2)^2 (g + 3) sigma^2 = g + 1. Source: arXiv
    2312.02696, appendix C and algorithm 2.

    Raises UserError when `sigma_rel` is not in this range.

    >>> round(gamma_of(0.1), 2)
    6.94
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL + 1e-9:
        raise UserError(
            f"sigma_rel: {sigma_rel:g} is out of range: must be above 0 and at most {MAX_SIGMA_REL:.4f}."
        )
    low = 0.0
    high = 1.0
    while _width(high) > sigma_rel:  # the width falls with gamma
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _width(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def _width(gamma: float) -> float:
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies values by name, in place, to the dtype and device of the target. Raises
    KeyError when a name of `target` is missing in `source`; other names of `source` are
    ignored."""
    for name, tensor in target.items():
        tensor.copy_(source[name])

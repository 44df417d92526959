"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.optim.decay import decay_at


class Ema:
    """Float32 averages of named parameters, updated once per optimizer step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, warm_up: bool = True) -> None:
        """decay: in [0, 1); the average starts from the parameters as they are."""
        self._parameters = dict(parameters)
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        self.averages = {name: p.detach().clone().float() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average := decay * average + (1 - decay) * parameter."""
        self.updates += 1
        weight = 1 - decay_at(self.updates, self.decay, self.warm_up)
        averages = list(self.averages.values())
        torch._foreach_lerp_(averages, [p.detach().float() for p in self._parameters.values()], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the averages inside the block and their own values again after it."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            copy_into(self._parameters, self.averages)
            yield
        finally:
            copy_into(self._parameters, own)

    def load(self, averages: Mapping[str, Tensor], updates: int) -> None:
        """Goes on from a saved average."""
        copy_into(self.averages, averages)
        self.updates = updates


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies values by name, in place. Raises KeyError when a name of `target` is missing in `source`."""
    for name, tensor in target.items():
        tensor.copy_(source[name])

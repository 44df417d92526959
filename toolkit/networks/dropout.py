"""Dropout of adapters: input, rank and module dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdapterDropout(nn.Module):
    """Three dropouts of one adapted layer, active while `training`; a rate of 0 uses no random numbers.

    Kept inputs and ranks are scaled by 1 / (1 - rate); module dropout is not scaled.
    """

    def __init__(self, inputs: float = 0.0, ranks: float = 0.0, module: float = 0.0) -> None:
        """Probabilities: of each input; of each rank, per sample; of the whole adapter, per call."""
        super().__init__()
        self.rates = {"inputs": inputs, "ranks": ranks, "module": module}

    def _rate(self, what: str) -> float:
        return self.rates[what] if self.training else 0.0

    def inputs(self, x: Tensor) -> Tensor:
        """`x` with dropped inputs."""
        rate = self._rate("inputs")
        return functional.dropout(x, rate) if rate else x

    def ranks(self, h: Tensor) -> Tensor:
        """`h` [samples, ..., ranks] with dropped ranks, per sample."""
        rate = self._rate("ranks")
        if not rate:
            return h
        shape = (h.shape[0], *[1] * (h.dim() - 2), h.shape[-1])
        return h * (torch.rand(shape, device=h.device) >= rate).to(h.dtype) / (1 - rate)

    def module(self, delta: Tensor) -> Tensor:
        """`delta`, or zeros where the module is dropped."""
        rate = self._rate("module")
        return delta * (torch.rand((), device=delta.device) >= rate).to(delta.dtype) if rate else delta

"""Dropout of adapters: input, rank and module dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdapterDropout(nn.Module):
    """Three dropouts of one adapted layer, in effect while `training`; a rate of 0 draws nothing.

    What is kept of inputs and ranks is enlarged to make up for what is dropped. A dropped module is not made up for.
    """

    def __init__(self, inputs: float = 0.0, ranks: float = 0.0, module: float = 0.0) -> None:
        """Probabilities: of each input; of each rank, per sample; of the whole adapter, per call."""
        super().__init__()
        self.rates = {"inputs": inputs, "ranks": ranks, "module": module}

    def _rate(self, what: str) -> float:
        return self.rates[what] if self.training else 0.0

    def inputs(self, x: Tensor) -> Tensor:
        """`x` with inputs left out."""
        rate = self._rate("inputs")
        return functional.dropout(x, rate) if rate else x

    def ranks(self, h: Tensor) -> Tensor:
        """`h` [samples, ..., ranks] with whole ranks of a sample left out."""
        rate = self._rate("ranks")
        if not rate:
            return h
        shape = (h.shape[0], *[1] * (h.dim() - 2), h.shape[-1])
        return h * (torch.rand(shape, device=h.device) >= rate).to(h.dtype) / (1 - rate)

    def module(self, change: Tensor) -> Tensor:
        """`change`, or zeros in its place."""
        rate = self._rate("module")
        return change * (torch.rand((), device=change.device) >= rate).to(change.dtype) if rate else change

"""LoKr: a delta kron(w1, w2) of each adapted layer; the second factor is low-rank or a full matrix.

A low-rank one is scaled by alpha / rank. With two full factors the scale is 1 whatever alpha is, as in LyCORIS and
ComfyUI.

Shapes: w1 [l, m], w2 [k, n] on a layer of m n inputs and l k outputs; R rank.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from toolkit.errors import UserError
from toolkit.network_kinds import KINDS
from toolkit.networks.adapter import AdapterLinear, LinearAdapterNetwork, kaiming_, linear
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.max_norm import product_norm


class LokrLinear(AdapterLinear):
    """Initialised as in LyCORIS: the last matrix is zero, the others are random."""

    def init_weights(self, random: torch.Generator) -> None:
        *others, last = self.layer_weights.values()
        for matrix in others:
            kaiming_(matrix.data, random)
        last.data.zero_()

    def delta(self, x: Tensor) -> Tensor:
        """kron(w1, w2) x without forming the product: x as a matrix [m, n] becomes w1 x w2^T."""
        parts = self.layer_weights
        h = x.unflatten(-1, (parts["lokr_w1"].shape[1], -1))
        for name in ("lokr_w2", "lokr_w2_b", "lokr_w2_a"):
            if name in parts:
                h = linear(h, parts[name])
        return linear(h.transpose(-1, -2), self.scale * parts["lokr_w1"]).transpose(-1, -2).flatten(-2)

    def delta_norm(self) -> Tensor:
        """|kron(w1, w2)| = |w1| |w2|."""
        parts = self.layer_weights
        whole = "lokr_w2" in parts
        second = vector_norm(parts["lokr_w2"]) if whole else product_norm(parts["lokr_w2_a"], parts["lokr_w2_b"])
        return self.scale * vector_norm(parts["lokr_w1"]) * second


class LokrNetwork(LinearAdapterNetwork):
    """A LoKr on the given linear layers."""

    kind = KINDS["lokr"]
    layer = LokrLinear

    def __init__(self, targets: Sequence[str], *settings: Any, factor: int = -1, whole: bool = False, **more: Any):
        """factor, whole: see `lokr_shapes`."""
        super().__init__(targets, *settings, **more)
        self.factor = factor
        self.whole = whole

    def scale_for(self, names: Container[str]) -> float:
        return 1.0 if "lokr_w2" in names and self.alpha else self.scale

    def alpha_of(self, target: str) -> float:
        """For two full factors the rank, so that readers that divide by it get a scale of 1."""
        return self.rank if f"{target}.lokr_w2" in self._parameters and self.alpha else self.alpha

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """A LoKr with factors of the same shapes."""
        if not {"lokr_w1", "lokr_w1_a"} & delta.parts.keys() or delta.magnitude is not None:
            raise UserError("network.pretrained_lora_path: a LoKr can only start from a LoKr file.")
        own = self.layer_weights(target)
        given, wanted = ({name: tuple(p.shape) for name, p in parts.items()} for parts in (delta.parts, own))
        if given != wanted:
            raise UserError(
                f"network.pretrained_lora_path: {target} has the factors {given} in the file and {wanted} here. "
                "Give network.linear, factor and lokr_full_rank the values the file was made with."
            )
        for name, matrix in delta.parts.items():
            own[name].copy_(matrix)
        own["lokr_w1"].mul_(delta.scale / self.scale_for(own))
        return 0.0

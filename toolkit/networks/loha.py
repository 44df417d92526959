"""LoHa: a delta (A1 B1) * (A2 B2), elementwise, of each adapted layer, scaled by alpha / rank.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.errors import UserError
from toolkit.network_kinds import KINDS
from toolkit.networks.adapter import AdapterLinear, LinearAdapterNetwork, linear
from toolkit.networks.lora_formats import LayerDelta


class LohaLinear(AdapterLinear):
    """Initialised as in LyCORIS: A1 [O, R] small normal, B1 and B2 [R, I] normal, A2 [O, R] zero."""

    hada_w1_a: nn.Parameter
    hada_w1_b: nn.Parameter
    hada_w2_a: nn.Parameter
    hada_w2_b: nn.Parameter

    def init_weights(self, random: torch.Generator) -> None:
        self.hada_w1_a.data.normal_(std=0.1, generator=random)
        self.hada_w1_b.data.normal_(std=1, generator=random)
        self.hada_w2_a.data.zero_()
        self.hada_w2_b.data.normal_(std=1, generator=random)

    def delta(self, x: Tensor) -> Tensor:
        # The product is as large as the layer's own weight: recomputed in the backward pass, never kept for it.
        return checkpoint(self._change, x, use_reentrant=False, preserve_rng_state=False)

    def _change(self, x: Tensor) -> Tensor:
        return linear(x, self._delta())

    def _delta(self) -> Tensor:
        """[O, I]"""
        return self.scale * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)

    def delta_norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._delta())


class LohaNetwork(LinearAdapterNetwork):
    """A LoHa on the given linear layers."""

    kind = KINDS["loha"]
    layer = LohaLinear

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """A LoHa of this rank or a smaller one.

        Ranks it does not fill have zeros in A1 and A2: no effect, but trainable.
        """
        given = delta.parts
        if "hada_w1_a" not in given or delta.magnitude is not None:
            raise UserError("network.pretrained_lora_path: a LoHa can only start from a LoHa file.")
        rank = len(given["hada_w1_b"])
        if rank > self.rank:
            raise UserError(
                f"network.pretrained_lora_path: the file has rank {rank}, which a LoHa cannot be cut from. "
                f"Set network.linear to {rank}."
            )
        for name in ("hada_w1", "hada_w2"):
            a, b = self.layer_weight(target, f"{name}_a"), self.layer_weight(target, f"{name}_b")
            a.zero_()
            a[:, :rank] = given[f"{name}_a"]
            b[:rank] = given[f"{name}_b"]
        self.layer_weight(target, "hada_w1_a")[:, :rank] *= delta.scale / self.scale
        return 0.0

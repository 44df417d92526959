"""LoHa and LoKr, computed as LyCORIS does.

LoHa: a delta (A1 B1) * (A2 B2), elementwise, of each adapted layer, scaled by alpha /
rank. LoKr: a delta kron(w1, w2); the second factor is low-rank or a full matrix. A
low-rank one is scaled by alpha / rank. With two full factors the scale is 1 for any
alpha, as in LyCORIS and ComfyUI.

`toolkit.contracts.network_kinds` names the two network classes, and trainers make them
by it. The package lycoris-lora is not used; `lycoris_library` trains its other kinds.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer. LoKr: w1 [l, m], w2
[k, n] on a layer of m n inputs and l k outputs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.utils.checkpoint import checkpoint

from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.networks.adapter import (
    AdapterLinear,
    LinearAdapterNetwork,
    kaiming_,
    linear,
    product_norm,
)
from toolkit.networks.lora_formats import LayerDelta


class LohaLinear(AdapterLinear):
    """A LoHa of one layer, initialised as in LyCORIS: A1 [O, R] small normal, B1 and B2
    [R, I] normal, A2 [O, R] zero.

    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> LohaNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1).attach(model)
    >>> type(model[0]).__name__, model[0].delta_norm().item()
    ('LohaLinear', 0.0)
    """

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
        # The product is as large as the layer's own weight, so it is not kept: the
        # backward pass computes it again.
        delta: Tensor = checkpoint(
            self._change, x, use_reentrant=False, preserve_rng_state=False
        )
        return delta

    def _change(self, x: Tensor) -> Tensor:
        return linear(x, self._delta())

    def _delta(self) -> Tensor:
        """[O, I]"""
        return (
            self.scale
            * (self.hada_w1_a @ self.hada_w1_b)
            * (self.hada_w2_a @ self.hada_w2_b)
        )

    def delta_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self._delta())
        return norm


class LohaNetwork(LinearAdapterNetwork):
    """A LoHa on the given linear layers.

    >>> network = LohaNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1)
    >>> network.attach(nn.Sequential(nn.Linear(8, 8)))
    >>> list(network.parameters())[:2]
    ['0.hada_w1_a', '0.hada_w1_b']
    """

    kind = KINDS["loha"]
    layer = LohaLinear

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Loads a LoHa of this rank or a smaller one.

        The other ranks have zeros in A1 and A2: they have no effect yet, but are
        trained.
        """
        given = delta.parts
        if "hada_w1_a" not in given or delta.magnitude is not None:
            raise UserError(
                "network.pretrained_lora_path: a LoHa can only start from a LoHa file."
            )
        rank = len(given["hada_w1_b"])
        if rank > self.rank:
            raise UserError(
                f"network.pretrained_lora_path: the file has rank {rank}, which a LoHa cannot be cut from. "
                f"Set network.linear to {rank}."
            )
        for name in ("hada_w1", "hada_w2"):
            a = self.layer_weight(target, f"{name}_a")
            b = self.layer_weight(target, f"{name}_b")
            a.zero_()
            a[:, :rank] = given[f"{name}_a"]
            b[:rank] = given[f"{name}_b"]
        self.layer_weight(target, "hada_w1_a")[:, :rank] *= delta.scale / self.scale
        return 0.0


class LokrLinear(AdapterLinear):
    """A LoKr of one layer, initialised as in LyCORIS: the last matrix is zero, the
    others are random.

    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> LokrNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1).attach(model)
    >>> type(model[0]).__name__, model[0].delta_norm().item()
    ('LokrLinear', 0.0)
    """

    def init_weights(self, random: torch.Generator) -> None:
        *others, last = self.layer_weights.values()
        for matrix in others:
            kaiming_(matrix.data, random)
        last.data.zero_()

    def delta(self, x: Tensor) -> Tensor:
        """kron(w1, w2) x without forming the product: x as a matrix [m, n] becomes w1 x
        w2^T."""
        parts = self.layer_weights
        h = x.unflatten(-1, (parts["lokr_w1"].shape[1], -1))
        for name in ("lokr_w2", "lokr_w2_b", "lokr_w2_a"):
            if name in parts:
                h = linear(h, parts[name])
        return (
            linear(h.transpose(-1, -2), self.scale * parts["lokr_w1"])
            .transpose(-1, -2)
            .flatten(-2)
        )

    def delta_norm(self) -> Tensor:
        """|kron(w1, w2)| = |w1| |w2|."""
        parts = self.layer_weights
        whole = "lokr_w2" in parts
        if whole:
            second = vector_norm(parts["lokr_w2"])
        else:
            second = product_norm(parts["lokr_w2_a"], parts["lokr_w2_b"])
        norm: Tensor = self.scale * vector_norm(parts["lokr_w1"]) * second
        return norm


class LokrNetwork(LinearAdapterNetwork):
    """A LoKr on the given linear layers.

    >>> network = LokrNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1)
    >>> network.attach(nn.Sequential(nn.Linear(8, 8)))
    >>> list(network.parameters())
    ['0.lokr_w1', '0.lokr_w2']
    """

    kind = KINDS["lokr"]
    layer = LokrLinear

    def __init__(
        self,
        targets: Sequence[str],
        *settings: Any,
        factor: int = -1,
        whole: bool = False,
        **more: Any,
    ):
        """factor, whole: see `lokr_shapes`."""
        super().__init__(targets, *settings, **more)
        self.factor = factor
        self.whole = whole

    def scale_for(self, names: Container[str]) -> float:
        return 1.0 if "lokr_w2" in names and self.alpha else self.scale

    def alpha_of(self, target: str) -> float:
        """The alpha of a layer. With two full factors it is the rank, so that readers
        that divide by the rank get a scale of 1."""
        if f"{target}.lokr_w2" in self._parameters and self.alpha:
            return self.rank
        return self.alpha

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Loads a LoKr with factors of the same shapes."""
        if (
            not {"lokr_w1", "lokr_w1_a"} & delta.parts.keys()
            or delta.magnitude is not None
        ):
            raise UserError(
                "network.pretrained_lora_path: a LoKr can only start from a LoKr file."
            )
        factors = self.layer_weights(target)
        given = {name: tuple(factor.shape) for name, factor in delta.parts.items()}
        wanted = {name: tuple(factor.shape) for name, factor in factors.items()}
        if given != wanted:
            raise UserError(
                f"network.pretrained_lora_path: {target} has the factors {given} in the file and {wanted} here. "
                "Give network.linear, factor and lokr_full_rank the values the file was made with."
            )
        for name, matrix in delta.parts.items():
            factors[name].copy_(matrix)
        factors["lokr_w1"].mul_(delta.scale / self.scale_for(factors))
        return 0.0

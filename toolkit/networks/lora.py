"""LoRA: a low-rank change B A of each adapted linear layer, scaled by alpha / rank.

The matrices are float32; they are used in the dtype of the layer's input, as under torch's autocast. Layers that read
the same input have their down matrices applied in one product.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; started as peft's LoraLayer starts.

Shape suffixes: N tokens of all samples, R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.network_kinds import KINDS
from toolkit.networks.adapter import AdaptedLinear, AdapterNetwork, LayersNetwork, kaiming_, linear
from toolkit.networks.fit import fit
from toolkit.networks.formats import ModuleChange
from toolkit.networks.max_norm import product_norm


class LoraLinear(AdaptedLinear):
    """A [R, I] random and B [O, R] zero at the start."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    siblings: SharedInput | None = None
    """Set where other layers read the same input."""

    def start(self, random: torch.Generator) -> None:
        kaiming_(self.lora_A.data, random)
        self.lora_B.data.zero_()

    def add_change(self, out: Tensor, x: Tensor) -> Tensor:
        # A compiler sees for itself what is computed twice, and nothing of what is remembered in between.
        siblings = None if torch.compiler.is_compiling() else self.siblings
        low_R = self.low(x) if siblings is None else siblings.low(self, x)
        if self.thinning.rates["module"]:
            return out + self.thinning.module(self.scale * linear(low_R, self.lora_B))
        # One pass over the output: the product is added where it is made.
        up_RO = self.lora_B.t().to(x.dtype)
        return torch.addmm(out.flatten(0, -2), low_R.flatten(0, -2), up_RO, alpha=self.scale).view(out.shape)

    def low(self, x: Tensor) -> Tensor:
        """A x, [..., R]."""
        return self.thinning.ranks(linear(self.thinning.inputs(x), self.lora_A))

    def change(self, x: Tensor) -> Tensor:
        return self.scale * linear(self.low(x), self.lora_B)

    def change_norm(self) -> Tensor:
        return self.scale * product_norm(self.lora_B, self.lora_A)


class SharedInput:
    """Layers that are called one after the other with the same input, such as the query, key and value of attention.

    The first call applies the down matrices of all; the others take theirs. An input that only some of them are called
    with costs a little more, and is right all the same.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self.layers = tuple(layers)
        self._input: tuple[weakref.ref[Tensor], int] | None = None
        """The input `_low` was made from, and how often it had been written to by then."""
        self._low: dict[LoraLinear, Tensor] = {}

    def low(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """`layer.low(x)`."""
        if layer.thinning.training and layer.thinning.rates["inputs"]:
            return layer.low(x)  # each layer leaves out other inputs
        if layer not in self._low or not self._is_of(x):
            self._apply_all(x)
        return layer.thinning.ranks(self._low.pop(layer))

    def _is_of(self, x: Tensor) -> bool:
        return self._input is not None and self._input[0]() is x and self._input[1] == x._version

    def _apply_all(self, x: Tensor) -> None:
        down_RI = torch.cat([layer.lora_A for layer in self.layers])
        parts = linear(x, down_RI).split([len(layer.lora_A) for layer in self.layers], dim=-1)
        self._input = weakref.ref(x), x._version
        self._low = dict(zip(self.layers, parts, strict=True))


class LoraNetwork(LayersNetwork):
    """A LoRA on the given linear layers.

    Its files, `.lora_A.weight` / `.lora_B.weight` and `.alpha`, load in ComfyUI and diffusers.
    """

    kind = KINDS["lora"]
    layer = LoraLinear

    def share_inputs(self, groups: Iterable[Sequence[str]]) -> None:
        """Their down matrices are applied in one product."""
        for group in groups:
            layers = [layer for target in group if isinstance(layer := self.layers.get(target), LoraLinear)]
            if len(layers) > 1:
                shared = SharedInput(layers)
                for layer in layers:
                    layer.siblings = shared

    def take_over(self, target: str, change: ModuleChange) -> float:
        """A smaller rank is filled up, a larger one or another kind cut by SVD.

        Rows of A that the file does not fill keep their random start and have zeros in B: no effect, but trainable.
        """
        if change.magnitude is not None:
            raise UserError("network.pretrained_lora_path: the file is a DoRA. Set network.type to dora.")
        return take_over_low_rank(self, target, change)


def take_over_low_rank(network: AdapterNetwork, target: str, change: ModuleChange) -> float:
    """Fills the down and up matrix of a layer with the nearest change of the network's rank; its relative error."""
    up_OR, down_RI, error = fit(change, network.rank)
    a, b = (network.part(target, f"{matrix}.weight") for matrix in ("lora_A", "lora_B"))
    a[: len(down_RI)] = down_RI
    b[:, : up_OR.shape[1]] = up_OR / network.scale
    return error

"""DoRA: the weight W of each adapted layer becomes m (W + d) / |W + d|, with the LoRA d = alpha / rank B A.

|.| is the norm of each input column, as the paper writes it (https://arxiv.org/abs/2402.09353, equation 5) and as
ComfyUI reads it from a file; peft and LyCORIS' default take the norm of each output row instead. The norm counts as a
constant for gradients (section 4.3 of the paper).

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.network_kinds import KINDS
from toolkit.networks.adapter import AdapterLinear, LinearAdapterNetwork, dequantized_weight, kaiming_, linear
from toolkit.networks.lora import take_over_low_rank
from toolkit.networks.lora_formats import LayerDelta, dora_norm
from toolkit.networks.max_norm import product_norm


class DoraLinear(AdapterLinear):
    """A [R, I] random and B [O, R] zero at the start; the network then sets m [1, I] to the norm of W."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    dora_scale: nn.Parameter

    needs_base = KINDS["dora"].needs_base

    def init_weights(self, random: torch.Generator) -> None:
        kaiming_(self.lora_A.data, random)
        self.lora_B.data.zero_()

    @torch.no_grad()
    def norm(self) -> Tensor:
        """[1, I] of W + d."""
        weight_OI = torch.addmm(dequantized_weight(self.base_layer), self.lora_B, self.lora_A, alpha=self.scale)
        return dora_norm(weight_OI, axis=0)

    def add_delta(self, out: Tensor, x: Tensor) -> Tensor:
        return out + self.adapter_dropout.module(self.delta(x))

    def delta(self, x: Tensor) -> Tensor:
        """(c - 1) x through W and c x through d, c = m / |W + d| for each input.

        c x through W would save a product, but near 1 a half-precision c x is x: small changes of m would be lost.
        """
        c_I = (self.dora_scale / self.norm())[0]
        wide = x.float()
        low_R = self.adapter_dropout.ranks(linear(self.adapter_dropout.inputs(wide * c_I), self.lora_A))
        from_base = functional.linear((wide * (c_I - 1)).to(x.dtype), self.base_layer.weight)
        return from_base + (self.scale * linear(low_R, self.lora_B)).to(x.dtype)

    def delta_norm(self) -> Tensor:
        """Norm of d, the low-rank part, without the magnitude."""
        return self.scale * product_norm(self.lora_B, self.lora_A)

    def factors(self) -> list[nn.Parameter]:
        return [self.lora_A, self.lora_B]


class DoraNetwork(LinearAdapterNetwork):
    """A DoRA on the given linear layers."""

    kind = KINDS["dora"]
    layer = DoraLinear

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        for layer in self.layers.values():
            assert isinstance(layer, DoraLinear)  # the class that `layer` names
            layer.dora_scale.data.copy_(layer.norm())  # on the layer's device, as in training: m / |W| is exactly 1

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Loads the low-rank part as a LoRA does; the magnitude of the file, or else the norm of W + d."""
        magnitude_1I = delta.magnitude
        own_1I = self.layer_weight(target, "dora_scale")
        if magnitude_1I is not None and magnitude_1I.shape != own_1I.shape:
            raise UserError(
                "network.pretrained_lora_path: the file's DoRA scales output rows, here input columns are scaled. "
                "It cannot be taken over."
            )
        error = take_over_low_rank(self, target, delta)
        layer = self.layers[target]
        assert isinstance(layer, DoraLinear)  # the class that `layer` names
        own_1I.copy_(layer.norm() if magnitude_1I is None else magnitude_1I)
        return error

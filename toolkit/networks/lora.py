"""LoRA: a low-rank delta B A of each adapted linear layer, scaled by alpha / rank. DoRA: the same delta on the
direction of the weight.

The matrices are float32; they are used in the dtype of the layer's input, as under torch's autocast. Layers that read
the same input have their down matrices applied in one product.
Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; started as peft's LoraLayer starts.

With DoRA the weight W of each adapted layer becomes m (W + d) / |W + d|, with the LoRA d = alpha / rank B A. |.| is
the norm of each input column, as the paper writes it (https://arxiv.org/abs/2402.09353, equation 5) and as ComfyUI
reads it from a file; peft and LyCORIS' default take the norm of each output row instead. The norm counts as a
constant for gradients (section 4.3 of the paper).

Shape suffixes: N tokens of all samples, R rank, I inputs of a layer, O outputs of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.networks.adapter import (
    AdapterLinear,
    LinearAdapterNetwork,
    dequantized_weight,
    kaiming_,
    linear,
    product_norm,
)
from toolkit.networks.block_casts import BlockCasts
from toolkit.networks.kinds import KINDS
from toolkit.networks.lora_formats import LayerDelta, dora_norm
from toolkit.networks.svd import extract_lora


class LowRankLinear(AdapterLinear):
    """A [R, I] is initialised randomly, B [O, R] with zeros."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def init_weights(self, random: torch.Generator) -> None:
        kaiming_(self.lora_A.data, random)
        self.lora_B.data.zero_()

    def delta_norm(self) -> Tensor:
        """Norm of the low-rank part, without a magnitude."""
        return self.scale * product_norm(self.lora_B, self.lora_A)


class LoraLinear(LowRankLinear):
    """A LoRA."""

    fused_group: FusedDownProjection | None = None
    """Set where other layers read the same input."""

    cast_down: Tensor | None = None
    cast_up: Tensor | None = None
    """The matrices in the dtype of the block's inputs, while the block runs (`BlockCasts`)."""

    def add_delta(self, out: Tensor, x: Tensor, *shared: Tensor) -> Tensor:
        """shared: the product of `x` with the down matrix."""
        low_R = self.adapter_dropout.ranks(shared[0]) if shared else self.down(x)
        if self.adapter_dropout.rates["module"]:
            return out + self.adapter_dropout.module(self.scale * linear(low_R, self.up_for(x)))
        # One pass over the output: the product is added where it is made. Compiled: see `UnfusedSums`.
        up_RO = self.up_for(x).t().to(x.dtype)
        return torch.addmm(out.flatten(0, -2), low_R.flatten(0, -2), up_RO, alpha=self.scale).view(out.shape)

    def down(self, x: Tensor) -> Tensor:
        """A x, [..., R]."""
        down_RI = cast_or(self.cast_down, x, lambda: self.lora_A)
        return self.adapter_dropout.ranks(linear(self.adapter_dropout.inputs(x), down_RI))

    def up_for(self, x: Tensor) -> Tensor:
        """B, in the dtype of `x` or its own."""
        return cast_or(self.cast_up, x, lambda: self.lora_B)

    def delta(self, x: Tensor) -> Tensor:
        return self.scale * linear(self.down(x), self.up_for(x))


def cast_or(cast: Tensor | None, x: Tensor, parameter: Callable[[], Tensor]) -> Tensor:
    """`cast` where it has the dtype of `x`, else the parameter."""
    return parameter() if cast is None or cast.dtype != x.dtype else cast


class FusedDownProjection:
    """Layers that read the same input, such as the query, key and value of attention."""

    cast_down: Tensor | None = None
    """Their down matrices, as in `LoraLinear`."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self.layers = tuple(layers)

    def is_shared(self) -> bool:
        """Whether one product serves them all now: input dropout differs between them."""
        dropout = self.layers[0].adapter_dropout
        return not self.layers[0].disabled and not (dropout.training and dropout.rates["inputs"])

    def down(self, x: Tensor) -> Sequence[Tensor]:
        """A x of each layer, in one product."""
        down_RI = cast_or(self.cast_down, x, lambda: torch.cat([layer.lora_A for layer in self.layers]))
        return linear(x, down_RI).split([len(layer.lora_A) for layer in self.layers], dim=-1)


class LoraNetwork(LinearAdapterNetwork):
    """A LoRA on the given linear layers.

    Its files, `.lora_A.weight` / `.lora_B.weight` and `.alpha`, load in ComfyUI and diffusers.
    """

    kind = KINDS["lora"]
    layer = LoraLinear

    def fuse_projections(self, groups: Iterable[Sequence[str]]) -> None:
        """Applies their down matrices in one product."""
        for group in groups:
            layers = [layer for target in group if isinstance(layer := self.layers.get(target), LoraLinear)]
            if len(layers) > 1:
                shared = FusedDownProjection(layers)
                for layer in layers:
                    layer.fused_group = shared

    def cast_by_block(self, blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            layers = [layer for layer in block.modules() if isinstance(layer, LoraLinear)]
            if layers:
                setattr(block, "adapter_casts", BlockCasts(layers))  # noqa: B010 - mypy does not accept a plain attribute of a module

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Pads a smaller rank; truncates a larger one or another kind by SVD.

        Further rows of A stay random, with zeros in B: no effect, but trainable.
        """
        if delta.magnitude is not None:
            raise UserError("network.pretrained_lora_path: the file is a DoRA. Set network.type to dora.")
        return take_over_low_rank(self, target, delta)


def take_over_low_rank(network: LinearAdapterNetwork, target: str, change: LayerDelta) -> float:
    """Loads the nearest delta of the network's rank into the matrices of a layer; returns the relative error."""
    up_OR, down_RI, error = extract_lora(change, network.rank)
    a, b = (network.layer_weight(target, f"{matrix}.weight") for matrix in ("lora_A", "lora_B"))
    a[: len(down_RI)] = down_RI
    b[:, : up_OR.shape[1]] = up_OR / network.scale
    return error


class DoraLinear(LowRankLinear):
    """A DoRA. At the start the network sets m [1, I] to the norm of W."""

    dora_scale: nn.Parameter

    needs_base = KINDS["dora"].needs_base

    @torch.no_grad()
    def norm(self) -> Tensor:
        """[1, I] of W + d."""
        weight_OI = torch.addmm(dequantized_weight(self.base_layer), self.lora_B, self.lora_A, alpha=self.scale)
        return dora_norm(weight_OI, axis=0)

    def add_delta(self, out: Tensor, x: Tensor, *shared: Tensor) -> Tensor:
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

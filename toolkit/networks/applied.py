"""Adapter files applied to a frozen model, several at a time, each with a strength;
exchanged without loading the model again. Layers may be quantized or wait in the CPU
memory, and may carry a network that is trained.

A weight W becomes W plus, for each file, strength times (F - W), where F is W with that
file applied: for a LoRA, LoHa or LoKr strength times its delta. A DoRA, OFT, BOFT or
GLoRA counts from the weight of the model, whatever other files add. Between 0 and 1 an
OFT is therefore a mean of two weights and no smaller turn: LyCORIS mixes the same at
the block, before `rescale`, and at each rotation of a BOFT; peft has no strength. All
agree at 1.

Shape suffixes: I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.networks.adapter import AdapterLinear, Addition, dequantized_weight, linear
from toolkit.networks.lora_formats import NO_BIAS, LayerDelta, dora_norm, factor

Changes = Mapping[str, LayerDelta]
"""The changes of one file by full dotted module name."""

Additions = Mapping[str, Sequence[Addition]]
"""What is added to each layer, by full dotted module name."""


class AdaptedLayer(nn.Module):
    """A frozen linear layer with changes that can be exchanged; no parameters, so that
    block swap leaves them alone."""

    def __init__(self, base_layer: nn.Module, needs_base: bool) -> None:
        """needs_base: whether a change may be computed with the frozen weight
        (`LayerDelta.needs_base`)."""
        super().__init__()
        self.base_layer = base_layer
        self.needs_base = needs_base
        self.additions: Sequence[Addition] = ()

    def forward_with_base_output(self, out: Tensor, x: Tensor) -> Tensor:
        """`out`, the output of the frozen layer for inputs `x`, with all changes."""
        for add in self.additions:
            out = add(out, x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_base_output(self.base_layer(x), x)


class AppliedAdapters:
    """The layers of a model that a set of files changes; `use` says which files count,
    and how much."""

    def __init__(
        self, model: nn.Module, files: Iterable[Changes], device: torch.device
    ) -> None:
        """files: all that `use` will be given. device: where the model computes.

        Changes the model: the layers are replaced.
        """
        self._device = device
        needs_base: dict[str, bool] = {}
        for changes in files:
            for name, change in changes.items():
                needs_base[name] = needs_base.get(name, False) or change.needs_base
        self._layers: dict[str, AdaptedLayer | AdapterLinear] = {}
        for name, needs in needs_base.items():
            layer = model.get_submodule(name)
            # the files count as a part of the frozen layer
            if isinstance(layer, AdapterLinear):
                layer.needs_base = layer.needs_base or needs
                self._layers[name] = layer
            else:
                self._layers[name] = AdaptedLayer(layer, needs)
                model.set_submodule(name, self._layers[name])

    @torch.no_grad()
    def additions(self, chosen: Sequence[tuple[Changes, float]]) -> Additions:
        """What these files, each with its strength, add to the layers."""
        additions: dict[str, Sequence[Addition]] = {}
        for name, layer in self._layers.items():
            changes = [
                (changes[name], strength)
                for changes, strength in chosen
                if name in changes and strength
            ]
            # nn.Identity where a table has its outputs, to which the change is added
            base = layer.base_layer
            has_no_bias = hasattr(base, "bias") and base.bias is None
            if has_no_bias and any(change.bias is not None for change, _ in changes):
                raise UserError(f"the bias of {name} is changed. {NO_BIAS}")
            additions[name] = [
                _addition(layer, change.to(self._device), strength)
                for change, strength in changes
            ]
        return additions

    def activate(self, additions: Additions) -> None:
        """From here on these are added, and no others."""
        for name, layer in self._layers.items():
            layer.additions = additions.get(name, ())

    def use(self, chosen: Sequence[tuple[Changes, float]]) -> None:
        """From here on the model has the changes of these files, each with its
        strength; of no others."""
        self.activate(self.additions(chosen))


class NamedAdapters:
    """Adapter files beside a trained network, of which at most one is active at a time;
    exchanging them costs nothing.

    They are not part of the network: they have no gradient and are in none of its
    files.
    """

    def __init__(
        self,
        model: nn.Module,
        files: Mapping[str, tuple[Changes, float]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """files: name -> changes and strength. dtype: in which the model computes;
        plain LoRAs are kept in it.

        Changes the model: the layers are replaced. The network has to be attached. None
        is active yet.
        """
        lighter = {}
        for changes, _ in files.values():
            lighter[id(changes)] = _in_dtype(changes, dtype)
        self._applied = AppliedAdapters(model, lighter.values(), device)
        self._additions: dict[str, Additions] = {
            name: self._applied.additions([(lighter[id(changes)], strength)])
            for name, (changes, strength) in files.items()
        }
        self._active = ""

    def activate(self, name: str) -> None:
        """From here on this file is active; none with a name that has no file, such as
        an empty one."""
        self._applied.activate(self._additions.get(name, {}))
        self._active = name

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """This file, or none with an empty name, is active inside the block; after it
        the one before."""
        before = self._active
        self.activate(name)
        try:
            yield
        finally:
            self.activate(before)


def _in_dtype(changes: Changes, dtype: torch.dtype) -> Changes:
    """Plain LoRAs in the dtype in which they are used; what else is computed with stays
    in float32."""
    return {
        name: replace(
            change,
            parts={part: tensor.to(dtype) for part, tensor in change.parts.items()},
        )
        if change.parts.keys() == {"up", "down"}
        else change
        for name, change in changes.items()
    }


def _addition(
    layer: AdaptedLayer | AdapterLinear, change: LayerDelta, strength: float
) -> Addition:
    add = _weight_addition(layer, change, strength)
    if change.bias is None:
        return add
    bias_O = strength * change.bias
    return lambda out, x: add(out, x) + bias_O.to(out.dtype)


def _weight_addition(
    layer: AdaptedLayer | AdapterLinear, change: LayerDelta, strength: float
) -> Addition:
    if change.magnitude is not None:
        return _dora_addition(layer, change, strength)
    if change.needs_base:
        return _multiplied_addition(layer, change, strength)
    delta = _delta_product(change)
    if change.low_rank is None:
        return lambda out, x: out + strength * delta(x)
    down_RI = change.parts["down"]
    up_OR = change.parts["up"]
    scale = strength * change.scale

    def add(out: Tensor, x: Tensor) -> Tensor:
        # As the trainer's own layer: the product is added where it is made.
        low_R = linear(x, down_RI).flatten(0, -2)
        return torch.addmm(
            out.flatten(0, -2), low_R, up_OR.t().to(x.dtype), alpha=scale
        ).view(out.shape)

    return add


def _delta_product(change: LayerDelta) -> Callable[[Tensor], Tensor]:
    """From inputs to the delta of the outputs, in their dtype; of a DoRA the one before
    its magnitude."""
    parts = change.parts
    scale = change.scale
    if "up" in parts:
        return lambda x: scale * linear(linear(x, parts["down"]), parts["up"])
    if "hada_w1_a" in parts:
        # as large as the weight: made at each use, never kept
        return lambda x: linear(x, change.delta())
    first = scale * factor(parts, "lokr_w1")
    second = factor(parts, "lokr_w2")

    def kronecker(x: Tensor) -> Tensor:
        """kron(first, second) x without forming the product: x as a matrix becomes
        first x second^T."""
        h = linear(x.unflatten(-1, (first.shape[1], -1)), second)
        return linear(h.transpose(-1, -2), first).transpose(-1, -2).flatten(-2)

    return kronecker


def _dora_addition(
    layer: AdaptedLayer | AdapterLinear, change: LayerDelta, strength: float
) -> Addition:
    """m (W + d) / |W + d| - W, with the ratio c = m / |W + d| of each input, (c - 1) W + c d, or of each output."""
    base = layer.base_layer
    assert isinstance(base, nn.Linear) and change.magnitude is not None
    of_inputs = change.magnitude.shape[0] == 1
    weight_OI = dequantized_weight(base, change.magnitude.device) + change.delta()
    ratio = (
        change.magnitude / dora_norm(weight_OI, axis=0 if of_inputs else 1)
    ).flatten()
    delta = _delta_product(change)

    def add(out: Tensor, x: Tensor) -> Tensor:
        wide = x.float()
        if of_inputs:
            # Near 1 a half-precision c x is x, and small changes of m would be lost:
            # hence c - 1.
            from_base = functional.linear((wide * (ratio - 1)).to(x.dtype), base.weight)
            change_of = from_base + delta(wide * ratio).to(x.dtype)
        else:
            change_of = (
                (ratio - 1) * functional.linear(x, base.weight).float()
                + ratio * delta(wide)
            ).to(x.dtype)
        return out + strength * change_of

    return add


def _multiplied_addition(
    layer: AdaptedLayer | AdapterLinear, change: LayerDelta, strength: float
) -> Addition:
    """What a rotation or a GLoRA adds: computed in float32, but for the product with
    the frozen weight itself."""
    base = layer.base_layer
    assert isinstance(base, nn.Linear)

    def add(out: Tensor, x: Tensor) -> Tensor:
        def frozen(inputs: Tensor) -> Tensor:
            return functional.linear(inputs.to(x.dtype), base.weight).float()

        return out + (strength * change.output_delta(x.float(), frozen)).to(out.dtype)

    return add

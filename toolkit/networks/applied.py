"""Applies adapter files to a frozen model, several at a time, each with a strength.
They are exchanged without loading the model again. Layers may be quantized or wait in
CPU memory, and may have a network that is trained.

A weight W becomes W plus, for each file, strength times (F - W), where F is W with that
file applied. For a LoRA, LoHa or LoKr this is strength times its delta. A DoRA, OFT,
BOFT or GLoRA starts from the weight of the model, without the changes of other files.
Between 0 and 1 an OFT is therefore a mean of two weights and not a smaller rotation:
LyCORIS mixes the same at the block, before `rescale`, and at each rotation of a BOFT;
peft has no strength. All agree at 1.

The weights themselves do not change: `merge` changes them. `lora_formats` reads the
files. Trainers use `NamedAdapters` next to a trained network; tools that generate or
compare images use `AppliedAdapters`.

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
"""Full dotted module name -> the functions that add changes to the layer's output."""


class AdaptedLayer(nn.Module):
    """A frozen linear layer with changes that can be exchanged. They are not
    parameters, so block swap does not move them.

    >>> layer = AdaptedLayer(nn.Identity(), needs_base=False)
    >>> layer.additions = [lambda out, x: out + 1]
    >>> layer(torch.zeros(2))
    tensor([1., 1.])
    """

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
    """The layers of a model that a set of files changes. `use` chooses the files that
    are applied, and their strengths.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> change = LayerDelta({"up": torch.ones(2, 1), "down": torch.ones(1, 2)}, 1.0)
    >>> adapters = AppliedAdapters(model, [{"0": change}], torch.device("cpu"))
    >>> adapters.use([({"0": change}, 0.8)])
    """

    def __init__(
        self, model: nn.Module, files: Iterable[Changes], device: torch.device
    ) -> None:
        """files: all files that `use` will get. device: where the model computes.

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
        """The additions of these files to the layers, each file with its strength."""
        additions: dict[str, Sequence[Addition]] = {}
        for name, layer in self._layers.items():
            changes = [
                (changes[name], strength)
                for changes, strength in chosen
                if name in changes and strength
            ]
            # An nn.Identity has no bias: a table holds its outputs.
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
        """Applies these additions from now on, and no others."""
        for name, layer in self._layers.items():
            layer.additions = additions.get(name, ())

    def use(self, chosen: Sequence[tuple[Changes, float]]) -> None:
        """Applies the changes of these files from now on, each with its strength, and
        no others."""
        self.activate(self.additions(chosen))


class NamedAdapters:
    """Adapter files next to a trained network. At most one is active at a time;
    exchanging them takes no time.

    They are not part of the network: they have no gradient and are not in its files.

    Example::

        adapters = NamedAdapters(model, {"teacher": (changes, 1.0)}, device, dtype)
        with adapters.using("teacher"):
            prediction = model(batch)
    """

    def __init__(
        self,
        model: nn.Module,
        files: Mapping[str, tuple[Changes, float]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """files: name -> changes and strength. dtype: the model's compute dtype; plain
        LoRAs are kept in it.

        Changes the model: the layers are replaced. The network has to be attached. At
        first no file is active.
        """
        lighter = {
            id(changes): _in_dtype(changes, dtype) for changes, _ in files.values()
        }
        self._applied = AppliedAdapters(model, lighter.values(), device)
        self._additions: dict[str, Additions] = {
            name: self._applied.additions([(lighter[id(changes)], strength)])
            for name, (changes, strength) in files.items()
        }
        self._active = ""

    def activate(self, name: str) -> None:
        """Makes this file active. A name without a file, such as an empty one, makes
        none active."""
        self._applied.activate(self._additions.get(name, {}))
        self._active = name

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Makes this file active inside the block, or none with an empty name; restores
        the previous one after it."""
        before = self._active
        self.activate(name)
        try:
            yield
        finally:
            self.activate(before)


def _in_dtype(changes: Changes, dtype: torch.dtype) -> Changes:
    """Plain LoRAs in the dtype in which they are used; other kinds stay in float32."""
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
        # As in the trainer's own layer: `addmm` adds the product while it is computed.
        low_R = linear(x, down_RI).flatten(0, -2)
        return torch.addmm(
            out.flatten(0, -2), low_R, up_OR.t().to(x.dtype), alpha=scale
        ).view(out.shape)

    return add


def _delta_product(change: LayerDelta) -> Callable[[Tensor], Tensor]:
    """A function from inputs to the delta of the outputs, in their dtype. For a DoRA
    this is the delta before its magnitude."""
    parts = change.parts
    scale = change.scale
    if "up" in parts:
        return lambda x: scale * linear(linear(x, parts["down"]), parts["up"])
    if "hada_w1_a" in parts:
        # the delta is as large as the weight: it is made at each use, and not kept
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
    """The addition of a rotation or a GLoRA. It is computed in float32, except the
    product with the frozen weight."""
    base = layer.base_layer
    assert isinstance(base, nn.Linear)

    def add(out: Tensor, x: Tensor) -> Tensor:
        def frozen(inputs: Tensor) -> Tensor:
            return functional.linear(inputs.to(x.dtype), base.weight).float()

        return out + (strength * change.output_delta(x.float(), frozen)).to(out.dtype)

    return add

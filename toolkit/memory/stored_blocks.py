"""Converts quantized blocks to plain tensors and JSON values, and back, for a copy of
them on the disk.

It writes and reads no file: `toolkit.train.base_model` keeps the copies in a cache, so
that the next run does not quantize again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.memory import quantization
from toolkit.memory.quantization import QuantizedLinear, QuantizedWeight

Described = dict[str, Any]
"""A quantized weight without its tensors, in JSON values."""

_OF_MODULES = frozenset(vars(nn.Module()))


def describe(block: nn.Module) -> dict[str, Described]:
    """The quantized layers of a block by their names in it. `restore` makes them again
    from the block's `state_dict`.

    Example: `describe(block)["attn.to_q"]["class"] == "GroupwiseQuantized"`
    """
    layers = (
        (name, layer)
        for name, layer in block.named_modules()
        if isinstance(layer, QuantizedLinear)
    )
    return {name: _described(layer.weight) for name, layer in layers}  # type: ignore[arg-type]  # see QuantizedLinear


def restore(
    block: nn.Module, layers: Mapping[str, Described], tensors: Mapping[str, Tensor]
) -> None:
    """Turns an unquantized block into the quantized one that `describe` was called
    with. The block's own weights are never read.

    layers: the result of `describe`. tensors: the `state_dict` of that block; they are
    used as they are, not copied. Raises KeyError, TypeError or RuntimeError where they
    belong to another kind of block.
    """
    for name, described in layers.items():
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # as the layers that are quantized
        weight = _made(described, f"{name}.weight.", tensors)
        block.set_submodule(name, QuantizedLinear(weight, linear.bias))
    block.load_state_dict(dict(tensors), assign=True)
    block.requires_grad_(False)


def _described(weight: QuantizedWeight) -> Described:
    values = {
        name: _as_json(value)
        for name, value in vars(weight).items()
        if name not in _OF_MODULES
    }
    buffers = [name for name, _ in weight.named_buffers(recurse=False)]
    parts = {
        name: _described(child)
        for name, child in weight.named_children()
        if isinstance(child, QuantizedWeight)
    }
    return {
        "class": type(weight).__name__,
        "values": values,
        "buffers": buffers,
        "parts": parts,
    }


def _made(
    described: Described, prefix: str, tensors: Mapping[str, Tensor]
) -> QuantizedWeight:
    kind = getattr(quantization, described["class"])
    weight: QuantizedWeight = kind.__new__(kind)
    nn.Module.__init__(weight)  # its own would make the tensors
    for name, value in described["values"].items():
        setattr(weight, name, _from_json(value))
    for name in described["buffers"]:
        weight.register_buffer(name, tensors[prefix + name])
    for name, part in described["parts"].items():
        setattr(weight, name, _made(part, f"{prefix}{name}.", tensors))
    return weight


def _as_json(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Size):
        return {"shape": list(value)}
    return value


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    return torch.Size(value["shape"])

"""A kept model of one block that is no model's: it is made and read in
milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from toolkit.memory.quantization import quantizer
from toolkit.memory.stored_blocks import describe, restore
from toolkit.models.kept import Kept, KeptReader, KeptWriter

NAME = "small"


def small_kept(cache: Path) -> Kept:
    return Kept(cache, NAME, 100, "small", describe, restore)


def small_block() -> nn.Module:
    """Before it is quantized."""
    layer = nn.Linear(3, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(2, 3))
        layer.bias.fill_(0.5)
    return nn.ModuleDict({"to_q": layer}).requires_grad_(False)


def read_small(entry: KeptReader) -> nn.Module:
    """The block, which stays mapped."""
    block = small_block()
    entry.fill("block", block, lambda name: True)
    entry.fill_rest(nn.ModuleDict(), without="block.")
    return block


def make_small(entry: KeptWriter | None) -> nn.Module:
    block = small_block()
    quantizer("int8")(block, "block")
    if entry:
        entry.add("block", block, lambda name: True)
        entry.finish(nn.ModuleDict(), without="block.")
    return block


def small_start(cache: Path) -> nn.Module:
    """Reads the block, or makes it."""
    return small_kept(cache).used_by(read_small, make_small)

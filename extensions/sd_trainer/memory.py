"""How a section's `train:` and `model:` want the blocks of the model to be run, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.contracts import Batch, ModelAdapter, Network
from toolkit.device import DTYPES
from toolkit.memory.activations import UNITS, Work
from toolkit.memory.block_swap import swapped_blocks
from toolkit.memory.engine import BlockEngine
from toolkit.memory.plan import KEPT_BY_KIND, KEPT_BY_MODEL
from toolkit.models.families import family_for
from toolkit.models.opening import model_folder

if TYPE_CHECKING:
    import torch

    Note = Callable[[str], None]

STATE_PER_WEIGHT = 4
"""Gradient, the two of Adam and an average: the most that training keeps for each weight, in its own number type."""


def blocks_on_host(section: Any, note: Note) -> frozenset[int]:
    """Indices of the blocks that `model.blocks_to_swap` keeps in the main memory."""
    count = section.model.blocks_to_swap
    if not count:
        return frozenset()
    return frozenset(swapped_blocks(count, family_for(section.model).block_count(model_folder(section.model, note))))


def block_engine(section: Any, adapter: ModelAdapter, device: torch.device, note: Note) -> BlockEngine:
    """The engine a section asks for, around the blocks of an adapter whose network is attached."""
    train = section.train
    return BlockEngine(
        adapter,
        device,
        DTYPES[train.dtype],
        train.checkpointing_level(),
        section.model.blocks_to_swap,
        train.compile,
        note,
    )


def settle(
    engine: BlockEngine,
    section: Any,
    adapter: ModelAdapter,
    network: Network,
    largest: Batch,
    gather: Callable[[str], Sequence[str]] = lambda level: [level],
) -> None:
    """Lets the engine choose by the largest batch; of several processes all take what one of them needs.

    gather: what all processes give it.
    """
    train, kind = section.train, section.network.type
    in_half, in_full = KEPT_BY_MODEL if section.network.trains_model else KEPT_BY_KIND[kind]
    number_bytes = DTYPES[train.dtype].itemsize
    work = Work(
        tokens=adapter.tokens(largest),
        width=adapter.width,
        blocks=len(adapter.blocks()),
        number_bytes=number_bytes,
        dropout=bool(section.network.dropout),
        everything=max(in_half if number_bytes == 2 else in_full, UNITS["none"]),
    )
    weights = sum(p.numel() * p.element_size() for p in network.parameters().values())
    engine.settle(work, needed=STATE_PER_WEIGHT * weights, gather=gather)

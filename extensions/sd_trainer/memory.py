"""How a section's `train:` and `model:` want the blocks of the model to be run, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from extensions.sd_trainer.memory_work import copies_within_backward, trained_here, whole_blocks, work_of
from toolkit.contracts import ModelAdapter, Network
from toolkit.data.batches import LatentBatch
from toolkit.device import DTYPES
from toolkit.errors import RunError
from toolkit.memory.block_swap import swapped_blocks
from toolkit.memory.engine import BlockEngine
from toolkit.models.families import family_for
from toolkit.models.opening import model_folder

if TYPE_CHECKING:
    import torch

    Note = Callable[[str], None]


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


@contextmanager
def telling_of_memory(advice: str) -> Iterator[None]:
    """Memory that runs out inside the block, wherever nothing better is known to do, ends the run with advice."""
    from torch import OutOfMemoryError

    try:
        yield
    except OutOfMemoryError as error:
        # After the GPU's name PyTorch tells of its allocator.
        reason = str(error).partition(" GPU ")[0].strip(" .\n") or "Out of memory"
        raise RunError(f"{reason}. {advice}") from error


def settle(
    engine: BlockEngine,
    section: Any,
    adapter: ModelAdapter,
    network: Network,
    largest: LatentBatch,
    remembered: int = 0,
    gather: Callable[[str], Sequence[str]] = lambda level: [level],
) -> None:
    """Lets the engine choose by the largest batch; of several processes all take what one of them needs.

    remembered: bytes of the optimizers' state that are there already, as in a run that goes on. gather: what all
    processes give it.
    """
    folder = model_folder(section.model, note=lambda line: None)  # it is here by now
    trained, on_card = trained_here(section), next(iter(network.parameters().values())).is_cuda
    facts = family_for(section.model).footprint(folder)
    tokens = adapter.tokens(largest.latents_BCHW, largest.prompts, largest.references)
    work = work_of(section, facts, trained, tokens, on_card)
    to_come = max(0, trained.optimizer_bytes(section.train) - remembered)
    within = copies_within_backward(section.train, trained)
    engine.settle(work, needed=to_come + within + sum(whole_blocks(section, facts)), gather=gather)

"""Options for loading a model folder of any family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

BlockTransform = Callable[["nn.Module", str], None]
"""Changes a loaded block in place, by quantizing it, say; the text is the block's dotted name."""


@dataclass(frozen=True)
class ModelLoadOptions:
    """How a `DiffusionModel` loads its parts."""

    folder: Path
    """A local folder in diffusers layout."""

    device: torch.device
    dtype: torch.dtype
    """Compute dtype of every part."""

    weights_dtype: torch.dtype | None = None
    """Dtype the trained module's weights are loaded in where it is not `dtype`: float32 where they are trained."""

    match_target_res: bool = False
    """Control images get the target's pixel area instead of the family's own."""

    merge_fn: Callable[[], BlockTransform] | None = None
    """Called when the trained module is loaded, for what changes its weights in place as they are filled: each block
    before `transform_block`, at last the module itself (name "")."""

    transform_block: BlockTransform | None = None
    """Quantizes a block of the trained module in place."""

    transform_text_block: BlockTransform | None = None
    """The same for the text encoder's layers."""

    text_encoder_cache_tag: str = ""
    """Names what `transform_text_block` does to the text embeddings, for their cache key."""

    modulation_table: bool = False
    """Keep the modulation layers, whose output depends on the timestep alone, in CPU memory;
    `DiffusionModel.enable_modulation_cache` uses it.
    """

    cpu_blocks: frozenset[int] = frozenset()
    """Indices of the trained module's blocks that stay in CPU memory."""

    low_vram: bool = False
    """Quantize on the CPU and move only the finished blocks to the device."""

"""The transformer's forward pass with each block run by a function of ours, so that memory can be managed around it.

What is computed is diffusers' `QwenImageTransformer2DModel.forward` (transformer_qwenimage.py), whose own modules do
the work; `test_parity.py` holds the two together.

Shape suffixes: B batch, C latent channels, H/W latent height and width, S image tokens (target and references),
P token width (4 C), D model width, L text tokens, H heads, K channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toolkit.models.interface import BlockForward, BlockWrapper
from toolkit.models.loading import ASKED_BY, block_import
from toolkit.models.qwen_image.sizes import PATCH
from toolkit.system.device import to_device

with block_import("bitsandbytes", ASKED_BY):
    pass

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

ImageShape = tuple[int, int, int]
"""Frames, height and width of an image in tokens."""


@dataclass(frozen=True)
class BlockConditioning:
    """Inputs of every block besides the two streams."""

    temb_BD: Tensor
    """Timestep embedding; [2B, D] where control images have their own timestep (`zero_cond_t`)."""

    rotary: tuple[Tensor, Tensor]
    levels: tuple[float, ...]
    """The timestep of each row of `temb_BD`."""

    modulate_index_BS: Tensor | None = None
    """With `zero_cond_t`: 0 for tokens of the target, 1 for those of control images."""


ImageTextStreams = tuple[Tensor, Tensor]
"""Image tokens [B, S, D] and text tokens [B, L, D]."""

RunIndexed = Callable[[int, nn.Module, ImageTextStreams, BlockConditioning], ImageTextStreams]
"""Runs one block, given its index."""


def compose_wrappers(wrappers: Sequence[BlockWrapper]) -> RunIndexed:
    """Runs a block in these wrappers, the first one innermost. They get tensors only: no timesteps, no index."""
    run: BlockForward = _on_tensors
    for wrapper in wrappers:
        run = wrapper(run)

    def run_block(
        index: int, block: nn.Module, streams: ImageTextStreams, conditions: BlockConditioning
    ) -> ImageTextStreams:
        image_BSD, text_BLD = run(block, *streams, conditions.temb_BD, *conditions.rotary, conditions.modulate_index_BS)
        return image_BSD, text_BLD

    return run_block


def _on_tensors(
    block: nn.Module,
    image_BSD: Tensor,
    text_BLD: Tensor,
    temb_BD: Tensor,
    image_rotary: Tensor,
    text_rotary: Tensor,
    which_BS: Tensor | None,
) -> ImageTextStreams:
    """Calls the block."""
    text_BLD, image_BSD = block(
        hidden_states=image_BSD,
        encoder_hidden_states=text_BLD,
        encoder_hidden_states_mask=None,
        temb=temb_BD,
        image_rotary_emb=(image_rotary, text_rotary),
        modulate_index=which_BS,
    )
    return image_BSD, text_BLD


def forward(
    model: QwenImageTransformer2DModel,
    run: RunIndexed,
    tokens_BSP: Tensor,
    levels: Sequence[float],
    embeds_BLD: Tensor,
    shapes: Sequence[ImageShape],
) -> Tensor:
    """Velocity [B, S, P] of every token.

    levels: noise fraction of each item, in [0, 1]. shapes: of the target and each reference, the same for the whole
    batch, in the order of the tokens. No text is padded: an attention mask would rule out the fast kernels.
    """
    image_BSD = model.img_in(tokens_BSP)
    text_BLD = model.txt_in(model.txt_norm(embeds_BLD))
    conditions = _conditions(model, image_BSD, levels, text_BLD.shape[1], shapes)
    streams = image_BSD, text_BLD
    for index, block in enumerate(model.transformer_blocks):
        streams = run(index, block, streams, conditions)
    target_temb_BD = conditions.temb_BD[: len(levels)]
    return model.proj_out(model.norm_out(streams[0], target_temb_BD))


def _conditions(
    model: QwenImageTransformer2DModel,
    image_BSD: Tensor,
    levels: Sequence[float],
    text_tokens: int,
    shapes: Sequence[ImageShape],
) -> BlockConditioning:
    count = len(levels)
    rotary = model.pos_embed([list(shapes)] * count, max_txt_seq_len=text_tokens, device=image_BSD.device)
    # With `zero_cond_t` control images have timestep 0. Created on the CPU, where the timesteps are known.
    t = torch.tensor([*levels, *[0.0] * (count * model.zero_cond_t)], dtype=image_BSD.dtype)
    conditions = BlockConditioning(
        model.time_text_embed(to_device(t, image_BSD.device), image_BSD), rotary, tuple(t.tolist())
    )
    if not model.zero_cond_t:
        return conditions
    which_S = (torch.arange(image_BSD.shape[1], device=image_BSD.device) >= prod(shapes[0])).int()
    return replace(conditions, modulate_index_BS=which_S.expand(count, -1))


# ------------------------------------------------------------ latents as tokens
# Source: diffusers, pipeline_qwenimage_edit_plus.py, `_pack_latents`, `_unpack_latents` and `img_shapes`.


def pack(latents_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] to tokens [B, H/2 * W/2, 4 C]: row by row, each token channel-major over its 2x2 patch."""
    b, c, h, w = latents_BCHW.shape
    patches = latents_BCHW.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpack(tokens_BSP: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a latent of `height` x `width`."""
    b, _, p = tokens_BSP.shape
    c = p // (PATCH * PATCH)
    patches = tokens_BSP.reshape(b, height // PATCH, width // PATCH, c, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def image_shapes(latents: Sequence[Tensor]) -> list[ImageShape]:
    """(frames, rows, columns) in tokens of each latent [..., H, W]; the target first, then the references."""
    return [(1, latent.shape[-2] // PATCH, latent.shape[-1] // PATCH) for latent in latents]

"""Latents as the transformer's tokens: 2x2 patches, the target's first, then each reference's.

Source: diffusers, pipeline_qwenimage_edit_plus.py, `_pack_latents`, `_unpack_latents` and `img_shapes`.

Shape suffixes: B batch, C latent channels (16), H/W latent height and width (pixels / 8),
S tokens, P token width (4 C = 64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.models.qwen_edit.resolutions import PATCH

if TYPE_CHECKING:
    from torch import Tensor


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


def image_shapes(latents: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """(frames, rows, columns) in tokens of each latent [..., H, W]; the target first, then the references."""
    return [(1, latent.shape[-2] // PATCH, latent.shape[-1] // PATCH) for latent in latents]

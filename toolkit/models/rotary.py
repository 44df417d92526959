"""Rotary positions that compiled blocks can rotate by.

Shape suffixes: B batch, S tokens, H heads, K channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.models.loading import ASKED_BY, block_import

with block_import("bitsandbytes", ASKED_BY):
    from diffusers.models.transformers import transformer_qwenimage

rotate_complex = transformer_qwenimage.apply_rotary_emb_qwen
"""diffusers' own."""


def use_real_rotation() -> None:
    """From here on compiled blocks rotate in real numbers: inductor generates no code for complex ones."""
    transformer_qwenimage.apply_rotary_emb_qwen = rotate  # the blocks look it up there


def rotate(x_BSHK: Tensor, freqs: Any, use_real: bool = True, use_real_unbind_dim: int = -1) -> Any:
    """`rotate_complex`, or `rotate_real` where it is compiled. freqs: with `use_real: false` complex, [S, K / 2], K the
    channels of a head."""
    if use_real or not torch.compiler.is_compiling():
        return rotate_complex(x_BSHK, freqs, use_real, use_real_unbind_dim)
    return rotate_real(x_BSHK, freqs)


def rotate_real(x_BSHK: Tensor, freqs: Tensor) -> Tensor:
    """Pairs of channels (a, b) times the complex numbers (c + di): (ac - bd, ad + bc). freqs: complex, [S, K / 2]."""
    c, d = torch.view_as_real(freqs).unsqueeze(1).unbind(-1)
    a, b = x_BSHK.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], dim=-1).flatten(-2).type_as(x_BSHK)

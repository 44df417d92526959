"""The transformer's forward pass with each block run by a function of ours, so that memory can be managed around it.

What is computed is diffusers' `QwenImage21Transformer2DModel.forward` (transformer_qwenimage21.py), whose own modules
do the work. Text and references, the prefix of the sequence, see neither the target nor its noise level; so one prefix
may serve several noisy targets, which see it and themselves.

Shape suffixes: B batch, K noisy targets of one prefix, R = B K, N tokens of a target, P tokens of the prefix,
S = P + K N, C latent channels, D model width, M modulations (4 D), L text tokens, H heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from toolkit.models.interface import BlockForward, BlockWrapper
from toolkit.models.loading import ASKED_BY, block_import
from toolkit.models.rotary import rotate

with block_import("bitsandbytes", ASKED_BY):
    from diffusers import QwenImage21Transformer2DModel


class Layout(NamedTuple):
    """What stands where in the sequence. Hashable and not a tensor: a compiled block has to know it, and reading it
    must not wait for the device."""

    segments: tuple[tuple[int, int, bool], ...]
    """(begin, end, whether it is text) of each part of the prefix."""

    prefix: int
    targets: int
    target_tokens: int


ImageShape = tuple[int, int, int]
"""Frames (1), height and width of an image in tokens."""

RunIndexed = Callable[..., Tensor]
"""Runs one block: (index, block, x_BSD, zero_1M, levels_RM, rotary_SE, layout) -> x_BSD."""


def compose_wrappers(wrappers: Sequence[BlockWrapper]) -> RunIndexed:
    """Runs a block in these wrappers, the first one innermost."""
    run: BlockForward = run_block
    for wrapper in wrappers:
        run = wrapper(run)
    return lambda index, block, *inputs: run(block, *inputs)[0]


def run_block(
    block: Any, x_BSD: Tensor, zero_1M: Tensor, levels_RM: Tensor, rotary_SE: Tensor, layout: Layout
) -> tuple[Tensor]:
    """The forward of a QwenImage21TransformerBlock.

    zero_1M: modulations at t = 0, for the prefix; levels_RM: of each target's noise level.
    """
    zeros, levels = zero_1M.chunk(4, -1), levels_RM.unflatten(0, (-1, layout.targets)).chunk(4, -1)
    scale1, gate1, scale2, gate2 = (partial(_times, *pair, layout) for pair in zip(zeros, levels, strict=True))
    y_BSD = attend(block.attn, scale1(block.img_norm1(x_BSD), _one_plus), rotary_SE, layout)
    x_BSD = x_BSD + gate1(y_BSD, torch.tanh)
    x_BSD = x_BSD + gate2(block.img_mlp(scale2(block.img_norm2(x_BSD), _one_plus)), torch.tanh)
    return (x_BSD.clip(-65504, 65504) if x_BSD.dtype == torch.float16 else x_BSD,)


def _times(zero_1D: Tensor, levels_BKD: Tensor, layout: Layout, y_BSD: Tensor, act: Callable) -> Tensor:
    """y times `act` of its modulation. The two parts apart, so that no modulation of each token is kept for the
    backward pass."""
    targets_BKND = y_BSD[:, layout.prefix :].unflatten(1, (layout.targets, layout.target_tokens))
    of_targets_BSD = (targets_BKND * act(levels_BKD)[:, :, None]).flatten(1, 2)
    return torch.cat([y_BSD[:, : layout.prefix] * act(zero_1D), of_targets_BSD], dim=1)


def _one_plus(scale: Tensor) -> Tensor:
    return 1 + scale


def attend(attn: Any, y_BSD: Tensor, rotary_SE: Tensor, layout: Layout) -> Tensor:
    """Text sees what is before it, an image all of that and itself, a target the prefix and itself; exact, segment by
    segment, so that there is no mask of the whole sequence."""
    heads = (-1, attn.inner_dim // attn.heads)
    q, k, v = (layer(y_BSD).unflatten(-1, heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
    q, k = attn.norm_q(q).to(v.dtype), attn.norm_k(k).to(v.dtype)
    q, k = (rotate(x, rotary_SE, use_real=False).transpose(1, 2) for x in (q, k))
    v = v.transpose(1, 2)
    parts = []
    for begin, end, is_text in layout.segments:
        mask = None
        if is_text and end - begin > 1:
            mask = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).tril(begin)
        parts.append(scaled_dot_product_attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], attn_mask=mask))
    for number in range(layout.targets):
        begin = layout.prefix + number * layout.target_tokens
        own = slice(begin, begin + layout.target_tokens)
        keys, values = (kv if number == layout.targets - 1 == 0 else _with_prefix(kv, own, layout) for kv in (k, v))
        parts.append(scaled_dot_product_attention(q[:, :, own], keys, values))
    return attn.to_out[1](attn.to_out[0](torch.cat(parts, 2).transpose(1, 2).flatten(2, 3)))


def _with_prefix(kv_BHSE: Tensor, own: slice, layout: Layout) -> Tensor:
    return torch.cat([kv_BHSE[:, :, : layout.prefix], kv_BHSE[:, :, own]], dim=2)


def forward(
    model: QwenImage21Transformer2DModel,
    run: RunIndexed,
    x_BKNC: Tensor,
    levels_BK: Tensor,
    embeds_BLD: Tensor,
    slots: Sequence[int],
    references: Sequence[Tensor],
    shapes: Sequence[ImageShape],
) -> Tensor:
    """Velocity [B, K, N, C] of the targets.

    levels_BK: noise fractions in [0, 1]. slots: for each reference the number of text tokens in front of it.
    references: tokens [B, N', C] of each. shapes: of the references and, at last, the target.
    """
    batch, targets, tokens, _ = x_BKNC.shape
    text_BLD = model.txt_in(embeds_BLD)
    parts: list[tuple[Tensor, bool]] = []
    cursor = 0
    for slot, tokens_BNC in zip(slots, references, strict=True):
        parts += [(text_BLD[:, cursor:slot], True), (model.img_in(tokens_BNC), False)]
        cursor = slot
    parts = [(part, is_text) for part, is_text in [*parts, (text_BLD[:, cursor:], True)] if part.shape[1]]
    segments, prefix = [], 0
    for part_BSD, is_text in parts:
        segments.append((prefix, prefix + part_BSD.shape[1], is_text))
        prefix += part_BSD.shape[1]
    layout = Layout(tuple(segments), prefix, targets, tokens)
    x_BSD = torch.cat([*(part for part, _ in parts), model.img_in(x_BKNC).flatten(1, 2)], dim=1)
    rotary_SE = _rotary(model, layout, tuple(shapes), x_BSD.device)
    t = torch.cat([levels_BK.flatten().to(x_BSD.dtype), levels_BK.new_zeros(1, dtype=x_BSD.dtype)]).to(x_BSD.device)
    temb = model.time_text_embed(t, x_BSD)
    modulation = model.modulation(temb)
    zero_1M, levels_RM = modulation[-1:], modulation[:-1]
    for index, block in enumerate(model.transformer_blocks):
        x_BSD = run(index, block, x_BSD, zero_1M, levels_RM, rotary_SE, layout)
    out = model.norm_out(x_BSD[:, prefix:].unflatten(1, (targets, tokens)).flatten(0, 1), temb[:-1])
    return model.proj_out(out).unflatten(0, (batch, targets))


def _rotary(
    model: QwenImage21Transformer2DModel, layout: Layout, shapes: tuple[ImageShape, ...], device: torch.device
) -> Tensor:
    """Rotations [S, E / 2], complex: diffusers' own for one target, whose part is repeated for the others."""
    is_image = torch.ones(layout.prefix + prod(shapes[-1]), dtype=torch.bool)
    for begin, end, is_text in layout.segments:
        is_image[begin:end] = not is_text
    rotary = model.pos_embed(list(shapes), is_image, device=device)
    return torch.cat([rotary[: layout.prefix], *[rotary[layout.prefix :]] * layout.targets])

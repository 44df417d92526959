"""The transformer's forward pass with each block run by a function of the caller, so
that memory can be managed around it.

It computes diffusers' `QwenImage21Transformer2DModel.forward`
(transformer_qwenimage21.py), whose own modules do the work. Text and control images are
the prefix of the sequence. They see neither the target nor its noise level, so a sample
computes its prefix once.

It encodes nothing and has no loss. Called by `model`, and by the trainer of new models
for a transformer of this class.

Shape suffixes: B batch, N tokens of the target, P tokens of the prefix, S = P + N, C
latent channels, D model width, M modulations (4 D), L text tokens, H heads, E channels
of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from math import prod
from types import MethodType
from typing import Any, NamedTuple

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor
from torch.backends import cuda
from torch.nn.functional import scaled_dot_product_attention

from toolkit.contracts.model import BlockForward, BlockWrapper, project
from toolkit.models.folder_model import call_block
from toolkit.models.qwen_image.forward import rotate
from toolkit.system.device import to_device


class Layout(NamedTuple):
    """The places of text and images in front of the target. It is hashable and not a
    tensor: a compiled block has to know it, and reading it must not wait for the
    device.

    >>> Layout(((0, 10, True), (10, 74, False)), prefix=74).keeps
    False
    """

    segments: tuple[tuple[int, int, bool], ...]
    """(begin, end, whether it is text) of each part of the prefix."""

    prefix: int
    """Tokens in front of the target."""

    keeps: bool = False
    """Whether a block returns the keys and values of the prefix after its output."""

    has_flash: bool = False
    """Whether text behind an image goes through flash attention. It takes no mask, and
    cuDNN's masked backward pass has given NaN on Hopper (pytorch #196678)."""


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a block's prefix, [B, H, P, E] each."""


ImageShape = tuple[int, int, int]
"""Frames (1), height and width of an image in tokens."""

RunIndexed = Callable[..., "tuple[Tensor, ...]"]
"""`run_block` in wrappers, with the index of the block as first argument."""


def compose_wrappers(wrappers: Sequence[BlockWrapper]) -> RunIndexed:
    """A function that runs a block in these wrappers; the first one is innermost."""
    run: BlockForward = call_block
    for wrapper in wrappers:
        run = wrapper(run)
    return lambda index, block, *inputs: run(block, *inputs)


def run_block(
    block: Any,
    x_BSD: Tensor,
    zero_1M: Tensor,
    level_BM: Tensor,
    rotary_SE: Tensor,
    layout: Layout,
    *prefix: Tensor,
) -> tuple[Tensor, ...]:
    """The forward pass of a QwenImage21TransformerBlock: its output and, where the
    layout keeps them, the prefix's keys and values.

    zero_1M: modulations at t = 0, for the prefix. level_BM: modulations at the target's
    noise level. prefix: keys and values that were kept; the sequence is then the target
    alone.
    """
    zeros = zero_1M.chunk(4, -1)
    levels = level_BM.chunk(4, -1)
    scale1, gate1, scale2, gate2 = (
        partial(_times, *pair, layout) for pair in zip(zeros, levels, strict=True)
    )
    y_BSD, *keys_values = attend(
        block.attn, scale1(block.img_norm1(x_BSD), _one_plus), rotary_SE, layout, prefix
    )
    x_BSD = x_BSD + gate1(y_BSD, torch.tanh)
    del y_BSD
    x_BSD = x_BSD + gate2(
        feed_forward(block.img_mlp, scale2(block.img_norm2(x_BSD), _one_plus)),
        torch.tanh,
    )
    return (
        x_BSD.clip(-65504, 65504) if x_BSD.dtype == torch.float16 else x_BSD,
        *keys_values,
    )


def _times(
    zero_1D: Tensor,
    level_BD: Tensor,
    layout: Layout,
    y_BSD: Tensor,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """y times `act` of its modulation. Prefix and target are multiplied separately, so
    that the backward pass keeps no modulation for each token."""
    prefix_BPD = y_BSD[:, : layout.prefix] * act(zero_1D)
    target_BND = y_BSD[:, layout.prefix :] * act(level_BD)[:, None]
    return torch.cat([prefix_BPD, target_BND], dim=1)


def _one_plus(scale: Tensor) -> Tensor:
    return 1 + scale


def feed_forward(mlp: Any, y_BSD: Tensor) -> Tensor:
    """The forward pass of a QwenImage21SwiGLUFeedForward."""
    gate, up = project([mlp.gate_layer, mlp.proj], y_BSD)
    # Each is three times as large as the block's input, so it is freed early.
    gate = mlp.activation_fn(gate)
    gate = gate * up
    del up
    out_BSD: Tensor = mlp.out(gate)
    return out_BSD


def attend(
    attn: Any,
    y_BSD: Tensor,
    rotary_SE: Tensor,
    layout: Layout,
    prefix: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """The attention of a block. A text token sees the tokens before it and itself, an
    image the tokens before it and itself, the target everything.

    It is exact and computed segment by segment, so that there is no mask of the whole
    sequence. y_BSD: normed and modulated. Other inputs and outputs: see `run_block`.
    """
    heads = (-1, attn.inner_dim // attn.heads)
    q, k, v = (
        x.unflatten(-1, heads)
        for x in project([attn.to_q, attn.to_k, attn.to_v], y_BSD)
    )
    q = attn.norm_q(q).to(v.dtype)
    k = attn.norm_k(k).to(v.dtype)
    q, k = (rotate(x, rotary_SE, use_real=False).transpose(1, 2) for x in (q, k))
    v = v.transpose(1, 2)
    # Split, not sliced: the gradient of each slice would be as large as the whole.
    *of_prefix, q = q.split(
        [
            *(end - begin for begin, end, _ in layout.segments),
            q.shape[2] - layout.prefix,
        ],
        dim=2,
    )
    (k_before, k), (v_before, v) = (
        x.split([layout.prefix, x.shape[2] - layout.prefix], dim=2) for x in (k, v)
    )
    parts = []
    for (begin, end, is_text), queries in zip(layout.segments, of_prefix, strict=True):
        seen = k_before[:, :, :end], v_before[:, :, :end]
        parts.append(
            _text_behind(queries, *seen, layout.has_flash)
            if is_text and begin
            else scaled_dot_product_attention(queries, *seen, is_causal=is_text)
        )
    before = prefix or (k_before, v_before)
    keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))
    parts.append(scaled_dot_product_attention(q, keys, values))
    out_BSD = attn.to_out[1](
        attn.to_out[0](torch.cat(parts, 2).transpose(1, 2).flatten(2, 3))
    )
    # Copies, because a view would keep the whole tensor.
    if layout.keeps:
        return (out_BSD, *(kv.clone() for kv in before))
    return (out_BSD,)


def _text_behind(
    q_BHLE: Tensor, k_BHPE: Tensor, v_BHPE: Tensor, has_flash: bool
) -> Tensor:
    """Attention of the last L of P tokens of the prefix, each to those before it and
    itself."""
    if has_flash:
        # Here `is_causal` ends with the last key, as in torch.nn.attention.bias, which
        # PyTorch 2.13 does not compile.
        out_BHLE: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            q_BHLE, k_BHPE, v_BHPE, is_causal=True
        )[0]
        return out_BHLE
    tokens, keys = q_BHLE.shape[2], k_BHPE.shape[2]
    mask_LP = torch.ones(tokens, keys, dtype=torch.bool, device=q_BHLE.device)
    return scaled_dot_product_attention(
        q_BHLE, k_BHPE, v_BHPE, attn_mask=mask_LP.tril(keys - tokens)
    )


def _has_flash(x_BSD: Tensor, width: int) -> bool:
    """Whether flash attention takes heads of this width where x is."""
    head_BHLE = x_BSD.new_empty(1, 1, 1, width)
    return cuda.can_use_flash_attention(
        cuda.SDPAParams(head_BHLE, head_BHLE, head_BHLE, None, 0.0, False, False)
    )


def forward(
    model: QwenImage21Transformer2DModel,
    run: RunIndexed,
    x_BNC: Tensor,
    t_B: Tensor,
    embeds_BLD: Tensor,
    slots: Sequence[int],
    references: Sequence[Tensor],
    shapes: Sequence[ImageShape],
    prefix_cache: list[KeysValues] | None = None,
) -> Tensor:
    """Velocity [B, N, C] of the target. It replaces the forward method of the blocks by
    `run_block`.

    t_B: noise fractions in [0, 1]. slots: for each control image, the number of
    text tokens in front of it. references: tokens [B, N', C] of each control image.
    shapes: of the control images and, at last, the target. prefix_cache: keys and
    values of this prefix for each block; the prefix is then not computed. An empty list
    is filled.
    """
    parts = _parts(slots, [prod(shape) for shape in shapes[:-1]], embeds_BLD.shape[1])
    prefix = sum(length for length, _ in parts)
    ends = list(accumulate(length for length, _ in parts))
    segments = tuple(
        (end - length, end, is_text)
        for end, (length, is_text) in zip(ends, parts, strict=True)
    )
    rotary_SE = _rotary(model, parts, shapes, x_BNC.device)
    x_BSD = model.img_in(x_BNC)
    known = list(prefix_cache or ())
    if known:
        layout = Layout((), 0)
        # A copy, because a program depends on where a view begins.
        rotary_SE = rotary_SE[prefix:].clone()
    else:
        layout = Layout(
            segments,
            prefix,
            keeps=prefix_cache is not None,
            has_flash=_has_flash(x_BSD, model.config.attention_head_dim),
        )
        text = iter(
            model.txt_in(embeds_BLD).split(
                [length for length, is_text in parts if is_text], dim=1
            )
        )
        images = iter(references)
        x_BSD = torch.cat(
            [
                *(
                    next(text) if is_text else model.img_in(next(images))
                    for _, is_text in parts
                ),
                x_BSD,
            ],
            1,
        )
    t = to_device(torch.cat([t_B, t_B.new_zeros(1)]), x_BSD.device, x_BSD.dtype)
    temb = model.time_text_embed(t, x_BSD)
    modulation = model.modulation(temb)
    zero_1M = modulation[-1:]
    level_BM = modulation[:-1]
    # One pass of an image keeps its prefix: a program for it takes longer than it saves.
    with torch.compiler.set_stance("force_eager" if layout.keeps else "default"):
        for index, block in enumerate(model.transformer_blocks):
            if "forward" not in vars(block):
                # because a sharded block is called as a module
                block.forward = MethodType(run_block, block)
            of_prefix = known[index] if known else ()
            x_BSD, *keys_values = run(
                index, block, x_BSD, zero_1M, level_BM, rotary_SE, layout, *of_prefix
            )
            if prefix_cache is not None and keys_values:
                prefix_cache.append((keys_values[0], keys_values[1]))
    velocity_BNC: Tensor = model.proj_out(
        model.norm_out(x_BSD[:, layout.prefix :], temb[:-1])
    )
    return velocity_BNC


def _parts(
    slots: Sequence[int], images: Sequence[int], text: int
) -> list[tuple[int, bool]]:
    """Length of each part of the prefix, and whether it is text. images: number of
    tokens of each control image. text: number of text tokens."""
    parts: list[tuple[int, bool]] = []
    for begin, slot, image in zip((0, *slots), slots, images, strict=False):
        parts += [(slot - begin, True), (image, False)]
    last = slots[-1] if slots else 0
    return [part for part in [*parts, (text - last, True)] if part[0]]


def _rotary(
    model: QwenImage21Transformer2DModel,
    parts: Sequence[tuple[int, bool]],
    shapes: Sequence[ImageShape],
    device: torch.device,
) -> Tensor:
    """Rotations [S, E / 2], complex, as in diffusers' QwenImage21Rope, which makes
    lists of the positions of all tokens at each call."""
    position = 0
    grids = iter(shapes)
    columns = []
    for length, is_text in [*parts, (0, False)]:
        if is_text:
            columns.append(torch.arange(position, position + length).expand(3, -1))
            position += length
            continue
        _, height, width = next(grids)
        rows, line = (
            torch.arange(-(side - side // 2), side // 2) for side in (height, width)
        )
        here = torch.full((height * width,), position)
        columns.append(
            torch.stack([here, rows.repeat_interleave(width), line.repeat(height)])
        )
        position += max(height, width)
    index_3S = to_device(torch.cat(columns, dim=1), device)
    model.pos_embed.freqs = [freqs.to(device) for freqs in model.pos_embed.freqs]
    return torch.cat(
        [
            freqs[index]
            for freqs, index in zip(model.pos_embed.freqs, index_3S, strict=True)
        ],
        dim=-1,
    )

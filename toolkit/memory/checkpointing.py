"""Which of a block's activations are kept for the backward pass, and which are recomputed.

Whatever the level, the same operations are done on the same numbers: gradients are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from toolkit.config.field_types import CHECKPOINTING_LEVELS
from toolkit.interfaces import BlockForward, BlockWrapper
from toolkit.memory.cpu_attention import attention_kernel
from toolkit.memory.quantized_weight import frozen_product

_aten = torch.ops.aten

ATTENTION = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_attention_math_for_mps.default,
        attention_kernel,
    }
)
"""Every kernel of attention that is one operation. Where PyTorch takes attention apart it is recomputed."""

MATMULS = frozenset({_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, frozen_product})

MIN_WIDTH_FRACTION = 4
"""A product that sums over less than the width / THIN, such as an adapter's way up, costs less than keeping it."""


def checkpoint_wrapper(level: str) -> BlockWrapper:
    """A wrapper that keeps what `level` says, one of CHECKPOINTING_LEVELS:

    none: everything. cheap: products and attention; elementwise work is done again. keep_attention: what attention
    gives. full: only what the block is given. full_offload: the same; `ActivationOffload` around it does the rest.
    """
    return _WRAPPERS[level]


def _keeping_all(run: BlockForward) -> BlockForward:
    return run


def _keeping_costly(run: BlockForward) -> BlockForward:
    return _selective(run, _policy_for_costly)


def _keeping_attention(run: BlockForward) -> BlockForward:
    return _selective(run, lambda tensors: _keeps_attention)


def _keeping_inputs(run: BlockForward) -> BlockForward:
    def run_again(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return run(block, *tensors)
        return checkpoint(run, block, *tensors, use_reentrant=False)

    return run_again


_WRAPPERS: dict[str, BlockWrapper] = dict(
    zip(
        CHECKPOINTING_LEVELS,
        (_keeping_all, _keeping_costly, _keeping_attention, _keeping_inputs, _keeping_inputs),
        strict=True,
    )
)


# ------------------------------------------------------------ which operations' results are kept

Policy = Callable[..., CheckpointPolicy]


def _selective(run: BlockForward, policy_for: Callable[[tuple[Tensor | None, ...]], Policy]) -> BlockForward:
    def run_again(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return run(block, *tensors)
        contexts = partial(create_selective_checkpoint_contexts, policy_for(tensors))
        return checkpoint(run, block, *tensors, use_reentrant=False, context_fn=contexts)

    return run_again


def _keeps_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _policy_for_costly(tensors: tuple[Tensor | None, ...]) -> Policy:
    """Keeps attention, and products that have a row for each token of a stream.

    Others are products of weights (LoHa's, LoKr's), as large as the model, or the scores of attention. A program is
    for any number of tokens, and a number in its policy would make it one for each: compiled, a product is told by
    being one of two matrices, and products of weights by their thinness alone.
    """
    streams = [t for t in tensors if t is not None and t.dim() == 3]
    tokens = None if torch.compiler.is_compiling() else {prod(t.shape[:-1]) for t in streams}
    fewest = max(t.shape[-1] for t in streams) // MIN_WIDTH_FRACTION
    return partial(_keeps_costly, tokens, fewest)


def _keeps_costly(
    tokens: Collection[int] | None, fewest: int, ctx: Any, op: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    if op is _aten._to_copy.default and args[0].dtype == torch.int32:  # sums of an int8 product, compiled
        return CheckpointPolicy.MUST_SAVE
    if op in MATMULS:
        factor = args[1] if op in (_aten.addmm.default, _aten.baddbmm.default) else args[0]
        is_of_tokens = factor.dim() == 2 if tokens is None else prod(factor.shape[:-1]) in tokens
        if is_of_tokens and factor.shape[-1] >= fewest:
            return CheckpointPolicy.MUST_SAVE
    return _keeps_attention(ctx, op)

"""Activation checkpointing: which activations of a block are kept for the backward
pass, and which are recomputed.

All levels run the same operations on the same values. On a CPU gradients are equal bit
for bit. On CUDA they are equal where the kernels are deterministic; the backward passes
of flash and cuDNN attention sum in another order each time.

The choice of a level is in `estimate`, and offload to the CPU in `offload` and
`recompute`. Called by `block_runner`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from toolkit.contracts.model import BlockForward, BlockWrapper
from toolkit.memory.offload import pack
from toolkit.memory.quantization import frozen_product

_aten = torch.ops.aten

ATTENTION = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_attention_math_for_mps.default,
    }
)
"""Every attention kernel that is a single operation. Attention that PyTorch decomposes
is recomputed."""

MATMULS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        frozen_product,
    }
)

MIN_WIDTH_FRACTION = 4
"""A matmul over less than the width / MIN_WIDTH_FRACTION (an adapter's up projection)
is cheaper to recompute."""


def checkpoint_wrapper(level: str, hidden_size: int = 0) -> BlockWrapper:
    """A wrapper that keeps the activations of `level`, one of CHECKPOINTING_LEVELS:

    none: all. cheap: matmul and attention outputs; elementwise operations are
    recomputed. keep_attention: attention outputs. offload_attention: the same, and
    `AttentionOffload` around it offloads them. full: the block's inputs only.
    full_offload: the same, and `ActivationOffload` offloads them. block_offload
    has a separate wrapper (`RecomputeOffload`), so this one does nothing.

    hidden_size: channels per token, by which `cheap` recognizes an adapter's up
    projection; 0: it recognizes none.

    Example::

        model.wrap_blocks([checkpoint_wrapper("cheap", model.hidden_size)])
    """
    # a float: `dynamic: true` would make a symbol of an integer
    min_width = hidden_size / MIN_WIDTH_FRACTION
    # With compilation the policy must not depend on the number of tokens, which would
    # cause recompilation.
    policy = (
        partial(_keeps_costly, None, min_width)
        if level == "cheap"
        else _keeps_attention
    )
    compiled = partial(create_selective_checkpoint_contexts, policy)
    # PyTorch caches a compiled block under this hash: it differs by policy and by the
    # version of this file.
    vars(compiled)["cache_hash"] = (
        f"{level} {min_width} {sha256(Path(__file__).read_bytes()).hexdigest()}"
    )

    def wrap(run: BlockForward) -> BlockForward:
        def run_again(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            if not torch.is_grad_enabled():
                return run(block, *tensors)
            outputs: tuple[Tensor, ...]
            if level in ("full", "full_offload"):
                outputs = checkpoint(run, block, *tensors, use_reentrant=False)
                return outputs
            if torch.compiler.is_compiling() or level == "keep_attention":
                outputs = checkpoint(
                    run, block, *tensors, use_reentrant=False, context_fn=compiled
                )
                return outputs
            if level == "offload_attention":
                outputs = checkpoint(
                    run, block, *tensors, use_reentrant=False, context_fn=_by_rules
                )
                return outputs
            tokens = {
                prod(t.shape[:-1])
                for t in tensors
                if isinstance(t, Tensor) and t.dim() == 3
            }
            contexts = partial(
                create_selective_checkpoint_contexts,
                partial(_keeps_costly, tokens, min_width),
            )
            outputs = checkpoint(
                run, block, *tensors, use_reentrant=False, context_fn=contexts
            )
            return outputs

        return run if level in ("none", "block_offload") else run_again

    return wrap


# ------------------------------------------------------------ which operations' results
# are kept


def _keeps_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op in ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _keeps_costly(
    tokens: Collection[int] | None,
    min_width: float,
    ctx: Any,
    op: Any,
    *args: Any,
    **kwargs: Any,
) -> CheckpointPolicy:
    """Keeps attention, and matmuls with one row per token of a stream.

    Other matmuls multiply weights (in LoHa and LoKr), which are as large as the model,
    or attention scores. tokens: the rows of the streams; None with compilation. Then a
    matmul of two matrices counts as one of tokens, and matmuls of weights are
    recognized by their small inner size alone.
    """
    if op in MATMULS:
        factor = (
            args[1] if op in (_aten.addmm.default, _aten.baddbmm.default) else args[0]
        )
        is_of_tokens = (
            factor.dim() == 2 if tokens is None else prod(factor.shape[:-1]) in tokens
        )
        if is_of_tokens and factor.shape[-1] >= min_width:
            return CheckpointPolicy.MUST_SAVE
    return _keeps_attention(ctx, op)


# ------------------------------------------------------------ attention that is kept
# elsewhere


def _by_rules() -> tuple[_Attention, _Attention]:
    """Contexts of a checkpoint: attention is kept as the rules for saved tensors say
    (`saved_tensor_rule`). PyTorch's own contexts keep it where it is."""
    kept: list[Any] = []
    return _Attention(kept, again=False), _Attention(kept, again=True)


class _Attention(TorchDispatchMode):
    """Keeps the results of attention in the forward pass, or gives them back where it
    is computed again."""

    def __init__(self, kept: list[Any], again: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept
        self._again = again
        self._left: Iterator[Any] = iter(())

    def __enter__(self) -> Any:
        self._left = iter(self._kept)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._again and func in ATTENTION:
            return tree_map(_on_device, next(self._left))
        results = func(*args, **(kwargs or {}))
        if func in ATTENTION:
            self._kept.append(tree_map_only(Tensor, pack, results))
        return results


def _on_device(kept: Any) -> Any:
    return kept() if callable(kept) else kept  # tensors that stayed, and integers

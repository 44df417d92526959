"""The matrices of a block's LoRAs in the dtype of its inputs, by one kernel for the whole block where each use would
cast its own; and so with their gradients. Uncompiled blocks launch kernels one by one, and a fast GPU waits for them.

They are cast at each call of the block, and where a checkpoint calls it again: nothing that changes the parameters in
between has to be known (optimizer, averages that are sampled with, a resume).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class CastGroup(Protocol):
    """As `toolkit.networks.lora.FusedDownProjection`."""

    cast_down: Tensor | None

    @property
    def layers(self) -> Sequence[CastLayer]: ...

    def is_shared(self) -> bool: ...


class CastLayer(Protocol):
    """As `toolkit.networks.lora.LoraLinear`."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    cast_down: Tensor | None
    cast_up: Tensor | None
    disabled: bool

    @property
    def fused_group(self) -> CastGroup | None: ...


class _CastTogether(torch.autograd.Function):
    """Parameters in another dtype, those of one stack as one matrix. Gradients come back in the parameters' dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, counts: Sequence[int], *parameters: Tensor) -> tuple[Tensor, ...]:
        """counts: parameters of each stack, which have the same number of columns."""
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.rows = parameters[0].dtype, []
        given, stacks = iter(parameters), []
        places: list[Tensor] = []
        for count in counts:
            shapes = [next(given).shape for _ in range(count)]
            ctx.rows.append(rows := [shape[0] for shape in shapes])
            stacks.append(stack := parameters[0].new_empty((sum(rows), shapes[0][1]), dtype=dtype))
            places += [stack] if count == 1 else stack.split(rows)
        torch._foreach_copy_(places, parameters)
        return tuple(stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        wide = [torch.empty_like(gradient, dtype=ctx.dtype) for gradient in there]
        torch._foreach_copy_(wide, there)
        of_stack = iter(wide)
        found: list[Tensor | None] = []
        for gradient, rows in zip(gradients, ctx.rows, strict=True):
            if gradient is None:
                found += [None] * len(rows)
            else:
                found += [next(of_stack)] if len(rows) == 1 else next(of_stack).split(rows)
        return None, None, *found


class BlockCasts:
    """The LoRAs of a block. An attribute of it and not a hook: a compiled program is for the hooks of one block."""

    def __init__(self, layers: Sequence[CastLayer]) -> None:
        self._layers = layers

    @contextmanager
    def of(self, inputs: Iterable[object]) -> Iterator[None]:
        """Inside, the layers have their matrices in the dtype of these inputs of the block."""
        floats = (x for x in inputs if isinstance(x, Tensor) and x.is_floating_point())
        x = next(floats, None)
        if x is None or x.dtype == self._layers[0].lora_A.dtype or self._layers[0].disabled:
            yield
            return
        try:
            self._cast(x.dtype)
            yield
        finally:  # a checkpoint breaks off its second call once it has what it wants
            self._drop()

    def _cast(self, dtype: torch.dtype) -> None:
        groups = dict.fromkeys(group for layer in self._layers if (group := layer.fused_group))
        shared = [group for group in groups if group.is_shared()]
        alone = [layer for layer in self._layers if layer.fused_group not in shared]
        stacks = [
            *([layer.lora_A for layer in group.layers] for group in shared),
            *([layer.lora_A] for layer in alone),
            *([layer.lora_B] for layer in self._layers),
        ]
        parameters = [parameter for stack in stacks for parameter in stack]
        casts = iter(_CastTogether.apply(dtype, [len(stack) for stack in stacks], *parameters))
        for owner in (*shared, *alone):
            _set(owner, "cast_down", next(casts))
        for layer in self._layers:
            _set(layer, "cast_up", next(casts))

    def _drop(self) -> None:
        for layer in self._layers:
            _set(layer, "cast_down", None)
            _set(layer, "cast_up", None)
            if layer.fused_group:
                layer.fused_group.cast_down = None


_set = object.__setattr__
"""A module's own looks in all of its registers first, which takes ten times as long."""

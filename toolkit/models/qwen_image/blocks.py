"""What diffusers' blocks compute, with less work: fewer kernels, and once what several layers read."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from toolkit.models.interface import project
from toolkit.models.loading import ASKED_BY, block_import

with block_import("bitsandbytes", ASKED_BY):
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0

Module = TypeVar("Module", bound=nn.Module)

PROJECTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
"""Projections of the attention of both streams, image and text: layers that read the same input."""


class FusedRMSNorm(RMSNorm):
    """The same norm by PyTorch's kernel, one where diffusers' formula takes seven.

    The output has the same bits on a CPU; the gradient is rounded once less in half precision. Compiled, it is the
    formula, which inductor fuses with what is around it.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or self.weight is None or self.weight.dtype != hidden_states.dtype:
            return super().forward(hidden_states)
        normed = rms_norm(hidden_states, self.dim, None, self.eps) * self.weight
        return normed if self.bias is None else normed + self.bias


def with_fused_norms(model: Module) -> Module:
    """The same model with `FusedRMSNorm`."""
    for layer in model.modules():
        if type(layer) is RMSNorm:
            layer.__class__ = FusedRMSNorm
    return model


class _Projected:
    """An attention whose projections of this call are there, each until it is called."""

    def __init__(self, attn: nn.Module, outputs: dict[str, Tensor]) -> None:
        self._attn, self._outputs = attn, outputs

    def __getattr__(self, name: str) -> Any:
        return (lambda x: self._outputs.pop(name)) if name in self._outputs else getattr(self._attn, name)


class SharedProjections(QwenDoubleStreamAttnProcessor2_0):
    """diffusers' attention with its projections by `project`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        outputs: dict[str, Tensor] = {}
        for names, x_BSD in zip(PROJECTIONS, (hidden_states, encoder_hidden_states), strict=True):
            outputs |= zip(names, project([getattr(attn, name) for name in names], x_BSD), strict=True)
        return super().__call__(
            _Projected(attn, outputs),
            hidden_states,
            encoder_hidden_states,
            encoder_hidden_states_mask,
            attention_mask,
            image_rotary_emb,
        )


def with_shared_projections(model: Any) -> Any:
    """The same transformer with `SharedProjections`."""
    for block in model.transformer_blocks:
        block.attn.processor = SharedProjections()
    return model

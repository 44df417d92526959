"""Which attention kernel CUDA uses: the same in the forward pass and where it is recomputed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.interfaces import BlockForward

ORDER = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""The first backend that supports the inputs is used; PyTorch's own choice depends on its version and the GPU."""

FAST = ORDER[:2]


def with_sdpa_priority(run: BlockForward) -> BlockForward:
    """A wrapper that sets the backend priority of attention to `ORDER`."""

    def run_pinned(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with sdpa_kernel(ORDER, set_priority=True):
            return run(block, *tensors)

    return run_pinned


def has_fast_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether one of the `FAST` kernels supports heads of this width on this device; runs it forward and backward."""
    query = torch.zeros((1, 1, 128, head_width), dtype=dtype, device=device, requires_grad=True)
    for backend in FAST:
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
            return True
        except RuntimeError:  # no such kernel for this GPU or dtype
            continue
    return False

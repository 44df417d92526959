"""Which attention kernel CUDA uses: the same in the forward pass and where it is
recomputed.

This module only orders PyTorch's own kernels (`scaled_dot_product_attention`); it has
none itself. Blocks compute attention as before, inside the wrapper. Called by
`block_runner`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.contracts.model import BlockForward, BlockWrapper

FAST = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
SLOW = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa_priority(device: torch.device) -> list[SDPBackend]:
    """The backends by preference. The first that supports the inputs is used, in place
    of PyTorch's own order.

    cuDNN comes first on Hopper alone: there it does 631 TFLOP/s where flash does 329
    (pytorch/pytorch#142132: heads of 128, 4608 tokens, H100); on Ada it gains nothing,
    and on Ampere and Blackwell it is slower (huggingface/transformers #48163).

    >>> [backend.name for backend in sdpa_priority(torch.device("cpu"))][:2]
    ['FLASH_ATTENTION', 'CUDNN_ATTENTION']
    """
    is_hopper = (
        device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    )
    return [*(reversed(FAST) if is_hopper else FAST), *SLOW]


def with_sdpa_priority(device: torch.device) -> BlockWrapper:
    """A wrapper that sets the backend priority of attention to `sdpa_priority`."""
    priority = sdpa_priority(device)

    def wrap(run: BlockForward) -> BlockForward:
        def run_pinned(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            with sdpa_kernel(priority, set_priority=True):
                return run(block, *tensors)

        return run_pinned

    return wrap


def has_fast_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether one of the `FAST` kernels supports heads of this width on this device. It
    runs each kernel forward and backward until one works."""
    query = torch.zeros(
        (1, 1, 128, head_width), dtype=dtype, device=device, requires_grad=True
    )
    for backend in FAST:
        try:
            with sdpa_kernel(backend), warnings.catch_warnings():
                # PyTorch warns of each reason why a kernel does not take the inputs
                warnings.simplefilter("ignore")
                torch.nn.functional.scaled_dot_product_attention(
                    query, query, query
                ).sum().backward()
            return True
        except RuntimeError:  # no such kernel for this GPU or dtype
            continue
    return False

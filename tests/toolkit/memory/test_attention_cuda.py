"""Every attention kernel that blocks may use on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tests.diffusers_reference import relative
from toolkit.memory.attention import FAST, SLOW, has_fast_kernel, with_sdpa_priority

pytestmark = pytest.mark.cuda

LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}
"""Relative error of the output and of each gradient."""

SHAPES = [(2, 2, 77, 16), (1, 4, 300, 64), (1, 24, 2088, 128)]
"""Batch, heads, tokens, head width: the tiny model's, an odd one, and the published
model's at 512 x 512."""

FAST_FROM = (8, 0)
"""Lowest compute capability that has a fast kernel, of half precision alone
(FlashAttention 2's list of GPUs)."""


def inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """q, k, v and a gradient, laid out as the layers of a block lay them out."""
    batch, heads, tokens, width = shape
    random = torch.Generator().manual_seed(tokens)
    drawn = (
        torch.randn((batch, tokens, heads, width), generator=random) for _ in range(4)
    )
    return [t.to(device, dtype).transpose(1, 2) for t in drawn]


def results(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), g)]


def exact(tensors: list[Tensor]) -> list[Tensor]:
    """The same, written out in float64."""
    q, k, v = (t.double().detach().requires_grad_() for t in tensors[:3])
    out = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].double())]


def assert_close(found: list[Tensor], expected: list[Tensor], limit: float) -> None:
    errors = [relative(ours, true) for ours, true in zip(found, expected, strict=True)]
    assert max(errors) < limit, errors


@pytest.mark.parametrize("backend", [*FAST, *SLOW], ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_each_kernel(
    cuda: torch.device, backend, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    tensors = inputs(shape, dtype, cuda)
    try:
        with sdpa_kernel(backend):
            found = results(*tensors)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(
            f"no {backend.name} kernel for {dtype} and heads of {shape[-1]} on this device"
        )
    assert_close(found, exact(tensors), LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_what_blocks_use(
    cuda: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    """There is a kernel for every type, whichever it is."""
    tensors = inputs(shape, dtype, cuda)
    found = with_sdpa_priority(tensors[0].device)(
        lambda block, *given: tuple(results(*given))
    )(None, *tensors)
    assert_close(list(found), exact(tensors), LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_a_fast_kernel_is_found_where_there_is_one(
    cuda: torch.device, dtype: torch.dtype
) -> None:
    expected = (
        dtype.itemsize == 2 and torch.cuda.get_device_capability(cuda) >= FAST_FROM
    )
    assert has_fast_kernel(cuda, dtype, 128) is expected

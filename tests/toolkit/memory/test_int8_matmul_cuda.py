"""Products in int8 on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.diffusers_reference import relative
from tests.toolkit.memory.test_int8_matmul import normal
from toolkit.memory.int8_matmul import (
    HOPPER,
    LEVELS,
    MIN_CAPABILITY,
    as_supported,
    int8_mm,
    is_exact,
    is_supported,
    quantize_rows,
)

pytestmark = pytest.mark.cuda

SHAPES = [(17, 64, 24), (33, 640, 48), (40, 3072, 256), (4173, 3072, 3072), (4173, 3072, 12288), (4173, 12288, 3072)]
"""Rows, summed side, other side: the fewest and odd ones, and those of the published model."""


def codes(*shape: int, device: torch.device, seed: int) -> torch.Tensor:
    """All values from -127 to 127, equally often."""
    random = torch.Generator(device).manual_seed(seed)
    return torch.randint(-LEVELS, LEVELS + 1, shape, generator=random, device=device).to(torch.int8)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("transposed", [True, False], ids=["forward", "backward"])
def test_sums_are_exact(cuda: torch.device, shape: tuple[int, int, int], transposed: bool) -> None:
    """In float64 these sums are exact too. The forward pass has the second factor by columns, as cuBLASLt needs it; the
    backward pass by rows, of which `as_supported` makes a copy."""
    rows, summed, other = shape
    first = codes(rows, summed, device=cuda, seed=1)
    second = codes(other, summed, device=cuda, seed=2).t() if transposed else codes(summed, other, device=cuda, seed=2)
    assert torch.equal(torch._int_mm(first, as_supported(second)).double(), first.double() @ second.double())


def test_sums_of_the_largest_numbers_do_not_overflow(cuda: torch.device) -> None:
    assert is_exact(cuda)
    first, second = (torch.full(shape, -LEVELS, dtype=torch.int8, device=cuda) for shape in ((32, 12288), (12288, 64)))
    assert bool((torch._int_mm(first, as_supported(second)) == LEVELS**2 * 12288).all())


def test_rows_are_quantized_as_on_the_cpu(cuda: torch.device) -> None:
    x = normal(64, 3072) * torch.logspace(-6, 6, 64)[:, None]
    here, there = quantize_rows(x), quantize_rows(x.to(cuda))
    torch.testing.assert_close(there.scale_M1.cpu(), here.scale_M1)
    steps = (there.codes_MK.cpu().int() - here.codes_MK.int()).abs()
    assert int(steps.max()) <= 1 and float(steps.float().mean()) < 1e-4  # a tie may be rounded the other way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_that_of_the_rounded_factors(cuda: torch.device, dtype: torch.dtype) -> None:
    rows = quantize_rows(normal(33, 640).to(cuda, dtype))
    second = codes(640, 48, device=cuda, seed=2)
    expected = (rows.codes_MK.double() @ second.double()) * rows.scale_M1.double()
    assert relative(int8_mm(rows, second, dtype), expected) < 1e-7


def test_auto_takes_what_the_device_is_fast_at(cuda: torch.device) -> None:
    is_supported.cache_clear()
    capability = torch.cuda.get_device_capability(cuda)
    able = capability >= MIN_CAPABILITY and capability[0] != HOPPER
    assert is_supported("auto", cuda, (3072, 3072), compiled=True) is able
    assert not is_supported("auto", cuda, (3072, 3072), compiled=False)
    is_supported.cache_clear()

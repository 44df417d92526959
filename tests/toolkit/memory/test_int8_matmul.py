"""Products in int8: what they compute, when they are used, and what the rounding costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from tests.diffusers_reference import CPU, relative
from tests.measured import at_most
from toolkit.memory import int8_matmul
from toolkit.memory.int8_matmul import (
    MAX_ERROR,
    SMALLEST_SIDE_ON_CUDA,
    exact_directions,
    int8_mm,
    is_exact,
    is_supported,
    quantization_error,
    quantize_rows,
)
from toolkit.number_types import INT8_SIDE

CUDA = torch.device("cuda:0")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rows_are_rounded_to_the_nearest_of_255_levels() -> None:
    x = normal(20, 64) * torch.logspace(-6, 6, 20)[:, None]
    rows = quantize_rows(x)
    assert rows.codes_MK.dtype == torch.int8
    assert torch.equal(rows.codes_MK.abs().amax(dim=1), torch.full((20,), 127, dtype=torch.int8))
    error = (rows.codes_MK * rows.scale_M1 - x).abs()
    assert bool((error <= 0.5001 * rows.scale_M1).all())


def test_the_product_is_that_of_the_rounded_factors() -> None:
    rows = quantize_rows(normal(33, 640))
    codes = torch.randint(-127, 128, (640, 48), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    expected = (rows.codes_MK.double() @ codes.double()) * rows.scale_M1.double()
    assert relative(int8_mm(rows, codes, torch.float32), expected) < 1e-7


def test_the_input_is_left_as_it_was() -> None:
    x = normal(20, 64)
    before = x.clone()
    quantize_rows(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("outlier", [1, 2, 10, 30, 1000])
def test_the_error_is_foreseen_that_ordinary_values_will_have(outlier: float) -> None:
    """12 of 3072 channels tower above the others, as in large transformers."""
    x = normal(64, 3072)
    x[:, :12] *= outlier
    rows = quantize_rows(x)
    error = relative((rows.codes_MK * rows.scale_M1)[:, 12:], x[:, 12:])
    assert bool(quantization_error(x) > MAX_ERROR) == (error > MAX_ERROR) == (outlier >= 10)


def test_rows_of_zeros_do_not_make_the_others_look_better() -> None:
    x = normal(40, 64)
    x[5:] = 0
    torch.testing.assert_close(quantization_error(x), quantization_error(x[:5]))
    rows = quantize_rows(x)
    assert not rows.codes_MK[5:].any()
    assert torch.equal(rows.codes_MK[:5], quantize_rows(x[:5]).codes_MK)
    zeros = torch.zeros(20, 64)
    assert not quantization_error(zeros)
    assert not int8_mm(quantize_rows(zeros), torch.ones(64, 8, dtype=torch.int8), torch.float32).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_have_no_small_error(value: float) -> None:
    x = normal(20, 64)
    x[3, 3] = value
    assert not bool(quantization_error(x) <= MAX_ERROR)


def test_ordinary_rows_lose_about_a_percent() -> None:
    x = normal(256, 3072)
    rows = quantize_rows(x)
    at_most("int8 rows of 3072 normal numbers, relative error", relative(rows.codes_MK * rows.scale_M1, x), 0.012)


# ------------------------------------------------------------ when


@pytest.fixture(autouse=True)
def asked_anew():
    is_supported.cache_clear()
    yield
    is_supported.cache_clear()


def test_auto_takes_wide_layers_on_fast_cpus(monkeypatch) -> None:
    monkeypatch.setattr(int8_matmul, "_fast_cpu", lambda: True)
    wide, narrow = (INT8_SIDE, 2048), (2048, INT8_SIDE - 1)
    assert is_supported("auto", CPU, wide) and not is_supported("auto", CPU, narrow)
    is_supported.cache_clear()
    monkeypatch.setattr(int8_matmul, "_fast_cpu", lambda: False)
    assert not is_supported("auto", CPU, wide)


@pytest.mark.parametrize(
    ("capability", "shape", "compiled", "taken"),
    [
        ((8, 0), (SMALLEST_SIDE_ON_CUDA, 2048), True, True),
        ((12, 0), (3072, SMALLEST_SIDE_ON_CUDA), True, True),
        ((7, 5), (3072, 3072), True, False),
        ((9, 0), (3072, 3072), True, False),  # measured: slower than bf16
        ((8, 9), (3072, 3072), False, False),
        ((8, 9), (3072, SMALLEST_SIDE_ON_CUDA - 8), True, False),
        ((8, 9), (3072, SMALLEST_SIDE_ON_CUDA + 4), True, False),
    ],
)
def test_auto_takes_wide_layers_of_compiled_blocks_on_cuda(monkeypatch, capability, shape, compiled, taken) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(int8_matmul, "is_exact", lambda device: True)
    assert is_supported("auto", CUDA, shape, compiled) is taken
    is_supported.cache_clear()
    monkeypatch.setattr(int8_matmul, "is_exact", lambda device: False)
    assert not is_supported("auto", CUDA, shape, compiled)


def test_true_takes_what_the_device_can_multiply(monkeypatch) -> None:
    monkeypatch.setattr(int8_matmul, "is_exact", lambda device: True)
    assert is_supported(True, CPU, (7, 5)) and not is_supported(False, CPU, (1024, 1024))
    # CUDA's kernel takes sizes divisible by 8 alone
    assert (
        is_supported(True, CUDA, (64, 24))
        and not is_supported(True, CUDA, (64, 20))
        and not is_supported(True, CUDA, (20, 64))
    )
    is_supported.cache_clear()
    monkeypatch.setattr(int8_matmul, "is_exact", lambda device: False)
    assert not is_supported(True, CPU, (1024, 1024))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch):
    """Replaces the device's kernel, and has what was found out before forgotten."""

    def replace(kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        monkeypatch.setattr(torch, "_int_mm", kernel)
        exact_directions.cache_clear()

    yield replace
    exact_directions.cache_clear()


def test_a_device_whose_sums_overflow_or_that_has_no_kernel_is_found_out(kernels) -> None:
    real = torch._int_mm
    kernels(real)
    assert is_exact(CPU) and exact_directions(CPU) == {"forward", "backward"}
    kernels(lambda a, b: real(a, b).clamp(-32768, 32767))  # sums kept in 16 bits
    assert not is_exact(CPU)

    def missing(a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError("aten::_int_mm")

    kernels(missing)
    assert not is_exact(CPU)


def by_columns(codes: Tensor) -> Tensor:
    """The same matrix with strides (1, K)."""
    return codes.t().contiguous().t()


def by_columns_only(kernel: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A kernel that refuses a second factor that lies by rows, as cuBLASLt's does."""

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        if (a.stride(), b.stride()) != ((a.shape[1], 1), (1, b.shape[0])):
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul")
        return kernel(a, b)

    return multiply


def test_each_direction_is_judged_by_itself(kernels) -> None:
    kernels(by_columns_only(torch._int_mm))
    assert exact_directions(CPU) == {"forward"} and is_exact(CPU)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout for CUDA, on the CPU; tests/faults/test_cuda.py has it on a device."""
    monkeypatch.setattr(int8_matmul, "as_supported", by_columns)


@pytest.mark.usefixtures("as_on_cuda")
def test_both_products_have_the_layout_that_cuda_multiplies(kernels) -> None:
    """Row-major times column-major; a kernel that has nothing else is exact in both directions."""
    real = torch._int_mm
    rows = [quantize_rows(normal(33, side, seed=2)) for side in (24, 40)]
    codes_OI = torch.randint(-127, 128, (40, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    pairs = [
        (rows[0], codes_OI.t()),
        (rows[1], codes_OI),
        (rows[1]._replace(codes_MK=by_columns(rows[1].codes_MK)), codes_OI),
    ]
    expected = [real(one.codes_MK, codes).float() * one.scale_M1 for one, codes in pairs]
    kernels(by_columns_only(real))
    assert exact_directions(CPU) == {"forward", "backward"}
    for (one, codes), product in zip(pairs, expected, strict=True):
        assert torch.equal(int8_mm(one, codes, torch.float32), product)


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_cuda")
def test_inductor_keeps_that_layout() -> None:
    codes_OI = torch.ones(40, 24, dtype=torch.int8)
    compiled = torch.compile(lambda x, codes: int8_mm(quantize_rows(x), codes, torch.float32))
    _, [code] = run_and_get_code(compiled, normal(33, 40), codes_OI)
    [call] = [line for line in code.splitlines() if "extern_kernels._int_mm(" in line]
    assert "(40, 24), (1, 40), 0)" in call

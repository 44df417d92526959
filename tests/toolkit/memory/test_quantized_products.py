"""Products of two factors of 8 bits: how exact they are, and where there are none."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.diffusers_reference import CPU, relative
from tests.measured import at_most
from tests.processes import python
from toolkit.errors import UserError
from toolkit.memory import quantized_products
from toolkit.memory.quantization import quantizer
from toolkit.memory.quantized_products import LEAST_ROWS, check_products, multiply
from toolkit.number_types import TYPES_OF_PRODUCTS, QuantizedProducts

TOKENS, INPUTS, OUTPUTS = 128, 1024, 256
KINDS = tuple(TYPES_OF_PRODUCTS)
CUDA = torch.device("cuda:0")


def layer_of(
    kind: str, products: str | None, sides: tuple[int, int] = (INPUTS, OUTPUTS)
) -> tuple[nn.Module, Tensor]:
    """A frozen layer without a bias, and its weight before it was quantized."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(*sides, bias=False, dtype=torch.bfloat16)
    block = nn.ModuleDict({"layer": plain})
    quantizer(TYPES_OF_PRODUCTS[kind], products=products)(block, "block")
    return block["layer"], plain.weight.detach()


def errors_of(layer: nn.Module, weight_OI: Tensor, x_MI: Tensor) -> tuple[float, float]:
    """Relative errors of the product and of the gradient of its input, by float64."""
    x_MI = x_MI.bfloat16().requires_grad_()
    y_MO = layer(x_MI)
    g_MO = normal(*y_MO.shape, seed=2).bfloat16()
    y_MO.backward(g_MO)
    weight_OI = weight_OI.double()
    return (
        relative(y_MO.detach(), x_MI.detach().double() @ weight_OI.t()),
        relative(x_MI.grad, g_MO.double() @ weight_OI),
    )


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(x_MI: Tensor) -> Tensor:
    """6 channels tower above the others, as in large transformers."""
    return x_MI * torch.where(torch.arange(x_MI.shape[1]) % 170 == 7, 60.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_and_its_gradient_are_off_by_little(kind: str) -> None:
    layer, weight_OI = layer_of(kind, kind)
    plain, _ = layer_of(kind, None)
    limit, with_them = {"int8": (0.013, 0.017), "fp8": (0.038, 0.038)}[kind]
    for name, x_MI, most in (
        ("normal numbers", normal(TOKENS, INPUTS), limit),
        ("6 outliers", with_outliers(normal(TOKENS, INPUTS)), with_them),
    ):
        forward, backward = errors_of(layer, weight_OI, x_MI)
        at_most(f"{kind} product, {name}", forward, most)
        at_most(f"gradient of a {kind} product, {name}", backward, limit)
        assert forward > 1.2 * errors_of(plain, weight_OI, x_MI)[0]


def test_the_rotation_spreads_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    x_MI = with_outliers(normal(TOKENS, INPUTS))
    rotated, _ = errors_of(*layer_of("int8", "int8"), x_MI)
    monkeypatch.setattr("toolkit.memory.quantization.ROTATED", INPUTS + 1)
    straight, _ = errors_of(*layer_of("int8", "int8"), x_MI)
    assert straight > 4 * rotated


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "sides", "is_used"),
    [
        (LEAST_ROWS, (INPUTS, OUTPUTS), True),
        (LEAST_ROWS - 1, (INPUTS, OUTPUTS), False),
        (TOKENS, (96, 80), True),  # no whole groups to rotate
        (TOKENS, (1000, OUTPUTS), False),
        (TOKENS, (INPUTS, 250), False),
        (0, (INPUTS, OUTPUTS), False),
    ],
)
def test_sizes_that_a_kernel_refuses_are_multiplied_as_ever(
    kind: str, rows: int, sides: tuple[int, int], is_used: bool, monkeypatch
) -> None:
    used = []
    monkeypatch.setattr(
        "toolkit.memory.quantization.multiply",
        lambda *given: used.append(given) or multiply(*given),
    )
    layer, weight_OI = layer_of(kind, kind, sides)
    forward, backward = errors_of(layer, weight_OI, normal(rows, sides[0]))
    assert bool(used) == is_used
    assert rows == 0 or max(forward, backward) < 0.04


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so(kind: str, value: float) -> None:
    layer, _ = layer_of(kind, kind)
    x_MI = normal(TOKENS, INPUTS).bfloat16()
    x_MI[3, 3] = value
    is_finite_M = layer(x_MI).isfinite().all(dim=1)
    assert is_finite_M.tolist() == [row != 3 for row in range(TOKENS)]


@pytest.mark.parametrize(
    ("kind", "capability", "message"),
    [
        ("int8", (7, 0), "7.5 or higher, and a card has 7.0. Write false."),
        ("fp8", (7, 0), "8.9 or higher, and a card has 7.0. Write false."),
        ("fp8", (8, 6), "and a card has 8.6. Write false, or int8 with 'qtype: int8'."),
    ],
)
def test_a_card_without_a_kernel_is_named(
    kind: QuantizedProducts, capability: tuple[int, int], message: str, monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a card")
    with pytest.raises(UserError, match="quantized_products") as refused:
        check_products(kind, CUDA)
    assert str(refused.value).endswith(message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_whose_sums_are_wrong_is_refused(
    kind: QuantizedProducts, monkeypatch
) -> None:
    check_products(kind, CPU)
    sums = quantized_products._sums
    monkeypatch.setattr(quantized_products, "_sums", lambda *codes: sums(*codes) // 2)
    with pytest.raises(UserError, match=r"cpu has no exact .*overflow.* Write false\."):
        check_products(kind, CPU)
    monkeypatch.setattr(torch, "_int_mm", None)
    monkeypatch.setattr(torch, "_scaled_mm", None)
    monkeypatch.setattr(quantized_products, "_sums", sums)
    with pytest.raises(UserError, match="not callable"):
        check_products(kind, CPU)


SUMS = """
import torch
from toolkit.errors import UserError
from toolkit.memory.quantized_products import check_products

codes_MK = torch.full((32, 64), 127, dtype=torch.int8)
exact = bool((torch._int_mm(codes_MK, codes_MK.t()) == 127**2 * 64).all())
try:
    check_products("int8", torch.device("cpu"))
except UserError:
    assert not exact
else:
    assert exact
"""


def test_a_processor_whose_sums_overflow_is_refused() -> None:
    """PyTorch 2.13.0 leaves the sums of a processor with VNNI to oneDNN, which adds two
    products in 16 bits if it may not use VNNI."""
    python(SUMS, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_is_one_program_with_the_same_numbers(kind: str) -> None:
    layer, _ = layer_of(kind, kind)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for rows in (TOKENS, TOKENS + 12, 40):
        found = []
        for run in (layer, compiled):
            x_MI = normal(rows, INPUTS).bfloat16().requires_grad_()
            y_MO = run(x_MI)
            y_MO.backward(normal(rows, OUTPUTS, seed=2).bfloat16())
            found += [y_MO.detach(), x_MI.grad]
        torch.testing.assert_close(found[2:], found[:2])
    assert counters["stats"]["unique_graphs"] == 1

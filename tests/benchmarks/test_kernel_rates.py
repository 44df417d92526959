import pytest
import torch

from benchmarks import kernel_rates
from benchmarks.random_weights import DRAWN_SIZES
from benchmarks.synthetic import ModelSize


@pytest.fixture(scope="module")
def found() -> dict:
    return kernel_rates.measure(DRAWN_SIZES["XS"], torch.device("cpu"), calls=1)


def test_every_product_and_every_way_to_attend_has_a_rate_or_a_reason(
    found: dict,
) -> None:
    assert len(found) == 3 * len(kernel_rates.MATMUL_PAIRS) + 4 * len(
        kernel_rates.BACKENDS
    )
    assert all(one.keys() in ({"ms", "tflops"}, {"failed"}) for one in found.values())
    assert found["bf16 forward 32x64x256"]["tflops"] > 0
    assert found["attention chosen by torch, mask, forward and backward"]["tflops"] > 0
    assert "cudnn" in "".join(name for name, one in found.items() if "failed" in one)
    table = list(kernel_rates.lines(found))
    assert len(table) == 1 + len(found)
    assert any("not possible" in line for line in table)


def test_operations_are_those_of_the_shapes() -> None:
    size = ModelSize(
        heads=2,
        head_dim=8,
        layers=1,
        rope_axes=(2, 2, 4),
        text_width=8,
        latent_side=4,
        text_tokens=4,
    )
    device = torch.device("cpu")
    work = {
        name: flops
        for name, flops, _ in [
            *kernel_rates._products(size, device),
            *kernel_rates._attention(size, device),
        ]
    }
    assert work["int8 backward 8x16x64"] == 2 * 8 * 16 * 64
    # 12 tokens, 16 wide; backward takes twice the forward pass
    assert work["attention flash, forward"] == 4 * 12**2 * 16
    assert work["attention flash, mask, forward and backward"] == 3 * 4 * 12**2 * 16

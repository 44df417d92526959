from __future__ import annotations

import pytest
import torch

from toolkit.memory.quantization import quantize_weight
from toolkit.train.recovery import RecoveryMaker


def test_the_delta_is_the_best_of_its_rank_and_of_full_rank_the_weight() -> None:
    torch.manual_seed(0)
    weight_OI = torch.randn(96, 128)
    quantized = quantize_weight(weight_OI, "int4")
    singular = torch.linalg.svdvals(weight_OI - quantized.dequantize())
    found = []
    for rank in (4, 16, 96):
        maker = RecoveryMaker(rank)
        up_OR, down_RI = maker("blocks.0.to_q", weight_OI, quantized)
        error = maker.errors["blocks.0.to_q"]
        assert len(down_RI) == rank
        assert error.recovered == pytest.approx(
            float(singular[rank:].norm() / weight_OI.norm()), abs=1e-6
        )
        assert error.plain == pytest.approx(float(singular.norm() / weight_OI.norm()))
        found.append(error.recovered)
    assert error.plain > found[0] > found[1] > found[2]
    torch.testing.assert_close(
        quantized.dequantize() + up_OR @ down_RI, weight_OI, rtol=0, atol=1e-5
    )


def test_moments_lower_the_error_of_the_outputs() -> None:
    """Inputs of unlike size: the weighted delta is worse for the weight and better for
    what the layer computes; its recorded error is that of the outputs."""
    torch.manual_seed(0)
    weight_OI, scale_I = torch.randn(64, 64), torch.logspace(-2, 1, 64)
    scale_I[5] = 0
    x_MI = torch.randn(20000, 64) * scale_I
    quantized = quantize_weight(weight_OI, "uint4")
    moments = {"a": x_MI.square().mean(0), "b": torch.zeros(64)}
    plain, weighted = RecoveryMaker(8), RecoveryMaker(8, moments)

    def error(maker: RecoveryMaker) -> float:
        up_OR, down_RI = maker("a", weight_OI, quantized)
        exact = x_MI @ weight_OI.T
        return float(
            (x_MI @ (quantized.dequantize() + up_OR @ down_RI).T - exact).norm()
            / exact.norm()
        )

    assert error(weighted) < 0.8 * error(plain)
    assert weighted.errors["a"].recovered == pytest.approx(error(weighted), rel=0.05)
    up_OR, _ = weighted("b", weight_OI, quantized)  # never seen anything but 0
    torch.testing.assert_close(up_OR, plain.low_rank["a"][0])


def test_kinds_are_means_over_blocks() -> None:
    maker = RecoveryMaker(1)
    for name, weight in [
        ("blocks.0.mlp.net.2", torch.ones(4, 128)),
        ("blocks.1.mlp.net.2", torch.randn(4, 128)),
    ]:
        maker(name, weight, quantize_weight(weight, "int4"))
    errors = list(maker.errors.values())
    assert maker.by_kind()["mlp.net"].plain == pytest.approx(
        (errors[0].plain + errors[1].plain) / 2
    )

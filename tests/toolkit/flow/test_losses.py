import math

import pytest
import torch

from toolkit.flow.losses import HUBER_BENDS, LOSSES, loss_per_sample
from toolkit.flow.settings import FlowSettings

HALF = torch.full((1,), 0.5)


def pair(*differences: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target [1, 1, 1, n] that differ by these."""
    difference = torch.tensor(differences, dtype=torch.float64).view(1, 1, 1, -1)
    return difference, torch.zeros_like(difference)


def test_the_loss_is_a_mean_over_each_sample() -> None:
    predicted_BCHW, target_BCHW = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    predicted_BCHW[1, 0, 0, 0] = 4.0
    assert loss_per_sample(predicted_BCHW, target_BCHW).tolist() == [0.0, 4.0]
    assert loss_per_sample(predicted_BCHW, target_BCHW, settings=FlowSettings(loss_type="mae")).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_of_bfloat16_is_computed_in_float32(loss_type: str) -> None:
    predicted_BCHW = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    predicted_BCHW[0, 0, 0, 0] = 1.0078125  # the next bfloat16: its square is not one
    settings = FlowSettings(loss_type=loss_type)
    loss_B = loss_per_sample(predicted_BCHW, torch.zeros_like(predicted_BCHW), HALF, settings=settings)
    in_float64_B = loss_per_sample(predicted_BCHW.double(), torch.zeros(1, 1, 64, 64).double(), HALF, settings=settings)
    assert (loss_B.dtype, in_float64_B.dtype) == (torch.float32, torch.float64)
    assert loss_B.item() == pytest.approx(in_float64_B.item(), abs=2e-7)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_mask_weighs_pixels_and_the_mean_stays_over_all(loss_type: str) -> None:
    predicted_BCHW, target_BCHW = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mask_B1HW = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    settings = FlowSettings(loss_type=loss_type)
    whole = loss_per_sample(predicted_BCHW, target_BCHW, HALF, settings=settings).item()
    assert loss_per_sample(predicted_BCHW, target_BCHW, HALF, mask_B1HW, settings).item() == pytest.approx(
        whole * 1.5 / 4
    )


def test_huber_is_the_formula_of_its_source() -> None:
    """2 c (sqrt(d^2 + c^2) - c) with c = 0.3 * 2 at d = 0.8: 2 * 0.6 * (1 - 0.6)."""
    settings = FlowSettings(loss_type="huber", huber_c=0.3, huber_scale=2.0)
    assert loss_per_sample(*pair(0.8), HALF, settings=settings).item() == pytest.approx(1.2 * 0.4)


def test_huber_is_a_square_near_zero_and_a_line_far_away() -> None:
    settings = FlowSettings(loss_type="huber", huber_c=0.1)
    assert loss_per_sample(*pair(1e-5), HALF, settings=settings).item() == pytest.approx(1e-10, rel=1e-6)
    assert loss_per_sample(*pair(1e4), HALF, settings=settings).item() == pytest.approx(0.2 * (1e4 - 0.1), rel=1e-6)


def test_huber_has_a_gradient_where_the_prediction_is_right() -> None:
    predicted_BCHW = torch.zeros(1, 1, 1, 2, requires_grad=True)
    loss_per_sample(predicted_BCHW, torch.zeros(1, 1, 1, 2), HALF, settings=FlowSettings(loss_type="huber")).backward()
    assert predicted_BCHW.grad.tolist() == [[[[0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("schedule", "at_0", "at_half", "at_1"),
    [("constant", 0.2, 0.2, 0.2), ("exponential", 2.0, 2 * math.sqrt(0.1), 0.2), ("snr", 2.0, 2 * 0.325, 0.2)],
)
def test_the_bend_of_huber_over_the_noise_level(schedule: str, at_0: float, at_half: float, at_1: float) -> None:
    c_B = HUBER_BENDS[schedule](torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.1, 2.0)
    assert c_B.tolist() == pytest.approx([at_0, at_half, at_1])


def test_each_sample_has_the_bend_of_its_own_noise_level() -> None:
    predicted_BCHW, target_BCHW = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    settings = FlowSettings(loss_type="huber", huber_schedule="exponential")
    both_B = loss_per_sample(predicted_BCHW, target_BCHW, torch.tensor([0.2, 0.9]), settings=settings)
    for row, t in enumerate((0.2, 0.9)):
        alone_B = loss_per_sample(predicted_BCHW[:1], target_BCHW[:1], torch.tensor([t]), settings=settings)
        assert both_B[row] == alone_B[0]
    assert both_B[0] > both_B[1]

import pytest
import torch

from tests.golden_tables import golden
from toolkit.flow.path import linear_path, mse_per_sample


@pytest.mark.parametrize("t", [0.0, 0.25, 0.999])
def test_the_path_leads_back_to_both_ends(t: float) -> None:
    x0_BCHW, noise_BCHW = torch.randn((2, 3, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    x_t_BCHW, velocity_BCHW = linear_path(x0_BCHW, noise_BCHW, torch.full((3,), t))
    torch.testing.assert_close(x_t_BCHW - t * velocity_BCHW, x0_BCHW)
    torch.testing.assert_close(x_t_BCHW + (1 - t) * velocity_BCHW, noise_BCHW)


def test_each_sample_has_its_own_noise_fraction() -> None:
    x0_BCHW, noise_BCHW = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    x_t_BCHW, _ = linear_path(x0_BCHW, noise_BCHW, torch.tensor([0.0, 0.3, 1.0]))
    assert x_t_BCHW[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.3, 1.0])


@pytest.mark.parametrize("case", golden("aitk_timesteps", table="add_noise"), ids=range(2))
def test_noise_is_added_as_ai_toolkit_adds_it(case: dict) -> None:
    x0_BCHW = torch.tensor(case["sample"])[:, None, None, None]
    t_B = torch.tensor(case["timesteps"]) / 1000
    x_t_BCHW, _ = linear_path(x0_BCHW, torch.full_like(x0_BCHW, case["noise"]), t_B)
    torch.testing.assert_close(x_t_BCHW.flatten(), torch.tensor(case["noisy"]), rtol=0, atol=1e-5)


def test_the_path_keeps_precision_for_bfloat16_input() -> None:
    x0_BCHW = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    x_t_BCHW, velocity_BCHW = linear_path(x0_BCHW, torch.zeros_like(x0_BCHW), torch.tensor([0.999]))
    torch.testing.assert_close(x_t_BCHW, torch.full((1, 1, 2, 2), 0.001))
    assert velocity_BCHW.dtype == torch.float32


def test_float64_stays_float64() -> None:
    x0_BCHW = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    x_t_BCHW, velocity_BCHW = linear_path(x0_BCHW, x0_BCHW + 1, torch.tensor([0.5]))
    assert x_t_BCHW.dtype == velocity_BCHW.dtype == mse_per_sample(x_t_BCHW, velocity_BCHW).dtype == torch.float64


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\) and noise \(1, 1, 2, 3\) differ"):
        linear_path(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3), torch.zeros(1))


def test_the_loss_is_a_mean_over_each_sample() -> None:
    predicted_BCHW, target_BCHW = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    predicted_BCHW[1, 0, 0, 0] = 4.0
    assert mse_per_sample(predicted_BCHW, target_BCHW).tolist() == [0.0, 4.0]


def test_the_loss_of_bfloat16_is_computed_in_float32() -> None:
    predicted_BCHW = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    predicted_BCHW[0, 0, 0, 0] = 1.0078125  # the next bfloat16: its square is not one
    loss_B = mse_per_sample(predicted_BCHW, torch.zeros_like(predicted_BCHW))
    assert loss_B.dtype == torch.float32
    assert loss_B.item() == pytest.approx(1 + (1.0078125**2 - 1) / 4096, abs=1e-7)


def test_the_mask_weighs_pixels_and_the_mean_stays_over_all() -> None:
    predicted_BCHW, target_BCHW = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mask_B1HW = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    assert mse_per_sample(predicted_BCHW, target_BCHW, mask_B1HW).item() == pytest.approx(1.5 / 4)

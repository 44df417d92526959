import pytest
import torch

from tests.golden_tables import golden
from toolkit.flow.interpolant import linear_path


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
    assert x_t_BCHW.dtype == velocity_BCHW.dtype == torch.float64


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\) and noise \(1, 1, 2, 3\) differ"):
        linear_path(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3), torch.zeros(1))

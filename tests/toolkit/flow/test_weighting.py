import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.flow.timesteps import SAMPLINGS
from toolkit.flow.weighting import WEIGHTINGS, weighting_for


def test_weights_are_those_of_ai_toolkit() -> None:
    cases = golden("aitk_timesteps", table="loss_weight", option="weighted")
    for case in cases:
        expected = torch.tensor(case["weight"], dtype=torch.float64)
        weights = weighting_for("weighted")(torch.tensor(case["timesteps"], dtype=torch.float64) / 1000)
        at_most("loss weights", float(((weights - expected) / expected).abs().max()), 1e-5)


def test_the_mean_over_the_grid_is_one() -> None:
    """So that `weighted` does not change the learning rate on the whole; ai-toolkit's mean is 0.99999998."""
    grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert float(weighting_for("weighted")(grid).mean()) == pytest.approx(1, abs=2e-3)


def test_between_the_known_points_weights_are_interpolated() -> None:
    t_B = torch.tensor([0.9930, 0.99475, 0.9965], dtype=torch.float64)
    low, middle, high = weighting_for("weighted")(t_B).tolist()
    assert middle == pytest.approx((low + high) / 2) and low != high


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_every_timestep_type_has_a_weighting(timestep_type: str) -> None:
    weights = weighting_for(timestep_type)(torch.tensor([0.1, 0.9]))
    assert weights.shape == (2,)
    assert (weights == 1).all() == (timestep_type != "weighted")


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_is_finite_at_both_ends(name: str) -> None:
    weights = WEIGHTINGS[name](torch.tensor([0.0, 1.0]))
    assert torch.isfinite(weights).all() and (weights > 0).all()

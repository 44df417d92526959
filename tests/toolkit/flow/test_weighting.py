import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import SAMPLINGS
from toolkit.flow.weighting import SAMPLING_ONLY, WEIGHTINGS, weights

WEIGHTED = FlowSettings(timestep_type="weighted")
OPTIONS = {
    "weighted": WEIGHTED,
    "linear_timesteps (bell)": FlowSettings(linear_timesteps=True),
    "linear_timesteps2 (half bell)": FlowSettings(linear_timesteps2=True),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_are_those_of_ai_toolkit(option: str) -> None:
    for case in golden("aitk_timesteps", table="loss_weight", option=option):
        expected = torch.tensor(case["weight"], dtype=torch.float64)
        found = weights(torch.tensor(case["timesteps"], dtype=torch.float64) / 1000, OPTIONS[option])
        at_most(f"loss weights, {option}", float(((found - expected) / expected).abs().max()), 1e-5)


@pytest.mark.parametrize("case", golden("timestep_sampling", table="loss_weight"), ids=lambda c: c["weighting_scheme"])
def test_weights_are_those_of_musubi(case: dict) -> None:
    t_B = torch.tensor(case["model_timestep"], dtype=torch.float64) / 1000
    found = weights(t_B, FlowSettings(weighting_scheme=case["weighting_scheme"]))
    expected = torch.tensor(case["weight"] or [1.0] * len(t_B), dtype=torch.float64)
    at_most(f"loss weights, {case['weighting_scheme']}", float(((found - expected) / expected).abs().max()), 1e-5)


@pytest.mark.parametrize("option", ["weighted", "linear_timesteps (bell)"])
def test_the_mean_over_the_grid_is_one(option: str) -> None:
    """So that the learning rate means the same on the whole; ai-toolkit's mean of `weighted` is 0.99999998."""
    grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert float(weights(grid, OPTIONS[option]).mean()) == pytest.approx(1, abs=2e-3)


def test_between_the_known_points_weights_are_interpolated() -> None:
    t_B = torch.tensor([0.9930, 0.99475, 0.9965], dtype=torch.float64)
    low, middle, high = weights(t_B, WEIGHTED).tolist()
    assert middle == pytest.approx((low + high) / 2) and low != high


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_only_the_weighted_type_brings_a_weighting(timestep_type: str) -> None:
    found = weights(torch.tensor([0.1, 0.9]), FlowSettings(timestep_type=timestep_type))
    assert found.shape == (2,)
    assert (found == 1).all() == (timestep_type != "weighted")


def test_weightings_multiply() -> None:
    t_B = torch.tensor([0.2, 0.7])
    both = weights(t_B, FlowSettings(timestep_type="weighted", weighting_scheme="cosmap", linear_timesteps=True))
    torch.testing.assert_close(both, WEIGHTINGS["flex"](t_B) * WEIGHTINGS["cosmap"](t_B) * WEIGHTINGS["bell"](t_B))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_is_finite_at_both_ends(name: str) -> None:
    found = WEIGHTINGS[name](torch.tensor([0.0, 1.0]))
    assert torch.isfinite(found).all() and (found >= 0).all()


def test_schemes_that_shape_the_draws_weigh_nothing() -> None:
    for scheme in SAMPLING_ONLY:
        assert (weights(torch.tensor([0.1, 0.9]), FlowSettings(weighting_scheme=scheme)) == 1).all()

import pytest
import torch

from tests.golden_tables import golden, table
from tests.measured import at_most
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import SAMPLINGS
from toolkit.flow.weighting import WEIGHTINGS, weights

WEIGHTED = FlowSettings(timestep_type="weighted")
OPTIONS = {
    "weighted": WEIGHTED,
    "linear_timesteps (bell)": FlowSettings(linear_timesteps=True),
    "linear_timesteps2 (half bell)": FlowSettings(linear_timesteps2=True),
}


LEVELS = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
"""t at each place of ai-toolkit's linear grid."""


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_are_those_of_ai_toolkit(option: str) -> None:
    whole = weights(LEVELS, OPTIONS[option]).double()
    for case in golden("aitk_timesteps", table="loss_weight", option=option):
        expected = torch.tensor(case["weight"], dtype=torch.float64)
        found = weights(torch.tensor(case["timesteps"], dtype=torch.float64) / 1000, OPTIONS[option])
        assert torch.equal(found, whole[case["indices"]].to(found.dtype))
        at_most(f"loss weights, {option}", float(((found - expected) / expected).abs().max()), 1e-5)
        at_most(f"their mean over 1000 levels, {option}", abs(float(whole.mean()) / case["mean_over_1000"] - 1), 1e-6)
        at_most(f"the largest of them, {option}", abs(float(whole.max()) / case["max_over_1000"] - 1), 1e-6)


def test_every_weight_of_the_weighted_type_is_that_of_ai_toolkit() -> None:
    expected = torch.tensor(table("aitk_weighting_1000")["weights"], dtype=torch.float64)
    at_most("all loss weights, weighted", float((weights(LEVELS, WEIGHTED) - expected).abs().max()), 1e-6)


OF_MUSUBI = golden("timestep_sampling", table="loss_weight", project="musubi")


@pytest.mark.parametrize("case", OF_MUSUBI, ids=lambda case: case["weighting_scheme"])
def test_weights_are_those_of_musubi(case: dict) -> None:
    t_B = torch.tensor(case["model_timestep"], dtype=torch.float64) / 1000
    found = weights(t_B, FlowSettings(weighting_scheme=case["weighting_scheme"]))
    expected = torch.tensor(case["weight"] or [1.0] * len(t_B), dtype=torch.float64)
    at_most(f"loss weights, {case['weighting_scheme']}", float(((found - expected) / expected).abs().max()), 1e-5)


def test_between_two_levels_the_nearer_one_gives_the_weight() -> None:
    """As draws that bounds cut off may lie there; at 0, below the last level, it is that one's."""
    t_B = torch.tensor([0.9789, 0.979, 0.97949, 0.9796, 0.0], dtype=torch.float64)
    at_979, at_980, last = weights(torch.tensor([0.979, 0.98, 0.001]), WEIGHTED).tolist()
    assert weights(t_B, WEIGHTED).tolist() == [at_979, at_979, at_979, at_980, last]
    assert len({at_979, at_980, last}) == 3


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_only_the_weighted_type_brings_a_weighting(timestep_type: str) -> None:
    found = weights(torch.tensor([0.1, 0.9]), FlowSettings(timestep_type=timestep_type))
    assert found.shape == (2,)
    assert (found == 1).all() == (timestep_type != "weighted")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (FlowSettings(timestep_type="weighted", linear_timesteps=True), "flex"),
        (FlowSettings(timestep_type="weighted", linear_timesteps2=True), "flex"),
        (FlowSettings(linear_timesteps=True, linear_timesteps2=True), "half_bell"),
    ],
)
def test_of_ai_toolkits_weightings_one_counts(settings: FlowSettings, name: str) -> None:
    t_B = torch.tensor([0.2, 0.7, 0.95])
    torch.testing.assert_close(weights(t_B, settings), WEIGHTINGS[name](t_B))


def test_a_weighting_scheme_multiplies_it() -> None:
    t_B = torch.tensor([0.2, 0.7])
    both = weights(t_B, FlowSettings(timestep_type="weighted", weighting_scheme="cosmap"))
    torch.testing.assert_close(both, WEIGHTINGS["flex"](t_B) * WEIGHTINGS["cosmap"](t_B))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_is_finite_at_both_ends(name: str) -> None:
    found = WEIGHTINGS[name](torch.tensor([0.0, 1.0]))
    assert torch.isfinite(found).all() and (found >= 0).all()


def test_schemes_that_shape_the_draws_weigh_nothing() -> None:
    for scheme in ("logit_normal", "mode"):
        assert (weights(torch.tensor([0.1, 0.9]), FlowSettings(weighting_scheme=scheme)) == 1).all()

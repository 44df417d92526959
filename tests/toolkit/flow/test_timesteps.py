import math

import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.flow.timesteps import SAMPLINGS, draw_timestep, linear
from toolkit.seeding import generator

MUSUBI = {
    "uniform": {"timestep_sampling": "uniform"},
    "sigmoid": {"timestep_sampling": "sigmoid", "sigmoid_scale": 1.0},
}


def drawn(timestep_type: str, count: int = 20000) -> torch.Tensor:
    return torch.tensor([draw_timestep(timestep_type, generator(1, "timestep", 0, n)) for n in range(count)]).double()


@pytest.mark.parametrize("timestep_type", MUSUBI)
def test_a_random_number_gives_the_t_of_musubi(timestep_type: str) -> None:
    (case,) = golden("timestep_sampling", params=MUSUBI[timestep_type], table="transform")
    t = SAMPLINGS[timestep_type].transform(torch.tensor(case["base_values"]))
    at_most(f"{timestep_type} timesteps", float((t - torch.tensor(case["t"])).abs().max()), 2e-6)


@pytest.mark.parametrize("timestep_type", MUSUBI)
def test_a_stratified_uniform_gives_the_t_of_musubi(timestep_type: str) -> None:
    (case,) = golden("timestep_sampling", params=MUSUBI[timestep_type], table="from_uniform")
    base = torch.tensor(case["base_values"], dtype=torch.float64)
    if timestep_type == "sigmoid":
        base = torch.special.ndtri(base)
    t = SAMPLINGS[timestep_type].transform(base)
    torch.testing.assert_close(t, torch.tensor(case["t"], dtype=torch.float64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("timestep_type", MUSUBI)
def test_draws_have_the_distribution_of_musubi(timestep_type: str) -> None:
    (case,) = golden("timestep_sampling", params=MUSUBI[timestep_type], table="quantiles")
    t = drawn(timestep_type)
    quantiles = torch.quantile(t, torch.tensor(case["q"], dtype=torch.float64))
    torch.testing.assert_close(quantiles, torch.tensor(case["t_quantiles"], dtype=torch.float64), rtol=0, atol=0.01)
    assert (float(t.mean()), float(t.std())) == pytest.approx((case["t_mean"], case["t_std"]), abs=0.005)


def test_sigmoid_draws_have_the_distribution_of_ai_toolkit() -> None:
    (case,) = golden("aitk_timesteps", table="grid", timestep_type="sigmoid")
    quantiles = torch.quantile(drawn("sigmoid") * 1000, torch.tensor(case["quantiles_q"], dtype=torch.float64))
    # ai-toolkit's random quantiles are given to 5; ours add the noise of 20000 draws.
    torch.testing.assert_close(quantiles, torch.tensor(case["quantiles"], dtype=torch.float64), rtol=0, atol=9)


@pytest.mark.parametrize("timestep_type", ["linear", "weighted"])
def test_the_grid_is_that_of_ai_toolkit(timestep_type: str) -> None:
    (case,) = golden("aitk_timesteps", table="grid", timestep_type=timestep_type, num_timesteps=1000)
    middle_of_cell = (torch.tensor(case["indices"], dtype=torch.float64) + 0.5) / 1000
    t = SAMPLINGS[timestep_type].transform(middle_of_cell)
    torch.testing.assert_close(1000 * t, torch.tensor(case["timesteps"], dtype=torch.float64), rtol=0, atol=2e-3)


def test_the_grid_never_reaches_zero() -> None:
    """At t = 0 there is no noise to learn from."""
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert linear(ends).tolist() == pytest.approx([1.0, 0.001])


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_a_draw_depends_on_its_own_generator_alone(timestep_type: str) -> None:
    first = draw_timestep(timestep_type, generator(1, "timestep", 0, 3))
    torch.manual_seed(0)
    assert draw_timestep(timestep_type, generator(1, "timestep", 0, 3)) == first
    assert draw_timestep(timestep_type, generator(1, "timestep", 0, 4)) != first
    assert 0 <= first <= 1

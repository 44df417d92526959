"""The training objective: interpolant, loss of each sample, weight by timestep."""

import math

import pytest
import torch

from tests.golden_tables import golden, table
from tests.measured import at_most
from toolkit.contracts.model import PREDICTIONS
from toolkit.flow.loss import (
    INTERPOLANTS,
    LOSSES,
    WEIGHTINGS,
    bell,
    cosmap,
    flex,
    linear_path,
    loss_per_sample,
    trigonometric_path,
    weights,
)
from toolkit.flow.sampler import euler_sample, sigmas
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import SAMPLINGS

# ------------------------------------------------------------ interpolant


BACK = {
    # path, of t -> what of x_t and of what is predicted is the image, and the noise
    linear_path: lambda t: ((1, -t), (1, 1 - t)),
    trigonometric_path: lambda t: (
        (math.cos(math.pi * t / 2), -math.sin(math.pi * t / 2)),
        (math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)),
    ),
}


@pytest.mark.parametrize("path", BACK)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.999])
def test_the_path_leads_back_to_both_ends(path, t: float) -> None:
    ends = torch.randn((2, 3, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    x_t_BCHW, predicted_BCHW = path(*ends, torch.full((3,), t))
    for (of_x_t, of_predicted), end_BCHW in zip(BACK[path](t), ends, strict=True):
        found_BCHW = of_x_t * x_t_BCHW + of_predicted * predicted_BCHW
        torch.testing.assert_close(found_BCHW, end_BCHW)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_what_is_predicted_times_its_speed_is_the_derivative_of_the_path(
    name: str,
) -> None:
    assert tuple(INTERPOLANTS) == PREDICTIONS
    mix, speed = INTERPOLANTS[name]
    x0_BCHW, noise_BCHW = torch.randn(
        (2, 3, 5, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    t_B = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    (before, _), (at, predicted), (after, _) = (
        mix(x0_BCHW, noise_BCHW, t_B + shift) for shift in (-1e-5, 0, 1e-5)
    )
    torch.testing.assert_close(
        speed * predicted, (after - before) / 2e-5, rtol=1e-6, atol=1e-7
    )
    assert at.shape == x0_BCHW.shape


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_sampling_with_what_the_path_asks_for_gives_the_image(name: str) -> None:
    """Of a data set of one image: Euler's method comes to it from any noise."""
    mix, speed = INTERPOLANTS[name]
    x0_BCHW, noise_BCHW = torch.randn(
        (2, 1, 5, 4, 4), generator=torch.Generator().manual_seed(0)
    )

    def velocity(x_t_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return speed * mix(x0_BCHW, noise_BCHW, t_B)[1]

    errors = [
        (euler_sample(velocity, noise_BCHW, sigmas(steps, 0.0, None)) - x0_BCHW)
        .abs()
        .max()
        for steps in (100, 1000)
    ]
    assert errors[1] < 0.01 and (name == "flow" or errors[1] < errors[0] / 5)


def test_each_sample_has_its_own_noise_fraction() -> None:
    x0_BCHW, noise_BCHW = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    x_t_BCHW, _ = linear_path(x0_BCHW, noise_BCHW, torch.tensor([0.0, 0.3, 1.0]))
    assert x_t_BCHW[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.3, 1.0])


@pytest.mark.parametrize(
    "case", golden("aitk_timesteps", table="add_noise"), ids=range(2)
)
def test_noise_is_added_as_ai_toolkit_adds_it(case: dict) -> None:
    x0_BCHW = torch.tensor(case["sample"])[:, None, None, None]
    t_B = torch.tensor(case["timesteps"]) / 1000
    x_t_BCHW, _ = linear_path(x0_BCHW, torch.full_like(x0_BCHW, case["noise"]), t_B)
    torch.testing.assert_close(
        x_t_BCHW.flatten(), torch.tensor(case["noisy"]), rtol=0, atol=1e-5
    )


def test_the_path_keeps_precision_for_bfloat16_input() -> None:
    x0_BCHW = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    x_t_BCHW, velocity_BCHW = linear_path(
        x0_BCHW, torch.zeros_like(x0_BCHW), torch.tensor([0.999])
    )
    torch.testing.assert_close(x_t_BCHW, torch.full((1, 1, 2, 2), 0.001))
    assert velocity_BCHW.dtype == torch.float32


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"\(1, 1, 2, 2\) and noise \(1, 1, 2, 3\) differ"
    ):
        linear_path(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3), torch.zeros(1))


# ------------------------------------------------------------ loss of each sample

HALF = torch.full((1,), 0.5)


def pair(*differences: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target [1, 1, 1, n] that differ by these."""
    difference = torch.tensor(differences, dtype=torch.float64).view(1, 1, 1, -1)
    return difference, torch.zeros_like(difference)


def test_the_loss_is_a_mean_over_each_sample() -> None:
    predicted_BCHW, target_BCHW = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    predicted_BCHW[1, 0, 0, 0] = 4.0
    assert loss_per_sample(predicted_BCHW, target_BCHW).tolist() == [0.0, 4.0]
    assert loss_per_sample(
        predicted_BCHW, target_BCHW, settings=FlowSettings(loss_type="mae")
    ).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_of_bfloat16_is_computed_in_float32(loss_type: str) -> None:
    predicted_BCHW = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    predicted_BCHW[0, 0, 0, 0] = 1.0078125  # the next bfloat16: its square is not one
    settings = FlowSettings(loss_type=loss_type)
    loss_B = loss_per_sample(
        predicted_BCHW, torch.zeros_like(predicted_BCHW), HALF, settings=settings
    )
    in_float64_B = loss_per_sample(
        predicted_BCHW.double(),
        torch.zeros(1, 1, 64, 64).double(),
        HALF,
        settings=settings,
    )
    assert (loss_B.dtype, in_float64_B.dtype) == (torch.float32, torch.float64)
    assert loss_B.item() == pytest.approx(in_float64_B.item(), abs=2e-7)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_mask_weighs_pixels_and_the_mean_stays_over_all(loss_type: str) -> None:
    predicted_BCHW, target_BCHW = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mask_B1HW = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    settings = FlowSettings(loss_type=loss_type)
    whole = loss_per_sample(predicted_BCHW, target_BCHW, HALF, settings=settings).item()
    assert loss_per_sample(
        predicted_BCHW, target_BCHW, HALF, mask_B1HW, settings
    ).item() == pytest.approx(whole * 1.5 / 4)


@pytest.mark.parametrize(
    ("difference", "loss"),
    [
        # 2 c (sqrt(d^2 + c^2) - c) with c = 0.1
        (0.2, 0.2 * (math.sqrt(0.05) - 0.1)),
        # a square near zero, and a line far away
        (1e-5, 1e-10),
        (1e4, 0.2 * (1e4 - 0.1)),
    ],
)
def test_huber_is_the_formula_of_its_source(difference: float, loss: float) -> None:
    huber = FlowSettings(loss_type="huber")
    found_B = loss_per_sample(*pair(difference), HALF, settings=huber)
    assert found_B.item() == pytest.approx(loss, rel=1e-6)


def test_huber_has_a_gradient_where_the_prediction_is_right() -> None:
    predicted_BCHW = torch.zeros(1, 1, 1, 2, requires_grad=True)
    huber, target_BCHW = FlowSettings(loss_type="huber"), torch.zeros(1, 1, 1, 2)
    loss_per_sample(predicted_BCHW, target_BCHW, HALF, settings=huber).backward()
    assert predicted_BCHW.grad.tolist() == [[[[0.0, 0.0]]]]


# ------------------------------------------------------------ weight by timestep

WEIGHTED = FlowSettings(timestep_type="weighted")
OPTIONS = {
    "weighted": WEIGHTED,
    "linear_timesteps (bell)": FlowSettings(linear_timesteps=True),
}


LEVELS = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
"""t at each place of ai-toolkit's linear grid."""


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_are_those_of_ai_toolkit(option: str) -> None:
    whole = weights(LEVELS, OPTIONS[option]).double()
    for case in golden("aitk_timesteps", table="loss_weight", option=option):
        expected = torch.tensor(case["weight"], dtype=torch.float64)
        found = weights(
            torch.tensor(case["timesteps"], dtype=torch.float64) / 1000, OPTIONS[option]
        )
        assert torch.equal(found, whole[case["indices"]].to(found.dtype))
        at_most(
            f"loss weights, {option}",
            float(((found - expected) / expected).abs().max()),
            1e-5,
        )
        at_most(
            f"their mean over 1000 levels, {option}",
            abs(float(whole.mean()) / case["mean_over_1000"] - 1),
            1e-6,
        )
        at_most(
            f"the largest of them, {option}",
            abs(float(whole.max()) / case["max_over_1000"] - 1),
            1e-6,
        )


def test_every_weight_of_the_weighted_type_is_that_of_ai_toolkit() -> None:
    expected = torch.tensor(
        table("aitk_weighting_1000")["weights"], dtype=torch.float64
    )
    at_most(
        "all loss weights, weighted",
        float((weights(LEVELS, WEIGHTED) - expected).abs().max()),
        1e-6,
    )


OF_MUSUBI = golden("timestep_sampling", table="loss_weight", project="musubi")


@pytest.mark.parametrize("case", OF_MUSUBI, ids=lambda case: case["weighting_scheme"])
def test_weights_are_those_of_musubi(case: dict) -> None:
    t_B = torch.tensor(case["model_timestep"], dtype=torch.float64) / 1000
    found = weights(t_B, FlowSettings(weighting_scheme=case["weighting_scheme"]))
    expected = torch.tensor(case["weight"] or [1.0] * len(t_B), dtype=torch.float64)
    at_most(
        f"loss weights, {case['weighting_scheme']}",
        float(((found - expected) / expected).abs().max()),
        1e-5,
    )


def test_between_two_levels_the_nearer_one_gives_the_weight() -> None:
    """As draws that bounds cut off may lie there; at 0, below the last level, it is
    that one's."""
    t_B = torch.tensor([0.9789, 0.979, 0.97949, 0.9796, 0.0], dtype=torch.float64)
    at_979, at_980, last = weights(
        torch.tensor([0.979, 0.98, 0.001]), WEIGHTED
    ).tolist()
    assert weights(t_B, WEIGHTED).tolist() == [at_979, at_979, at_979, at_980, last]
    assert len({at_979, at_980, last}) == 3


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_only_the_weighted_type_brings_a_weighting(timestep_type: str) -> None:
    found = weights(torch.tensor([0.1, 0.9]), FlowSettings(timestep_type=timestep_type))
    assert found.shape == (2,)
    assert (found == 1).all() == (timestep_type != "weighted")


def test_of_ai_toolkits_weightings_one_counts() -> None:
    t_B = torch.tensor([0.2, 0.7, 0.95])
    both = FlowSettings(timestep_type="weighted", linear_timesteps=True)
    torch.testing.assert_close(weights(t_B, both), flex(t_B))


def test_a_weighting_scheme_multiplies_it() -> None:
    t_B = torch.tensor([0.2, 0.7])
    both = weights(
        t_B, FlowSettings(timestep_type="weighted", weighting_scheme="cosmap")
    )
    torch.testing.assert_close(both, flex(t_B) * cosmap(t_B))


@pytest.mark.parametrize("weighting", [*WEIGHTINGS.values(), bell, flex])
def test_every_weighting_is_finite_at_both_ends(weighting) -> None:
    found = weighting(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(found).all() and (found >= 0).all()


def test_schemes_that_shape_the_draws_weigh_nothing() -> None:
    for scheme in ("logit_normal", "mode"):
        assert (
            weights(torch.tensor([0.1, 0.9]), FlowSettings(weighting_scheme=scheme))
            == 1
        ).all()

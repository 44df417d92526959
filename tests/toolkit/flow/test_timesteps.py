import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.contracts.model import DynamicShift
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import (
    SAMPLINGS,
    TimestepContext,
    draw_timestep,
    sampling_for,
    strata,
    timesteps,
    timesteps_from_uniform,
)
from toolkit.system.seeding import generator

LINE = DynamicShift()


def picture_of(width: int, height: int) -> TimestepContext:
    tokens = (width // 16) * (height // 16)
    mu = LINE.mu(tokens, 1000)
    return TimestepContext(tokens, mu, LINE.shift_terminal)


def ours(params: dict) -> FlowSettings:
    """musubi-tuner's options as ours; its default shift is 1."""
    params = {"discrete_flow_shift": 1.0, **params}
    kind = params.pop("timestep_sampling")
    kind = {"qwen_shift": "model_shift", "qinglong_qwen": "qinglong_model"}.get(
        kind, kind
    )
    return FlowSettings(timestep_type=kind, **params)


def musubi(table: str) -> Iterator:
    """Its cases, less the `sigma` rows whose bounds are indices
    (tests/golden/README.md)."""
    for case in golden("timestep_sampling", table=table):
        params = case["params"]
        bounds = params.get("min_timestep", 0) + params.get("max_timestep", 1000)
        other_bounds = params["timestep_sampling"] == "sigma" and bounds != 1000
        if not other_bounds:
            yield pytest.param(
                case,
                id="-".join(
                    map(str, [*params.values(), case["width"], case["height"]])
                ),
            )


def settings_of(timestep_type: str, **settings) -> FlowSettings:
    shift = 2.2 if timestep_type == "shift" else None
    return FlowSettings(
        timestep_type=timestep_type, **{"discrete_flow_shift": shift, **settings}
    )


PICTURE = picture_of(1024, 1024)


def drawn(
    settings: FlowSettings, picture: TimestepContext = PICTURE, count: int = 20000
) -> torch.Tensor:
    shared = generator(1, "timestep", 0, 0)
    return torch.tensor(
        [draw_timestep(settings, shared, picture) for _ in range(count)],
        dtype=torch.float64,
    )


# ------------------------------------------------------------ musubi-tuner


@pytest.mark.parametrize("case", musubi("transform"))
def test_a_random_number_gives_the_t_of_musubi(case: dict) -> None:
    settings, base = ours(case["params"]), torch.tensor(case["base_values"])
    assert (sampling_for(settings).base is torch.randn) == (case["base"] == "normal")
    t = timesteps(base, settings, picture_of(case["width"], case["height"]))
    name = case["params"]["timestep_sampling"]
    at_most(f"{name} timesteps", float((t - torch.tensor(case["t"])).abs().max()), 2e-6)
    if name == "sigma":  # elsewhere musubi tells its model 1000 t + 1
        torch.testing.assert_close(
            1000 * t, torch.tensor(case["model_timestep"]), rtol=0, atol=2e-3
        )


@pytest.mark.parametrize("case", musubi("from_uniform"))
def test_a_stratified_uniform_gives_the_t_of_musubi(case: dict) -> None:
    share = torch.tensor(case["base_values"], dtype=torch.float64)
    settings = ours(case["params"])
    t = timesteps_from_uniform(
        share, settings, picture_of(case["width"], case["height"])
    )
    torch.testing.assert_close(
        t, torch.tensor(case["t"], dtype=torch.float64), rtol=0, atol=2e-6
    )
    if case["params"]["timestep_sampling"] == "sigma":
        told = torch.tensor(case["model_timestep"], dtype=torch.float64)
        torch.testing.assert_close(1000 * t, told, rtol=0, atol=2e-3)


@pytest.mark.parametrize("case", musubi("quantiles"))
def test_draws_have_the_distribution_of_musubi(case: dict) -> None:
    """Evenly spread shares have none of the noise of draws: its 200000 have enough of
    it."""
    share = torch.arange(0.5, 20000, dtype=torch.float64) / 20000
    t = timesteps_from_uniform(
        share, ours(case["params"]), picture_of(case["width"], case["height"])
    )
    quantiles = torch.quantile(t, torch.tensor(case["q"], dtype=torch.float64))
    torch.testing.assert_close(
        quantiles,
        torch.tensor(case["t_quantiles"], dtype=torch.float64),
        rtol=0,
        atol=0.01,
    )
    assert (float(t.mean()), float(t.std())) == pytest.approx(
        (case["t_mean"], case["t_std"]), abs=0.005
    )


@pytest.mark.parametrize("width", [512, 768, 1024, 1328])
def test_the_shift_by_size(width: int) -> None:
    shift = math.exp(picture_of(width, width).mu)
    assert shift == pytest.approx(
        {512: 1.714, 768: 1.828, 1024: 2.001, 1328: 2.303}[width], abs=1e-3
    )


# ------------------------------------------------------------ ai-toolkit


@pytest.mark.parametrize("timestep_type", ["linear", "weighted", "sigma"])
def test_the_grid_is_that_of_ai_toolkit(timestep_type: str) -> None:
    (case,) = golden(
        "aitk_timesteps", table="grid", timestep_type="linear", num_timesteps=1000
    )
    middle_of_cell = (torch.tensor(case["indices"], dtype=torch.float64) + 0.5) / 1000
    t = timesteps(middle_of_cell, settings_of(timestep_type), PICTURE)
    torch.testing.assert_close(
        1000 * t,
        torch.tensor(case["timesteps"], dtype=torch.float64),
        rtol=0,
        atol=2e-3,
    )


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_a_bell_over_the_loss_goes_with_the_linear_grid(timestep_type: str) -> None:
    """In ai-toolkit whatever the type; `sigma` with a density included."""
    middle_of_cell = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    expected = timesteps(middle_of_cell, FlowSettings(timestep_type="linear"), PICTURE)
    settings = FlowSettings(
        timestep_type=timestep_type,
        weighting_scheme="logit_normal",
        linear_timesteps=True,
    )
    assert sampling_for(settings).base is torch.rand
    assert torch.equal(timesteps(middle_of_cell, settings, PICTURE), expected)


@pytest.mark.parametrize(
    "case",
    golden("aitk_timesteps", table="grid", timestep_type="shift", num_timesteps=1000),
)
def test_shift_without_a_number_draws_the_levels_of_a_sampling_run_as_ai_toolkit(
    case: dict,
) -> None:
    picture = picture_of(8 * case["latent_width"], 8 * case["latent_height"])
    assert (
        picture.tokens
        == case["latent_width"] * case["latent_height"] // case["patch_size"] ** 2
    )
    middle_of_cell = (torch.tensor(case["indices"], dtype=torch.float64) + 0.5) / 1000
    t = timesteps(middle_of_cell, FlowSettings(timestep_type="shift"), picture)
    torch.testing.assert_close(
        1000 * t,
        torch.tensor(case["timesteps"], dtype=torch.float64),
        rtol=0,
        atol=2e-3,
    )


@pytest.mark.parametrize("timestep_type", ["sigmoid", "lognorm_blend"])
def test_random_grids_have_the_distribution_of_ai_toolkit(timestep_type: str) -> None:
    (case,) = golden(
        "aitk_timesteps", table="grid", timestep_type=timestep_type, random=True
    )
    share = torch.arange(0.5, 20000, dtype=torch.float64) / 20000
    t = timesteps_from_uniform(
        share, FlowSettings(timestep_type=timestep_type), PICTURE
    )
    quantiles = 1000 * torch.quantile(
        t, torch.tensor(case["quantiles_q"], dtype=torch.float64)
    )
    # ai-toolkit's quantiles are those of 100 random grids, given to 5.
    torch.testing.assert_close(
        quantiles, torch.tensor(case["quantiles"], dtype=torch.float64), rtol=0, atol=5
    )


@pytest.mark.parametrize(
    "settings", [FlowSettings(), FlowSettings(timestep_type="lognorm_blend")]
)
def test_draws_have_the_distribution_of_even_shares(settings: FlowSettings) -> None:
    at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    expected = timesteps_from_uniform(at, settings, PICTURE)
    torch.testing.assert_close(
        torch.quantile(drawn(settings, count=6000), at), expected, rtol=0, atol=0.02
    )


# ------------------------------------------------------------ every sampling


@pytest.mark.parametrize("timestep_type", SAMPLINGS)
def test_a_draw_depends_on_its_own_generator_alone(timestep_type: str) -> None:
    settings = settings_of(timestep_type)
    first = draw_timestep(settings, generator(1, "timestep", 0, 3), PICTURE)
    torch.manual_seed(0)
    assert draw_timestep(settings, generator(1, "timestep", 0, 3), PICTURE) == first
    assert draw_timestep(settings, generator(1, "timestep", 0, 4), PICTURE) != first
    assert 0 <= first <= 1


EVERY = [
    *(
        settings_of(kind)
        for kind, sampling in SAMPLINGS.items()
        if sampling.increasing is not None
    ),
    FlowSettings(timestep_type="shift"),
]
EVERY += [
    settings_of("sigma", weighting_scheme=scheme) for scheme in ("logit_normal", "mode")
]


@pytest.mark.parametrize(
    "settings", EVERY, ids=lambda s: f"{s.timestep_type}-{s.weighting_scheme}"
)
def test_the_random_number_orders_the_noise(settings: FlowSettings) -> None:
    """By `rises`: the strata of an epoch and content_or_style rest on it."""
    share = torch.arange(1, 1000, dtype=torch.float64) / 1000
    steps = timesteps_from_uniform(share, settings, PICTURE).diff()
    assert (
        (steps >= -1e-12).all()
        if sampling_for(settings).increasing
        else (steps <= 1e-12).all()
    )


@pytest.mark.parametrize(
    "settings", EVERY, ids=lambda s: f"{s.timestep_type}-{s.weighting_scheme}"
)
def test_bounds_mean_the_same_noise_for_every_type(settings: FlowSettings) -> None:
    share = torch.arange(0.5, 4000, dtype=torch.float64) / 4000
    whole = timesteps_from_uniform(share, settings, PICTURE)
    bounded = timesteps_from_uniform(
        share, replace(settings, min_timestep=100, max_timestep=500), PICTURE
    )
    assert bounded.min() >= 0.1 and bounded.max() <= 0.5
    torch.testing.assert_close(bounded, 0.1 + 0.4 * whole, rtol=0, atol=1.1e-3)


@pytest.mark.parametrize(
    "settings", EVERY, ids=lambda s: f"{s.timestep_type}-{s.weighting_scheme}"
)
def test_bounds_can_cut_the_distribution_instead_of_squeezing_it(
    settings: FlowSettings,
) -> None:
    share = torch.arange(0.5, 4000, dtype=torch.float64) / 4000
    whole = timesteps_from_uniform(share, settings, PICTURE)
    inside = whole[(whole >= 0.3) & (whole <= 0.7)].sort().values
    cut = replace(
        settings, min_timestep=300, max_timestep=700, preserve_distribution_shape=True
    )
    at = torch.linspace(0, 1, 21, dtype=torch.float64)
    t = timesteps_from_uniform(share, cut, PICTURE)
    torch.testing.assert_close(
        torch.quantile(t, at), torch.quantile(inside, at), rtol=0, atol=4e-3
    )
    assert t.min() >= 0.3 and t.max() <= 0.7


def test_what_hardly_ever_lies_between_the_bounds_is_drawn_between_them_all_the_same() -> (
    None
):
    settings = FlowSettings(
        sigmoid_scale=0.01,
        min_timestep=900,
        max_timestep=901,
        preserve_distribution_shape=True,
    )
    assert all(0.9 <= t <= 0.901 for t in drawn(settings, count=20))


def test_a_mixture_has_the_shares_of_its_parts() -> None:
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = timesteps_from_uniform(
        share, FlowSettings(timestep_type="qinglong_model"), PICTURE
    )
    parts = timesteps_from_uniform(
        share, FlowSettings(timestep_type="model_shift"), PICTURE
    )
    little = timesteps_from_uniform(
        share, FlowSettings(timestep_type="logsnr", logit_mean=5.36), PICTURE
    )
    for level in (0.03, 0.07, 0.2, 0.5, 0.8):
        expected = (
            0.95 * (parts <= level).double().mean()
            + 0.05 * (little <= level).double().mean()
        )
        assert float((t <= level).double().mean()) == pytest.approx(
            float(expected), abs=1e-4
        )


@pytest.mark.parametrize(
    "settings", EVERY, ids=lambda s: f"{s.timestep_type}-{s.weighting_scheme}"
)
def test_content_prefers_noise_and_style_the_picture(settings: FlowSettings) -> None:
    """The share of the balanced distribution below a draw is 1 - u^3 or u^3: on average
    3/4 or 1/4."""
    share = torch.arange(0.5, 4000, dtype=torch.float64) / 4000
    balanced = timesteps_from_uniform(share, settings, PICTURE).sort().values
    for preference, mean in (("content", 0.75), ("style", 0.25)):
        t = timesteps_from_uniform(
            share, replace(settings, content_or_style=preference), PICTURE
        )
        below = torch.searchsorted(balanced, t.contiguous()).double() / len(balanced)
        assert float(below.mean()) == pytest.approx(mean, abs=2e-3)
        assert float((below**2).mean()) == pytest.approx(
            {"content": 9 / 14, "style": 1 / 7}[preference], abs=3e-3
        )


def test_a_preference_is_drawn_as_it_is_computed() -> None:
    settings = FlowSettings(timestep_type="uniform", content_or_style="content")
    assert float(drawn(settings, count=4000).mean()) == pytest.approx(0.75, abs=0.015)


def test_a_float32_number_just_below_a_level_is_not_rounded_to_the_next() -> None:
    """Place u on the ladder is floor(1000 u), worked out in the precision of u."""
    just_below = torch.arange(1, 1000, dtype=torch.float32) / 1000
    just_below = torch.nextafter(just_below, torch.zeros(()))
    expected = torch.floor(just_below * 1000)
    t = timesteps(just_below, settings_of("linear"), PICTURE)
    assert torch.equal((1000 * (1 - t.double())).round(), expected.double())


def test_the_grid_never_reaches_zero() -> None:
    """At t = 0 there is no noise to learn from."""
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0), 1.0], dtype=torch.float64)
    assert timesteps(ends, settings_of("linear"), PICTURE).tolist() == pytest.approx(
        [1.0, 0.001, 0.001]
    )


# ------------------------------------------------------------ strata


@pytest.mark.parametrize("timestep_type", ["sigmoid", "logsnr", "linear"])
def test_a_stratum_is_its_part_of_the_distribution(timestep_type: str) -> None:
    settings = settings_of(timestep_type, num_timestep_buckets=4)
    edges = (
        timesteps_from_uniform(
            torch.tensor([0.25, 0.5], dtype=torch.float64), settings, PICTURE
        )
        .sort()
        .values
    )
    for position in range(50):
        t = draw_timestep(
            settings, generator(1, "timestep", 0, position), PICTURE, stratum=1
        )
        assert edges[0] - 1e-6 <= t <= edges[1] + 1e-6


@pytest.mark.parametrize(("samples", "buckets"), [(12, 4), (13, 4), (3, 10), (5, 1)])
def test_strata_are_equally_frequent(samples: int, buckets: int) -> None:
    drawn = strata(samples, buckets, generator(1, "strata", 0))
    counts = [drawn.count(stratum) for stratum in range(buckets)]
    assert sum(counts) == len(drawn) == samples
    assert max(counts) <= -(-samples // buckets) and (
        samples < buckets or min(counts) >= 1
    )


def test_few_samples_reach_every_stratum_in_the_long_run() -> None:
    seen = {
        stratum
        for epoch in range(40)
        for stratum in strata(3, 10, generator(1, "strata", epoch))
    }
    assert seen == set(range(10))

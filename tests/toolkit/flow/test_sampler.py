import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.contracts.model import DynamicShift
from toolkit.flow.sampler import euler_sample, resampled, sigmas

SHIFT = DynamicShift()


def test_noise_levels_are_those_of_diffusers() -> None:
    worst = 0.0
    for case in golden("sigmas"):
        tokens = (case["width"] // 16) * (case["height"] // 16)
        assert tokens == case["image_seq_len"]
        mu = SHIFT.mu(tokens, case["steps"])
        assert mu == pytest.approx(case["mu"], abs=1e-6)
        levels = sigmas(case["steps"], mu, SHIFT.shift_terminal)
        assert len(levels) == case["steps"] + 1 and levels.dtype == torch.float32
        worst = max(
            worst,
            float(
                (levels.double() - torch.tensor(case["sigmas"], dtype=torch.float64))
                .abs()
                .max()
            ),
        )
        assert (1000 * levels[:-1]).tolist() == pytest.approx(
            case["timesteps"], abs=1e-3
        )
    at_most("noise levels (sigmas)", worst, 1e-6)


def test_a_grid_is_resampled_over_its_index_between_the_same_ends() -> None:
    grid = (1.0, 0.9, 0.5, 0.2)
    assert resampled(grid, 4) == grid
    assert resampled(grid, 7) == pytest.approx((1.0, 0.95, 0.9, 0.7, 0.5, 0.35, 0.2))
    assert (
        resampled(grid, 2) == (1.0, 0.2)
        and resampled(grid, 1) == (1.0,)
        and resampled((), 3) == ()
    )


def test_an_even_grid_is_resampled_as_the_pipelines_of_distilled_models_do() -> None:
    """Source: diffusers 0.42.1, pipeline_z_image.py, `get_default_z_image_sigmas`."""
    even = torch.linspace(1, 1 / 8, 8).tolist()
    for steps in (1, 4, 8, 9, 20):
        wanted = torch.linspace(1, 1 / steps, steps).tolist()
        assert resampled(even, steps) == pytest.approx(wanted)


def test_a_constant_velocity_is_followed_exactly() -> None:
    noise_BCHW = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    image_BCHW = torch.full_like(noise_BCHW, 0.25)
    asked = []

    def velocity(x_t_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        asked.append(t_B)
        torch.testing.assert_close(
            x_t_BCHW, image_BCHW + t_B[0] * (noise_BCHW - image_BCHW)
        )
        return noise_BCHW - image_BCHW

    levels = sigmas(7, mu=0.6, terminal=0.02)
    torch.testing.assert_close(euler_sample(velocity, noise_BCHW, levels), image_BCHW)
    assert [t_B.tolist() for t_B in asked] == [
        [float(level)] * 2 for level in levels[:-1]
    ]


def test_half_precision_velocities_are_added_up_in_float32() -> None:
    noise_BCHW = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    result = euler_sample(
        lambda x, t: torch.ones_like(x).bfloat16(),
        noise_BCHW,
        torch.linspace(1, 0, 1001),
    )
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.zeros(1, 1, 2, 2), rtol=0, atol=1e-5)


def test_the_picture_is_made_where_the_velocity_is() -> None:
    """The noise is drawn on the CPU; on a GPU the model answers from there. The meta
    device stands in for one."""
    noise_BCHW = torch.randn(1, 2, 4, 4)
    field = lambda x_BCHW, t_B: torch.zeros_like(x_BCHW, device="meta")  # noqa: E731 - as short as it can be
    assert (
        euler_sample(field, noise_BCHW, torch.tensor([1.0, 0.5, 0.0])).device.type
        == "meta"
    )

"""The terms of the loss by hand, per image, and the gradients they have to give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from extensions.from_scratch.autoencoder_losses import (
    PIXEL_LOSSES,
    color,
    contrast,
    hinge_discriminator,
    hinge_generator,
    histogram,
    kl_divergence,
    kl_weight,
    mse,
    r1_penalty,
    reconstruction,
)
from extensions.from_scratch.losses_config import LossesConfig
from extensions.from_scratch.trainer import LossBalance
from tests.conftest import heard
from toolkit.contracts.training import StepResult
from toolkit.train.run import Run

PHOTOS = Path(__file__).resolve().parents[3] / "config" / "examples" / "photos"


def images(count: int = 3, side: int = 24) -> Tensor:
    return (
        torch.rand(
            count, 3, side, side + 4, generator=torch.Generator().manual_seed(count)
        )
        * 2
        - 1
    )


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_each_is_zero_at_the_target_and_has_a_gradient_elsewhere(name: str) -> None:
    loss, target = PIXEL_LOSSES[name], images()
    assert loss(target, target).abs().max() < 1e-6
    output = (target * 0.7 + 0.1).requires_grad_()
    loss(output, target).sum().backward()
    assert (
        output.grad is not None
        and output.grad.abs().max() > 0
        and torch.isfinite(output.grad).all()
    )


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_each_is_a_number_per_image(name: str) -> None:
    """How images are batched changes nothing."""
    loss, target = PIXEL_LOSSES[name], images()
    output = target.flip(3)
    alone = torch.cat(
        [loss(output[row : row + 1], target[row : row + 1]) for row in range(3)]
    )
    torch.testing.assert_close(loss(output, target), alone)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_flat_images_give_finite_gradients(name: str) -> None:
    output = torch.zeros(1, 3, 16, 16, requires_grad=True)
    PIXEL_LOSSES[name](output, torch.full_like(output, 0.5)).sum().backward()
    assert output.grad is not None and torch.isfinite(output.grad).all()


def test_a_constant_difference_is_all_low_frequency() -> None:
    target = images()
    torch.testing.assert_close(
        reconstruction(target + 0.25, target), torch.full((3,), 0.25)
    )
    torch.testing.assert_close(mse(target + 0.25, target), torch.full((3,), 0.0625))


def test_an_alternating_difference_is_all_high_frequency_and_counts_half() -> None:
    target = images(1, 24)
    stripes = torch.ones_like(target)
    stripes[..., ::2] = -1
    torch.testing.assert_close(
        reconstruction(target + 0.2 * stripes, target), torch.tensor([0.1])
    )


def test_contrast_and_color_by_hand() -> None:
    target = images(1)
    output = 0.5 * target
    std_C = target.std((2, 3), correction=0)[0]
    ratios = (0.5 * std_C + 0.01) / (std_C + 0.01)
    whole = 0.5 * target.std(correction=0)
    torch.testing.assert_close(
        contrast(output, target)[0],
        ((ratios - 1) ** 2).sum() + whole**2,
        rtol=1e-4,
        atol=1e-6,
    )
    mean_C = target.mean((2, 3))[0]
    by_hand = ((0.5 * mean_C) ** 2 + (0.5 * std_C) ** 2).mean()
    torch.testing.assert_close(color(output, target)[0], by_hand, rtol=1e-4, atol=1e-6)


def test_contrast_stays_small_where_a_channel_is_constant_and_is_the_plain_ratio_on_photographs() -> (
    None
):
    square = torch.ones(1, 3, 64, 64)
    square[:, 1:, 16:48, 16:48] = -1  # red on white
    output = (
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    assert 1 < contrast(output, square).item() < 40  # 3,200 as a plain ratio
    for path in sorted(PHOTOS.glob("*/*.jpg")):
        photo = (
            torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 127.5
            - 1
        )
        other = 0.7 * photo
        ratios = (other.std((2, 3), correction=0) + 0.01) / (
            photo.std((2, 3), correction=0) + 0.01
        )
        whole = other.std(correction=0) - photo.std(correction=0)
        assert contrast(other, photo).item() == pytest.approx(
            float(((ratios - 1) ** 2).sum() + whole**2), rel=1e-5
        )


def test_a_histogram_does_not_know_where_pixels_are() -> None:
    target = images(1)
    shuffled = target.flatten(2)[:, :, torch.randperm(target[0, 0].numel())].view_as(
        target
    )
    assert histogram(shuffled, target).item() == 0
    torch.testing.assert_close(histogram(target + 0.3, target), torch.tensor([0.3]))


def test_the_divergence_is_that_of_torch_averaged_or_summed() -> None:
    mean, logvar = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    element = torch.distributions.kl_divergence(
        normal, torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(
        kl_divergence(mean, logvar, 0, "mean"), element.mean((1, 2, 3))
    )
    torch.testing.assert_close(
        kl_divergence(mean, logvar, 0, "sum"), element.sum((1, 2, 3))
    )
    torch.testing.assert_close(
        kl_divergence(mean, logvar, 0.4, "mean"), element.clamp_min(0.4).mean((1, 2, 3))
    )


def test_its_weight_rises_by_half_a_cosine_in_the_steps_of_this_run() -> None:
    losses = LossesConfig(kl=0.2, kl_warmup_steps=100)
    expected = {
        0: 0.0,
        50: 0.1,
        100: 0.2,
        5000: 0.2,
        25: 0.2 * (1 - math.cos(math.pi / 4)) / 2,
    }
    assert {step: kl_weight(losses, step) for step in expected} == pytest.approx(
        expected
    )
    assert kl_weight(LossesConfig(kl=0.2, kl_warmup_steps=0), 0) == 0.2


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.5]])
    assert [term.tolist() for term in hinge_discriminator(real, fake)] == [
        [0.25],
        [0.75],
    ]
    assert hinge_generator(fake).tolist() == [1.25]


def test_r1_of_a_linear_judge_is_half_its_squared_weights_and_trains_them() -> None:
    weight = torch.randn(3 * 4 * 4, requires_grad=True)
    penalty = r1_penalty(
        lambda x: x.flatten(1) @ weight[:, None], images(2, 4)[..., :4]
    )
    torch.testing.assert_close(penalty, (0.5 * weight.square().sum()).expand(2))
    penalty.mean().backward()
    torch.testing.assert_close(weight.grad, weight.detach())


# ------------------------------------------------------------ a term that outweighs all
# others


@pytest.mark.parametrize(
    ("losses", "numbers", "says"),
    [
        (
            {"contrast": 0.1},
            {"loss_l1": 0.5, "contrast_loss": 870.0},
            "losses.contrast (0.1) counts 174 times as much as",
        ),
        (
            {"kl": 1.0},
            {"loss_l1": 0.5, "loss_kl_weighted": 20.0},
            "losses.kl (1) counts 40 times as much as",
        ),
        (
            {},
            {"loss_l1": 0.5, "loss_gen": -0.1, "adversarial_weight": 200.0},
            "losses.adversarial (0.5) counts 40 times",
        ),
        ({"contrast": 0.1}, {"loss_l1": 0.5, "contrast_loss": 90.0}, ""),
        (
            {},
            {"loss_l1": 0.5, "loss_kl_weighted": 1e-7},
            "",
        ),  # what an autoencoder is for
        ({"l1": 0, "kl": 0}, {"loss_gen": 1.0}, ""),  # there is nothing else
    ],
)
def test_a_term_that_outweighs_all_others_is_told_once(
    losses: dict, numbers: dict, says: str
) -> None:
    # it looks at the result only
    callback, run = (
        LossBalance(LossesConfig(**losses)),
        cast("Run", None),
    )
    with heard() as said:
        for step in (1, 2):
            callback.on_metrics(
                run,
                StepResult(
                    step, 0, 0.5, 0.1, 2.0, 3, 0.25, 0.0625, extra_metrics=numbers
                ),
            )
    assert [line.startswith(f"step 1: {says}") for line in said] == [True] * bool(says)

"""The train step: what reaches which weights, and that nothing depends on how images
are batched."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoder_step import (
    Adversary,
    AutoencoderStep,
    trained_parameters,
)
from extensions.from_scratch.autoencoders import Autoencoder, make_autoencoder
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.losses_config import (
    DISCRIMINATOR,
    VAE,
    DiscriminatorConfig,
    LossesConfig,
)
from extensions.from_scratch.perceptual import PerceptualDistance
from extensions.from_scratch.pixels import PixelBatch
from tests.extensions.from_scratch.conftest import SMALL
from toolkit.contracts.data import BatchSpec


class Passes:
    """Records what is passed to `backward`, and runs it."""

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.roles: list[str] = []

    def __call__(
        self, losses: dict[str, torch.Tensor], retain_graph: bool = False
    ) -> None:
        self.roles += losses
        sum(loss.sum() for loss in losses.values()).backward()


def autoencoder(kind: str = "AutoencoderKL") -> Autoencoder:
    return make_autoencoder(
        AutoencoderConfig(class_name=kind, config=SMALL[kind]), 0, torch.device("cpu")
    )


def batch(count: int = 3) -> PixelBatch:
    pixels = (
        torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    )
    spec = BatchSpec(0, tuple(range(count)), tuple(range(count)))
    return PixelBatch(pixels, ("",) * count, spec, ("",) * count, torch.ones(count))


def made(losses: dict[str, Any] | None = None, **discriminator: Any) -> AutoencoderStep:
    """A step with a discriminator of these settings."""
    settings = DiscriminatorConfig(channels=4, layers=1, **discriminator)
    adversary = Adversary(PatchDiscriminator(4, 1, 0), settings)
    return AutoencoderStep(autoencoder(), LossesConfig(**(losses or {})), 5, adversary)


def grads(module: torch.nn.Module) -> float:
    return sum(
        float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("kind", SMALL)
def test_losses_do_not_depend_on_the_batch(kind: str) -> None:
    """Noise has keys of its own, so that memory that runs out, or more ranks, change
    nothing."""
    step = AutoencoderStep(autoencoder(kind), LossesConfig(kl_warmup_steps=0), 5)
    whole = step(batch(), 0).by_role[VAE]
    parts = torch.cat([step(half, 0).by_role[VAE] for half in batch().halves()])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SMALL)
def test_latent_noise_is_in_deviations_of_the_latents_and_does_not_depend_on_the_batch(
    kind: str,
) -> None:
    step = AutoencoderStep(autoencoder(kind), LossesConfig(latent_noise=0.2), 5)
    scale = (
        {"latents_mean": [0.0] * 4, "latents_std": [3.0] * 4}
        if "Qwen" in kind
        else {"scaling_factor": 1 / 3}
    )
    step.autoencoder.set_scale(scale)
    latents = torch.zeros(400, 4, 8, 8)
    spec = BatchSpec(0, tuple(range(400)), tuple(range(400)))
    noise = step._latent_noise(spec, latents)
    strengths = noise.std((1, 2, 3))
    assert float(strengths.mean()) == pytest.approx(
        3 * 0.2 * math.sqrt(2 / math.pi), rel=0.1
    )
    assert float(strengths.square().mean().sqrt()) == pytest.approx(3 * 0.2, rel=0.1)
    later = BatchSpec(0, tuple(range(200, 400)), tuple(range(200, 400)))
    torch.testing.assert_close(step._latent_noise(later, latents[200:]), noise[200:])
    plain = AutoencoderStep(step.autoencoder, LossesConfig(), 5)
    assert not torch.equal(
        step(batch(), 0).by_role[VAE], plain(batch(), 0).by_role[VAE]
    )


def test_one_pass_for_each_role_and_names_for_every_number() -> None:
    step, passes = made(), Passes()
    losses = step.backward(batch(), passes)
    assert passes.roles == [VAE, DISCRIMINATOR]
    assert set(losses.by_role) == {VAE, DISCRIMINATOR}
    assert {
        "loss_l1",
        "loss_kl",
        "kl_beta",
        "loss_gen",
        "loss_disc",
        "loss_r1",
        "d_real",
    } <= set(losses.numbers)


def test_the_discriminators_loss_reaches_it_alone() -> None:
    step = made()
    assert step.adversary
    real = batch().pixels_B3HW
    fake = step.autoencoder.decode(step.autoencoder.encode(real)[0])
    losses = step._discriminator_losses(step.adversary, batch(), real, fake.detach(), 0)
    losses.by_role[DISCRIMINATOR].sum().backward()
    assert grads(step.adversary.network) > 0 and grads(step.autoencoder.module) == 0


def test_before_its_first_step_there_is_no_discriminator() -> None:
    step, passes = made(start_step=2), Passes(step=1)
    losses = step.backward(batch(), passes)
    assert passes.roles == [VAE] and "loss_gen" not in losses.numbers
    passes = Passes(step=2)
    assert "loss_gen" in step.backward(batch(), passes).numbers and passes.roles == [
        VAE,
        DISCRIMINATOR,
    ]


def test_the_gradient_penalty_comes_every_few_steps_and_counts_as_often() -> None:
    step = made(r1_interval=4, instance_noise=0)
    at = {number: step.backward(batch(), Passes(number)) for number in (0, 1, 4)}
    assert [("loss_r1" in losses.numbers) for losses in at.values()] == [
        True,
        False,
        True,
    ]
    penalty = at[0].numbers["loss_r1"]
    difference = (
        at[0].by_role[DISCRIMINATOR].mean() - at[1].by_role[DISCRIMINATOR].mean()
    )
    torch.testing.assert_close(difference, 4 * penalty)


def test_noise_is_added_to_all_that_the_discriminator_sees_and_decays() -> None:
    judged = {}
    for settings in (
        {"instance_noise": 0.0},
        {"instance_noise": 0.5},
        {"instance_noise": 0.5, "decay": 0.1},
    ):
        decay = settings.pop("decay", 1.0)
        step = made(r1_gamma=0, instance_noise_decay=decay, **settings)
        judged[(*settings.values(), decay)] = (
            step.backward(batch(), Passes(3)).numbers["d_real"].item()
        )
    none, full, decayed = judged.values()
    assert 0 < abs(decayed - none) < abs(full - none)


@pytest.mark.parametrize("kl", [0, 1e-4])
def test_without_other_terms_the_autoencoder_learns_from_the_discriminator_alone(
    kl: float,
) -> None:
    """Also where the only other term does not reach the decoder, whose gradients the
    adaptive weight compares."""
    step = made({"l1": 0, "kl": kl})
    losses = step(batch(), 0)
    torch.testing.assert_close(
        losses.by_role[VAE].mean(), 0.5 * losses.numbers["loss_gen"]
    )
    losses.by_role[VAE].sum().backward()
    assert grads(step.autoencoder.module) > 0


@pytest.mark.slow
def test_lpips_counts_by_its_weight() -> None:
    network = PerceptualDistance()
    for parameter in network.parameters():
        torch.nn.init.normal_(
            parameter, std=0.05, generator=torch.Generator().manual_seed(0)
        )
    zero = LossesConfig(l1=0, kl=0, lpips=2)
    step = AutoencoderStep(autoencoder(), zero, 5, perceptual=network)
    losses = step(batch(), 0)
    assert losses.numbers["loss_lpips"] != 0
    torch.testing.assert_close(
        losses.by_role[VAE].mean(), 2 * losses.numbers["loss_lpips"]
    )
    losses.by_role[VAE].sum().backward()
    assert grads(step.autoencoder.module) > 0 and grads(network) == 0


def test_the_adaptive_weight_makes_both_gradients_equal_at_the_last_layer() -> None:
    step, last = (
        made({"adversarial": 1.0}, adaptive_weight=True, instance_noise=0),
        None,
    )
    weight = step(batch(), 0).numbers["adversarial_weight"]
    last, others = (
        step.autoencoder.last_layer(),
        made({"adversarial": 0.0}, instance_noise=0),
    )
    (of_others,) = torch.autograd.grad(
        others(batch(), 0).by_role[VAE].mean(), others.autoencoder.last_layer()
    )
    total = step(batch(), 0).by_role[VAE].mean()
    (of_all,) = torch.autograd.grad(total, last)
    torch.testing.assert_close(
        (of_all - of_others).norm(), of_others.norm(), rtol=1e-2, atol=0
    )
    assert weight > 0


def test_a_frozen_encoder_has_no_gradient() -> None:
    model = autoencoder()
    names = trained_parameters(model, "decoder")
    step = AutoencoderStep(model, LossesConfig(), 0)
    step(batch(), 0).by_role[VAE].sum().backward()
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in names)
    assert grads(model.module.encoder) == 0 < grads(model.module.decoder)
    assert len(trained_parameters(model, "all")) > len(names)


@pytest.mark.parametrize("kind", SMALL)
def test_a_batch_in_pieces_has_the_gradient_and_the_numbers_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of its noise and its penalty, for the autoencoder and the discriminator,
    in float64: the sums of a batch are rounded otherwise. The adaptive weight is that
    of each piece, as docs/config.md says."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    settings = DiscriminatorConfig(
        channels=4, layers=1, adaptive_weight=False, instance_noise=0.3, r1_gamma=1.0
    )
    adversary = Adversary(PatchDiscriminator(4, 1, 0).double(), settings)
    losses = LossesConfig(latent_noise=0.2, kl_warmup_steps=0)
    step = AutoencoderStep(autoencoder(kind), losses, 5, adversary)
    step.autoencoder.module.double()
    parameters = [
        *step.autoencoder.module.parameters(),
        *adversary.network.parameters(),
    ]
    images, found = batch(), []
    images = replace(images, pixels_B3HW=images.pixels_B3HW.double())
    for pieces in ([[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]]):
        for parameter in parameters:
            parameter.grad = None
        of_pieces = [
            (len(rows), step.backward(images.select(rows), Passes()).numbers)
            for rows in pieces
        ]
        gradient = torch.cat(
            [p.grad.flatten() for p in parameters if p.grad is not None]
        )
        mean = {
            name: sum(count * float(part[name]) for count, part in of_pieces) / 3
            for name in of_pieces[0][1]
        }
        found.append((gradient, mean))
    whole, numbers = found[0]
    for gradient, mean in found[1:]:
        torch.testing.assert_close(gradient, whole, rtol=1e-6, atol=1e-6)
        assert mean == pytest.approx(numbers, rel=1e-6)

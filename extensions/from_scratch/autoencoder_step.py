"""The `TrainStep` of an autoencoder, alone or with a discriminator.

Every random number has its own key (docs/architecture.md, "Randomness"): the same use
of an image gets the same noise, whatever the batch size, accumulation or number of
restarts.

The step computes losses and runs their backward passes. It does not update weights:
each role's optimizer does. `trainer` makes it for a run, `joint` combines it with the
flow model's step, and `memory` runs it on fake tensors.

Shape suffixes: B batch, C latent channels, H/W height and width (of images where three
channels come before them, else of the latents), N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extensions.from_scratch.autoencoder_losses import (
    PIXEL_LOSSES,
    hinge_discriminator,
    hinge_generator,
    kl_divergence,
    kl_weight,
    r1_penalty,
)
from extensions.from_scratch.autoencoders import Autoencoder
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.losses_config import (
    ADVERSARIAL_WEIGHT,
    DISCRIMINATOR,
    LPIPS_METRIC,
    PIXEL_METRICS,
    VAE,
    DiscriminatorConfig,
    LossesConfig,
)
from extensions.from_scratch.perceptual import PerceptualDistance
from extensions.from_scratch.pixels import PixelBatch
from toolkit.contracts.data import BatchSpec, Size
from toolkit.contracts.training import Backward, StepLosses, TrainStep
from toolkit.errors import UserError
from toolkit.system.device import to_device
from toolkit.system.seeding import generator

MAX_ADAPTIVE_WEIGHT = 1e4
"""Source: Esser et al., taming-transformers,
`VQLPIPSWithDiscriminator.calculate_adaptive_weight`."""


@dataclass(frozen=True)
class Adversary:
    """The discriminator and its settings.

    Example::

        adversary = Adversary(network, section.discriminator)
        step = AutoencoderStep(autoencoder, section.losses, seed, adversary)
    """

    network: PatchDiscriminator
    settings: DiscriminatorConfig


def refuse_small_images(settings: DiscriminatorConfig, sizes: Sequence[Size]) -> None:
    """Raises UserError where an image of these sizes is smaller than the patches that
    the discriminator judges."""
    least = PatchDiscriminator.smallest(settings.layers)
    small = min((side for size in sizes for side in size), default=least)
    if small < least:
        raise UserError(
            f"discriminator.layers: {settings.layers} of them judge patches of at least {least} pixels, and an image "
            f"is trained at {small}. Give fewer layers, or a higher resolution."
        )


class AutoencoderStep(TrainStep[PixelBatch]):
    """Encodes images, draws latents and decodes them. Then it computes the losses of
    the autoencoder, and of the discriminator where it is on.

    Example::

        step = AutoencoderStep(autoencoder, section.losses, seed=1)
        losses = step(batch, step=0)
        losses.by_role["vae"]  # [B]
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        losses: LossesConfig,
        seed: int,
        adversary: Adversary | None = None,
        perceptual: PerceptualDistance | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """perceptual: of `losses.lpips`. dtype: of the computation; the weights are
        float32."""
        self.autoencoder = autoencoder
        self.losses = losses
        self.seed = seed
        self.adversary = adversary
        self.perceptual = perceptual
        self.dtype = dtype

    def __call__(self, batch: PixelBatch, step: int) -> StepLosses:
        """The losses of the autoencoder."""
        return self._autoencoder_losses(batch, step)[0]

    def backward(self, batch: PixelBatch, backward: Backward) -> StepLosses:
        """One pass for the autoencoder, then one for the discriminator, which sees the
        reconstructions detached. Each gradient reaches only the weights of its own
        role."""
        step = backward.step
        of_vae, real_B3HW, fake_B3HW = self._autoencoder_losses(batch, step)
        backward(of_vae.by_role)
        adversary = self._active_adversary(step)
        if not adversary:
            return of_vae
        of_discriminator = self._discriminator_losses(
            adversary, batch, real_B3HW, fake_B3HW.detach(), step
        )
        backward(of_discriminator.by_role)
        return StepLosses(
            of_vae.by_role | of_discriminator.by_role,
            numbers=of_vae.numbers | of_discriminator.numbers,
        )

    def _active_adversary(self, step: int) -> Adversary | None:
        if self.adversary and step >= self.adversary.settings.start_step:
            return self.adversary
        return None

    # ------------------------------------------------------------ the autoencoder

    def _autoencoder_losses(
        self, batch: PixelBatch, step: int
    ) -> tuple[StepLosses, Tensor, Tensor]:
        """The losses, the images and their reconstructions [B, 3, H, W], float32 on the
        device."""
        losses = self.losses
        module = self.autoencoder.module
        real_B3HW = to_device(batch.pixels_B3HW, next(module.parameters()).device)
        with self._autocast(real_B3HW):
            mean_BCHW, logvar_BCHW = self.autoencoder.encode(real_B3HW)
            noise_BCHW = to_device(
                self._noise(batch.spec, "posterior", mean_BCHW.shape[1:]),
                mean_BCHW.device,
            )
            latents_BCHW = self.autoencoder.sample(mean_BCHW, logvar_BCHW, noise_BCHW)
            if losses.latent_noise:
                latents_BCHW = latents_BCHW + self._latent_noise(
                    batch.spec, latents_BCHW
                )
            fake_B3HW = self.autoencoder.decode(latents_BCHW)
        fake_B3HW = fake_B3HW.float()
        total_B = torch.zeros(len(batch), device=real_B3HW.device)
        numbers: dict[str, Tensor] = {}
        for key, function in PIXEL_LOSSES.items():
            weight = getattr(losses, key)
            if weight:
                loss_B = function(fake_B3HW, real_B3HW)
                total_B, numbers[PIXEL_METRICS[key]] = (
                    total_B + weight * loss_B,
                    loss_B.detach().mean(),
                )
        if losses.lpips and self.perceptual:
            with self._autocast(real_B3HW):
                loss_B = self.perceptual(fake_B3HW, real_B3HW).float()
            total_B, numbers[LPIPS_METRIC] = (
                total_B + losses.lpips * loss_B,
                loss_B.detach().mean(),
            )
        if losses.kl and logvar_BCHW is not None:
            kl_B = kl_divergence(
                mean_BCHW.float(),
                logvar_BCHW.float(),
                losses.kl_free_bits,
                losses.kl_reduction,
            )
            weight = kl_weight(losses, step)
            total_B = total_B + weight * kl_B
            kl = kl_B.detach().mean()
            numbers |= {
                "loss_kl": kl,
                "loss_kl_weighted": weight * kl,
                "kl_beta": torch.full_like(kl, weight),
            }
        adversary = self._active_adversary(step)
        if adversary and losses.adversarial:
            loss_B, of_adversary = self._adversarial_loss(
                adversary, batch, fake_B3HW, total_B, step
            )
            total_B = total_B + loss_B
            numbers = numbers | of_adversary
        total_B = total_B * to_device(batch.loss_weight_B, total_B.device)
        return StepLosses({VAE: total_B}, numbers=numbers), real_B3HW, fake_B3HW

    def _adversarial_loss(
        self,
        adversary: Adversary,
        batch: PixelBatch,
        fake_B3HW: Tensor,
        others_B: Tensor,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss [B], and its metrics. others_B: the sum of all other
        terms."""
        seen_B3HW = self._with_instance_noise(
            adversary, fake_B3HW, batch.spec, "generator", step
        )
        with self._autocast(seen_B3HW):
            judged_BN = adversary.network(seen_B3HW)
        loss_B = hinge_generator(judged_BN.float())
        numbers = {"loss_gen": loss_B.detach().mean()}
        weight = torch.tensor(self.losses.adversarial, device=loss_B.device)
        if adversary.settings.adaptive_weight:
            weight = weight * self._gradient_ratio(others_B, loss_B)
            numbers[ADVERSARIAL_WEIGHT] = weight
        return weight * loss_B, numbers

    def _gradient_ratio(self, others_B: Tensor, adversarial_B: Tensor) -> Tensor:
        """Norm of the other terms' gradient at the decoder's last layer, divided by the
        norm of the adversarial term's gradient, 0-dim; 1 where other terms do not reach
        that layer.

        Source: Esser et al., arXiv 2012.09841, eq. 7.
        """
        last = self.autoencoder.last_layer()
        others = None
        if others_B.requires_grad:
            (others,) = torch.autograd.grad(
                others_B.mean(), last, retain_graph=True, allow_unused=True
            )
        if others is None:
            return torch.ones((), device=others_B.device)
        (of_adversary,) = torch.autograd.grad(
            adversarial_B.mean(), last, retain_graph=True
        )
        ratio: Tensor = (
            (others.norm() / (of_adversary.norm() + 1e-4))
            .clamp(0, MAX_ADAPTIVE_WEIGHT)
            .detach()
        )
        return ratio

    # ------------------------------------------------------------ the discriminator

    def _discriminator_losses(
        self,
        adversary: Adversary,
        batch: PixelBatch,
        real_B3HW: Tensor,
        fake_B3HW: Tensor,
        step: int,
    ) -> StepLosses:
        settings = adversary.settings
        network = adversary.network
        spec = batch.spec
        real_B3HW = self._with_instance_noise(adversary, real_B3HW, spec, "real", step)
        fake_B3HW = self._with_instance_noise(adversary, fake_B3HW, spec, "fake", step)
        with self._autocast(real_B3HW):
            real_BN = network(real_B3HW).float()
            fake_BN = network(fake_B3HW).float()
        at_real_B, at_fake_B = hinge_discriminator(real_BN, fake_BN)
        loss_B = at_real_B + at_fake_B
        numbers = {
            "loss_disc": loss_B.detach().mean(),
            "loss_disc_real": at_real_B.detach().mean(),
            "loss_disc_fake": at_fake_B.detach().mean(),
            "d_real": real_BN.detach().mean(),
            "d_fake": fake_BN.detach().mean(),
        }
        if settings.r1_gamma and step % settings.r1_interval == 0:
            penalty_B = settings.r1_gamma * r1_penalty(network, real_B3HW)
            loss_B, numbers["loss_r1"] = (
                loss_B + settings.r1_interval * penalty_B,
                penalty_B.detach().mean(),
            )
        weight_B = to_device(batch.loss_weight_B, loss_B.device)
        return StepLosses({DISCRIMINATOR: loss_B * weight_B}, numbers=numbers)

    def _with_instance_noise(
        self,
        adversary: Adversary,
        pixels_B3HW: Tensor,
        spec: BatchSpec,
        purpose: str,
        step: int,
    ) -> Tensor:
        settings = adversary.settings
        if not settings.instance_noise:
            return pixels_B3HW
        std = settings.instance_noise * settings.instance_noise_decay**step
        # As large as the images and used three times per step: on a GPU the CPU's
        # numbers would be waited for.
        noise_B3HW = self._noise(
            spec, f"instance noise {purpose}", pixels_B3HW.shape[1:], pixels_B3HW.device
        )
        return pixels_B3HW + std * noise_B3HW

    # ------------------------------------------------------------ numbers

    def _latent_noise(self, spec: BatchSpec, latents_BCHW: Tensor) -> Tensor:
        """The noise that `losses.latent_noise` adds to the latents.

        Source: Zheng et al., Diffusion Transformers with Representation Autoencoders,
        arXiv 2510.11690, section 4.3: noise-augmented decoding, whose strength is |N(0,
        tau^2)|.
        """
        _, std = self.autoencoder.latent_statistics(latents_BCHW)
        strength_B111 = self._noise(
            spec, "latent noise strength", torch.Size((1, 1, 1))
        ).abs()
        noise_BCHW = strength_B111 * self._noise(
            spec, "latent noise", latents_BCHW.shape[1:]
        )
        return (
            to_device(noise_BCHW, latents_BCHW.device) * self.losses.latent_noise * std
        )

    def _noise(
        self,
        spec: BatchSpec,
        purpose: str,
        shape: torch.Size,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normal noise, one generator per use of an image; float32 on the
        device."""
        noise = []
        for position in spec.positions:
            key = (self.seed, purpose, spec.epoch, position)
            random = generator(*key, device=device)
            noise.append(torch.randn(shape, generator=random, device=device))
        return torch.stack(noise)

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(
            tensor.device.type, self.dtype, enabled=self.dtype != torch.float32
        )


def trained_parameters(autoencoder: Autoencoder, which: str) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; all others no longer require gradients.
    which: as `model.train`."""
    frozen = set(autoencoder.encoder_parameters()) if which == "decoder" else set()
    for name, parameter in autoencoder.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return {
        name: p for name, p in autoencoder.module.named_parameters() if p.requires_grad
    }


@contextmanager
def evaluating(autoencoder: Autoencoder) -> Iterator[None]:
    """Inside the block the module drops nothing and builds no graph."""
    training = autoencoder.module.training
    autoencoder.module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        autoencoder.module.train(training)

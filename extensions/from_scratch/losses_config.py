"""The sections `losses` and `discriminator` of an autoencoder's training, their metrics
and checks.

The losses themselves are in `autoencoder_losses` and `perceptual`, and the
discriminator is in `discriminator`. The module imports no torch. The sections in
`vae_config` and `flow_config` have these as fields, and `autoencoder_step` logs the
metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import OneOf, PathStr
from toolkit.config.reading.process import Diagnostic
from toolkit.config.sections.train import MAX_STEPS, RoleOptimizerConfig
from toolkit.errors import install_command

TINY = "AutoencoderTiny"

VAE, DISCRIMINATOR = "vae", "discriminator"
"""The roles."""

PIXEL_METRICS = {
    "l1": "loss_l1",
    "reconstruction": "loss_recon",
    "mse": "loss_mse",
    "contrast": "contrast_loss",
    "color": "color_loss",
    "histogram": "histogram_loss",
}
"""Key of `losses` -> its metric, as FluxFlow's training guide calls it where it
does."""

KL_METRICS = ("loss_kl", "loss_kl_weighted", "kl_beta")
LPIPS = "lpips==0.1.4"
LPIPS_METRIC = "loss_lpips"
ADVERSARIAL_WEIGHT = "adversarial_weight"
GAN_METRICS = (
    "loss_gen",
    "loss_disc",
    "loss_disc_real",
    "loss_disc_fake",
    "d_real",
    "d_fake",
)


VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions of VGG16, in which LPIPS measures, by block; a
block ends where the next one halves the sides."""

MAX_WIDENING = 8
"""Channels of the widest layer of a discriminator, as a multiple of the first
layer's."""


class LossesConfig(StrictModel):
    """`losses`: weights of the terms whose sum is minimised, each a mean over its
    elements; images are in [-1, 1]. 0 switches a term off, and it is not computed.

    Example:
        losses: {l1: 1, mse: 0.5, kl: 0.0001, kl_warmup_steps: 5000}
    """

    l1: float = Field(default=1.0, ge=0, le=1e6)
    """Mean absolute difference. 0: off."""

    reconstruction: float = Field(default=0.0, ge=0, le=1e6)
    """Mean absolute difference of the blurred images, plus half the mean absolute
    difference of the rest, as in FluxFlow's training guide. 0: off."""

    mse: float = Field(default=0.0, ge=0, le=1e6)
    """Mean squared difference. 0: off."""

    kl: float = Field(default=1e-4, ge=0, le=1e6)
    """Kullback-Leibler divergence of the latents from the unit normal distribution. 0:
    off."""

    kl_warmup_steps: int = Field(default=5000, ge=0, le=MAX_STEPS)
    """Optimizer steps in which the weight of `kl` rises from 0, by half a cosine. 0:
    none."""

    kl_free_bits: float = Field(default=0.0, ge=0, le=1e6)
    """Divergence of each latent element, in nats, below which it is not lowered
    further. 0: none."""

    kl_reduction: Annotated[Literal["mean", "sum"], OneOf()] = "mean"
    """Over channels and pixels of the latents. With mean the weight fits any size of
    image."""

    latent_noise: float = Field(default=0.0, ge=0, le=10)
    """Noise on the latents before they are decoded, in standard deviations of the
    latents: its strength is drawn again for each image, half of a normal distribution
    of this deviation. A decoder that is trained with it makes clean images of the
    inexact latents of a diffusion model; 0.1 to 0.3 with `model.train: decoder`, at the
    end. 0: none."""

    contrast: float = Field(default=0.0, ge=0, le=1e6)
    """Deviation of the standard deviations: of each channel as a ratio, of the whole
    image as a difference, squared. 0: off."""

    color: float = Field(default=0.0, ge=0, le=1e6)
    """Squared difference of each channel's mean and standard deviation. 0: off."""

    histogram: float = Field(default=0.0, ge=0, le=1e6)
    """Mean absolute difference of the sorted values of each channel (1-Wasserstein
    distance of their histograms). 0: off."""

    lpips: float = Field(default=0.0, ge=0, le=1e6)
    """Distance in the features of VGG16 (LPIPS). Needs the package `lpips` and
    `lpips_backbone`. 0: off."""

    lpips_backbone: PathStr = ""
    """File with VGG16's weights:
    https://download.pytorch.org/models/vgg16-397923af.pth, or the same as
    safetensors."""

    adversarial: float = Field(default=0.5, ge=0, le=1e6)
    """Weight of the discriminator's judgement. It requires the section `discriminator`.
    0: off."""


class DiscriminatorConfig(StrictModel):
    """`discriminator`: a network that learns to tell images from their reconstructions,
    patch by patch (PatchGAN).

    Example:
        discriminator: {channels: 32, start_step: 10000}
    """

    channels: int = Field(default=64, ge=4, le=4096)
    """Channels of the first layer; doubled by each further one, up to eight times."""

    layers: int = Field(default=3, ge=1, le=8)
    """Layers that halve the sides. More of them judge larger patches: 3 see 70 x 70
    pixels."""

    start_step: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Optimizer steps before it is trained and its judgement is used. 0: from the
    start."""

    r1_gamma: float = Field(default=5.0, ge=0, le=1e6)
    """Half of it is the weight of the squared gradient at real images (R1). 0: off."""

    r1_interval: int = Field(default=16, ge=1, le=MAX_STEPS)
    """Optimizer steps between two penalties. Each penalty is multiplied by this
    number."""

    instance_noise: float = Field(default=0.01, ge=0, le=10)
    """Standard deviation of noise that is added to all it sees. 0: none."""

    instance_noise_decay: float = Field(default=0.9999, gt=0, le=1)
    """Factor on the noise per optimizer step. 1: it stays."""

    adaptive_weight: bool = True
    """Scale `losses.adversarial` to make its gradient at the decoder's last layer as
    large as the gradient of all other terms (VQGAN). The scale is computed for each
    micro-batch, so more ranks or `gradient_accumulation` change it a little. The best
    fixed weight differs from job to job."""


def patch_widths(channels: int, layers: int) -> list[int]:
    """Channels before and after each convolution of a discriminator with `layers` that
    halve the sides and two more.

    >>> patch_widths(channels=64, layers=3)
    [3, 64, 128, 256, 512, 1]
    """
    return [
        3,
        *(channels * min(2**index, MAX_WIDENING) for index in range(layers + 1)),
        1,
    ]


def discriminator_params(
    section: RoleOptimizerConfig, shared_optimizer: str
) -> dict[str, Any]:
    """Arguments of the discriminator's optimizer where none are given."""
    if "optimizer" in section.model_fields_set:
        kind = section.optimizer
    else:
        kind = shared_optimizer
    if kind == "adamw":
        return {"betas": [0.0, 0.9], "amsgrad": True}
    return {}


def logged_losses(losses: LossesConfig, gan: DiscriminatorConfig | None) -> list[str]:
    """Metrics of a step.

    >>> logged_losses(LossesConfig(kl=0), None)
    ['loss_l1']
    """
    names = [name for key, name in PIXEL_METRICS.items() if getattr(losses, key)]
    names += KL_METRICS if losses.kl else ()
    names += [LPIPS_METRIC] if losses.lpips else []
    names += GAN_METRICS if gan else ()
    names += ["loss_r1"] if gan and gan.r1_gamma else []
    names += [ADVERSARIAL_WEIGHT] if gan and gan.adaptive_weight else []
    return names


def too_short(
    losses: LossesConfig, gan: DiscriminatorConfig | None, steps: int
) -> Iterator[str]:
    """Warnings about settings that take effect only after the `steps` of a run."""
    if (
        losses.kl
        and "kl_warmup_steps" in losses.model_fields_set
        and losses.kl_warmup_steps > steps
    ):
        warmup = f"losses.kl_warmup_steps is {losses.kl_warmup_steps:,}"
        yield f"warning: {warmup}, and the run has {steps:,} steps: 'kl' never reaches its weight"
    if gan and gan.start_step >= steps:
        yield (
            f"warning: discriminator.start_step is {gan.start_step:,}, and the run has {steps:,} steps: the "
            "discriminator is never trained"
        )


def check_losses(
    losses: LossesConfig, gan: DiscriminatorConfig | None, has_no_kl: bool
) -> Iterator[Diagnostic]:
    """Losses that teach nothing or cannot be computed. has_no_kl: the latents are known
    to be no distribution."""
    terms = [getattr(losses, name) for name in (*PIXEL_METRICS, "kl", "lpips")]
    if not any(terms) and not (gan and losses.adversarial):
        yield Diagnostic(
            ("losses",),
            "all weights are 0: nothing would be learned. Give one a value above 0.",
        )
    if losses.lpips:
        yield from _check_lpips(losses)
    if "adversarial" in losses.model_fields_set and losses.adversarial and not gan:
        yield Diagnostic(
            ("losses", "adversarial"),
            "needs the section 'discriminator'. Add it, or remove this key.",
        )
    if has_no_kl and losses.kl:
        message = f"{TINY} has no distribution over its latents. Write 'kl: 0'."
        yield Diagnostic(
            ("losses", "kl") if "kl" in losses.model_fields_set else ("losses",),
            message,
        )


def _check_lpips(losses: LossesConfig) -> Iterator[Diagnostic]:
    file = Path(losses.lpips_backbone).expanduser()
    if not losses.lpips_backbone or not file.is_file():
        if losses.lpips_backbone:
            reason = f"{losses.lpips_backbone!r} does not exist"
        else:
            reason = "is not given"
        source = "https://download.pytorch.org/models/vgg16-397923af.pth"
        yield Diagnostic(
            ("losses", "lpips_backbone"),
            f"{reason}. LPIPS needs VGG16: download {source}",
        )
    if find_spec("lpips") is None:
        message = f"needs the package 'lpips', which is not installed. Run: {install_command(LPIPS, '--no-deps')}"
        yield Diagnostic(("losses", "lpips"), message)

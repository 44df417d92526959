"""The section of `type: vae_trainer`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.autoencoder import AutoencoderConfig
from toolkit.config.base import StrictModel
from toolkit.config.dataset import ValidationConfig
from toolkit.config.field_types import PathStr, as_list, literal_with_aliases, schema_of_list
from toolkit.config.located import KeyPath
from toolkit.config.output import SampleIntervalConfig
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.sections import ImageTrainingSection, TrainerConfig
from toolkit.config.train import OptimizerConfig, RoleOptimizerConfig
from toolkit.data.folder import DatasetScan
from toolkit.data.items import scan_items
from toolkit.data.scan_cache import ScanCache
from toolkit.data.stream_dataset import StreamDataset
from toolkit.data.validation_split import ValidationSplit, split_validation
from toolkit.interfaces import BucketedSample

Scanned = tuple[DatasetScan, tuple[BucketedSample, ...], ValidationSplit | None]

TINY = "AutoencoderTiny"

VAE, DISCRIMINATOR = "vae", "discriminator"
"""The roles."""

PIXEL_METRICS = {
    "reconstruction": "loss_recon",
    "mse": "loss_mse",
    "contrast": "contrast_loss",
    "color": "color_loss",
    "histogram": "histogram_loss",
}
"""Key of `losses` -> its metric, as FluxFlow's training guide calls it where it does."""

KL_METRICS = ("loss_kl", "loss_kl_weighted", "kl_beta")
LPIPS_METRIC = "loss_lpips"
GAN_METRICS = ("loss_gen", "loss_disc", "loss_disc_real", "loss_disc_fake", "d_real", "d_fake")


VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions of VGG16, in which LPIPS measures, by block; a block ends where the next one
halves the sides."""

MAX_WIDENING = 8
"""The widest layer of a discriminator has so many times the channels of the first."""


class LossesConfig(StrictModel):
    """`losses`: weights of the terms whose sum is minimised, each a mean over its elements; images are in [-1, 1]. 0
    switches a term off, and it is not computed."""

    reconstruction: float = Field(default=1.0, ge=0, le=1e6)
    """Mean absolute difference of the blurred images, and half of that of what the blur takes away. 0: off."""

    mse: float = Field(default=0.1, ge=0, le=1e6)
    """Mean squared difference. 0: off."""

    kl: float = Field(default=1e-4, ge=0, le=1e6)
    """Kullback-Leibler divergence of the latents from the unit normal distribution. 0: off."""

    kl_warmup_steps: int = Field(default=5000, ge=0)
    """Optimizer steps in which the weight of `kl` rises from 0, by half a cosine. 0: none."""

    kl_free_bits: float = Field(default=0.0, ge=0, le=1e6)
    """Divergence of each latent element, in nats, below which it is not lowered further. 0: none."""

    kl_reduction: Annotated[Literal["mean", "sum"], *literal_with_aliases("mean", "sum")] = "mean"
    """Over channels and pixels of the latents. With mean the weight fits any size of image."""

    contrast: float = Field(default=0.1, ge=0, le=1e6)
    """Deviation of the standard deviations: of each channel as a ratio, of the whole image as a difference, squared.
    0: off."""

    color: float = Field(default=0.05, ge=0, le=1e6)
    """Squared difference of each channel's mean and standard deviation. 0: off."""

    histogram: float = Field(default=0.02, ge=0, le=1e6)
    """Mean absolute difference of the sorted values of each channel (1-Wasserstein distance of their histograms).
    0: off."""

    lpips: float = Field(default=0.0, ge=0, le=1e6)
    """Distance in the features of VGG16 (LPIPS). Needs the package `lpips` and `lpips_backbone`. 0: off."""

    lpips_backbone: PathStr = ""
    """File with VGG16's weights: https://download.pytorch.org/models/vgg16-397923af.pth, or the same as
    safetensors."""

    adversarial: float = Field(default=0.5, ge=0, le=1e6)
    """How much the discriminator's judgement counts. With the section `discriminator` only. 0: off."""


class DiscriminatorConfig(StrictModel):
    """`discriminator`: a network that learns to tell images from their reconstructions, patch by patch (PatchGAN)."""

    channels: int = Field(default=64, ge=4, le=4096)
    """Channels of the first layer; doubled by each further one, up to eight times."""

    layers: int = Field(default=3, ge=1, le=8)
    """Layers that halve the sides. More of them judge larger patches: 3 see 70 x 70 pixels."""

    start_step: int = Field(default=0, ge=0)
    """Optimizer steps before it trains and counts. 0: from the start."""

    r1_gamma: float = Field(default=5.0, ge=0, le=1e6)
    """Half of it is the weight of the squared gradient at real images (R1). 0: off."""

    r1_interval: int = Field(default=16, ge=1)
    """Optimizer steps between two penalties, each of which counts as many times."""

    instance_noise: float = Field(default=0.01, ge=0, le=10)
    """Standard deviation of noise that is added to all it sees. 0: none."""

    instance_noise_decay: float = Field(default=0.9999, gt=0, le=1)
    """Factor on the noise per optimizer step. 1: it stays."""

    adaptive_weight: bool = False
    """Scale `losses.adversarial` so that its gradient at the decoder's last layer is as large as that of all other
    terms (VQGAN)."""


def patch_widths(channels: int, layers: int) -> list[int]:
    """Channels before and after each convolution of a discriminator with `layers` that halve the sides and two more."""
    return [3, *(channels * min(2**index, MAX_WIDENING) for index in range(layers + 1)), 1]


class OptimizersConfig(StrictModel):
    """`optimizers`: what differs from `train` for one of the roles. The discriminator's betas are (0, 0.9) and amsgrad
    is on where its optimizer is an AdamW and they are not given."""

    vae: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Of the autoencoder."""

    discriminator: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Of the discriminator."""


Images = Annotated[tuple[PathStr, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})]


class ReconstructionsConfig(SampleIntervalConfig):
    """`sample`: images beside their reconstructions, with PSNR and SSIM."""

    images: Images = ()
    """Image files. None: the first of the validation split, else of the datasets."""

    count: int = Field(default=4, ge=1, le=1000)
    """How many of them, where `images` is not given."""


class VaeTrainerConfig(ImageTrainingSection, TrainerConfig):
    """`type: vae_trainer`: trains an autoencoder of images, from nothing or from a folder."""

    process_types: ClassVar[tuple[str, ...]] = ("vae_trainer",)

    reads_streams: ClassVar = True

    model: AutoencoderConfig = Field(default_factory=AutoencoderConfig)
    """The autoencoder."""

    losses: LossesConfig = Field(default_factory=LossesConfig)
    """What is minimised."""

    discriminator: DiscriminatorConfig | None = None
    """Adversarial training; none without this section."""

    optimizers: OptimizersConfig = Field(default_factory=OptimizersConfig)
    """Optimizer and learning rate of each role, where they differ from `train`."""

    sample: ReconstructionsConfig | None = None
    """Reconstructions drawn during training; none without this section."""

    on_resume: ClassVar = {"discriminator": "impossible"}

    def logged_numbers(self) -> Sequence[str]:
        """Metrics of a step."""
        losses, gan = self.losses, self.discriminator
        names = [name for key, name in PIXEL_METRICS.items() if getattr(losses, key)]
        names += KL_METRICS if losses.kl else ()
        names += [LPIPS_METRIC] if losses.lpips else []
        names += GAN_METRICS if gan else ()
        names += ["loss_r1"] if gan and gan.r1_gamma else []
        names += ["adversarial_weight"] if gan and gan.adaptive_weight else []
        return ("loss", "grad_norm", "lr", *names)

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """The checks of its subsections, and of combinations of its keys."""
        yield from super().check(job)
        yield from (Diagnostic(("model", *found.key), found.message) for found in self.model.check(job))
        yield from self._check_losses()
        for role in self.roles():
            if getattr(self.optimizers, role).model_fields_set:
                errors = self.role_optimizer(role).errors()
                yield from (Diagnostic(("optimizers", role, *key), message) for key, message in errors)
        for index, dataset in enumerate(self.datasets):
            if dataset.control_path:
                yield Diagnostic(("datasets", index, "control_path"), "an autoencoder has no references. Leave it out.")
        if self.validation and "timesteps" in self.validation.model_fields_set:
            yield Diagnostic(("validation", "timesteps"), "an autoencoder knows no noise levels. Leave it out.")

    def _check_losses(self) -> Iterator[Diagnostic]:
        losses = self.losses
        if not any(getattr(losses, name) for name in (*PIXEL_METRICS, "kl", "lpips")) and not (
            self.discriminator and losses.adversarial
        ):
            yield Diagnostic(("losses",), "all weights are 0: nothing would be learned. Give one a value above 0.")
        if losses.lpips:
            yield from self._check_lpips()
        if "adversarial" in losses.model_fields_set and losses.adversarial and not self.discriminator:
            yield Diagnostic(("losses", "adversarial"), "needs the section 'discriminator'. Add it, or leave this out.")
        if not self.model.name_or_path and self.model.class_name == TINY and losses.kl:
            message = f"{TINY} has no distribution over its latents. Write 'kl: 0'."
            yield Diagnostic(("losses", "kl") if "kl" in losses.model_fields_set else ("losses",), message)

    def _check_lpips(self) -> Iterator[Diagnostic]:
        file = Path(self.losses.lpips_backbone).expanduser()
        if not self.losses.lpips_backbone or not file.is_file():
            found = f"{self.losses.lpips_backbone!r} does not exist" if self.losses.lpips_backbone else "is not given"
            source = "https://download.pytorch.org/models/vgg16-397923af.pth"
            yield Diagnostic(("losses", "lpips_backbone"), f"{found}. LPIPS needs VGG16: download {source}")
        if find_spec("lpips") is None:
            message = "needs the package 'lpips', which is not installed. Run: pip install --no-deps lpips==0.1.4"
            yield Diagnostic(("losses", "lpips"), message)

    def role_optimizer(self, role: str) -> RoleOptimizerConfig:
        """The optimizer of a role: what its entry does not give comes from `train`."""
        own: RoleOptimizerConfig = getattr(self.optimizers, role)
        shared = {name: getattr(self.train, name) for name in OptimizerConfig.model_fields}
        given = own.model_fields_set
        if role == DISCRIMINATOR and "optimizer_params" not in given:
            kind = own.optimizer if "optimizer" in given else self.train.optimizer
            shared["optimizer_params"] = {"betas": [0.0, 0.9], "amsgrad": True} if kind == "adamw" else {}
        return own.model_copy(update={name: value for name, value in shared.items() if name not in given})

    def stream(self) -> StreamDataset | None:
        """The stream, or None where the datasets are folders. Raises UserError where it cannot be read."""
        return StreamDataset.of(self, self.model.latent_scale())

    def scan(self) -> Scanned:
        """The images of folders, and the validation split. Raises DataErrors naming every offending file."""
        cache, multiple = ScanCache.beside(self.training_folder), self.model.latent_scale()
        return split_validation(self, *scan_items(self, multiple, cache), multiple, _reconstructions)

    def optimizers_used(self) -> Iterable[tuple[KeyPath, OptimizerConfig]]:
        """Those of the roles; what a role does not give is in `train`."""
        for role in self.roles():
            own = "lr_scheduler" in getattr(self.optimizers, role).model_fields_set
            yield ("optimizers", role) if own else ("train",), self.role_optimizer(role)

    def roles(self) -> tuple[str, ...]:
        """What is trained."""
        return (VAE, DISCRIMINATOR) if self.discriminator else (VAE,)


def _reconstructions(items: int, settings: ValidationConfig) -> str:
    return f"{items} reconstruction{'s' * (items != 1)}"

"""The section of `type: vae_trainer`.

The section resolves defaults by role and reports every fault of a job before anything
is loaded. The module imports no torch. `vae_process` trains with the section, and
`plan` describes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic import Field

from extensions.from_scratch.arguments import autoencoder_fault, faults
from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.losses_config import (
    DISCRIMINATOR,
    TINY,
    VAE,
    DiscriminatorConfig,
    LossesConfig,
    check_losses,
    logged_losses,
)
from extensions.from_scratch.roles_config import AutoencoderTraining, RolesSection
from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import PathOrList
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.dataset import ValidationConfig
from toolkit.config.sections.output import SampleIntervalConfig
from toolkit.config.sections.train import RoleOptimizerConfig
from toolkit.data.batches.image_data import ImageData
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.items import scan_items
from toolkit.data.scan.validation_split import split_validation


class OptimizersConfig(StrictModel):
    """`optimizers`: settings of single roles that differ from `train`. The
    discriminator's betas are (0, 0.9) and amsgrad is on where its optimizer is an AdamW
    and they are not given.

    Example:
        optimizers:
          discriminator: {lr: 0.00005}
    """

    vae: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the autoencoder."""

    discriminator: RoleOptimizerConfig = Field(default_factory=RoleOptimizerConfig)
    """Optimizer of the discriminator."""


class ReconstructionsConfig(SampleIntervalConfig):
    """`sample`: images next to their reconstructions, with PSNR and SSIM.

    Example:
        sample: {sample_every: 1000, count: 8}
    """

    images: PathOrList = ()
    """Image files. None: the first of the validation split, else of the datasets."""

    count: int = Field(default=4, ge=1, le=1000)
    """How many of them, where `images` is not given."""


class VaeTrainerConfig(RolesSection):
    """`type: vae_trainer`: trains an autoencoder of images, from nothing or from a
    folder.

    Example:
        type: vae_trainer
        datasets: [{folder_path: datasets/photos, resolution: 256}]
        train: {steps: 50000, batch_size: 4}
    """

    process_types: ClassVar[tuple[str, ...]] = ("vae_trainer",)

    planner: ClassVar = "extensions.from_scratch.plan:VaePlanner"

    reads_captions: ClassVar = False

    model: AutoencoderConfig = Field(default_factory=AutoencoderConfig)
    """The autoencoder."""

    losses: LossesConfig = Field(default_factory=LossesConfig)
    """The losses that are minimised."""

    discriminator: DiscriminatorConfig | None = None
    """Adversarial training; none without this section."""

    optimizers: OptimizersConfig = Field(default_factory=OptimizersConfig)
    """Optimizer and learning rate of each role, where they differ from `train`."""

    sample: ReconstructionsConfig | None = None
    """Reconstructions drawn during training; none without this section."""

    on_resume: ClassVar = {"discriminator": "impossible"}

    def logged_numbers(self) -> Sequence[str]:
        """Metrics of a step."""
        return (
            "loss",
            "grad_norm",
            "lr",
            *logged_losses(self.losses, self.discriminator),
        )

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Combinations of keys of several subsections."""
        yield from super().check(job)
        yield from self._check_model(job)
        has_no_kl = not self.model.name_or_path and self.model.class_name == TINY
        yield from check_losses(self.losses, self.discriminator, has_no_kl)
        if self.losses.latent_noise and not self.model.name_or_path:
            message = "needs latents of a known scale. Set 'model.name_or_path', or remove it."
            yield Diagnostic(("losses", "latent_noise"), message)
        yield from self.check_optimizers(
            [role for role in self.roles() if self.own_optimizer(role).model_fields_set]
        )
        for index, dataset in enumerate(self.datasets):
            key, slots = dataset.references
            if slots:
                yield Diagnostic(
                    ("datasets", index, key),
                    "an autoencoder has no control images. Remove it.",
                )
        if self.validation and "timesteps" in self.validation.model_fields_set:
            yield Diagnostic(
                ("validation", "timesteps"),
                "not applicable to an autoencoder. Remove it.",
            )

    def _check_model(self, job: JobContext) -> Iterable[Diagnostic]:
        model = self.model
        if not model.name_or_path:
            for key, message in faults(model.class_name, model.config):
                yield Diagnostic(("model", "config", *key), message)
        elif not any(model.check(job)) and not model.is_yet_to_come(job):
            fault = autoencoder_fault(model)
            if fault:
                yield Diagnostic(("model", "name_or_path"), fault)

    def size_multiple(self) -> int:
        return self.model.latent_scale()

    def scan(self) -> ImageData:
        cache = ScanCache.beside(self.training_folder, reads_whole=True)
        multiple = self.size_multiple()
        parts = split_validation(
            self, *scan_items(self, multiple, cache), multiple, _reconstructions
        )
        return ImageData(*parts, self.stream())

    def roles(self) -> tuple[str, ...]:
        return (VAE, DISCRIMINATOR) if self.discriminator else (VAE,)

    def trained_autoencoder(self) -> AutoencoderTraining:
        return AutoencoderTraining(self.model, self.losses, self.discriminator)


def _reconstructions(items: int, settings: ValidationConfig) -> str:
    return f"{items} reconstruction{'s' * (items != 1)}"

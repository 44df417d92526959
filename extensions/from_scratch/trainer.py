"""The part that both trainers share: an autoencoder in training with its discriminator,
LPIPS, roles and refusals.

It has no loop and loads no flow model. `vae_process` and `flow_process` derive their
trainers from `RolesTrainer`, and `writers` copies the weights of a `TrainedVae`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from extensions.from_scratch.autoencoder_step import (
    Adversary,
    AutoencoderStep,
    refuse_small_images,
    trained_parameters,
)
from extensions.from_scratch.autoencoders import Autoencoder
from extensions.from_scratch.discriminator import (
    PatchDiscriminator,
    continue_discriminator,
)
from extensions.from_scratch.joint import LatentScale
from extensions.from_scratch.losses_config import (
    ADVERSARIAL_WEIGHT,
    DISCRIMINATOR,
    LPIPS_METRIC,
    PIXEL_METRICS,
    VAE,
    LossesConfig,
)
from extensions.from_scratch.perceptual import PerceptualDistance, load_perceptual
from extensions.from_scratch.plan import memory_advice
from extensions.from_scratch.roles_config import AutoencoderTraining, RolesSection
from jobs.process.image_trainer import ImageTrainer
from toolkit.contracts.training import StepResult
from toolkit.data.batches.image_data import ImageData
from toolkit.errors import RunError, UserError
from toolkit.registry import FLUXFLOW_FILES, load_needed
from toolkit.system.device import to_cpu_copies
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import build_role
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedVae:
    """An autoencoder in training, with its discriminator and LPIPS.

    Example::

        trained = TrainedVae(autoencoder, adversary=None, perceptual=None)
        step = trained.step(section.losses, seed, dtype)
    """

    autoencoder: Autoencoder
    adversary: Adversary | None
    perceptual: PerceptualDistance | None
    scale: LatentScale | None = None
    """Measures the scale of the latents during training; None: it is constant."""

    def step(
        self, losses: LossesConfig, seed: int, dtype: torch.dtype
    ) -> AutoencoderStep:
        """Its own part of the step. dtype: of the computation."""
        return AutoencoderStep(
            self.autoencoder, losses, seed, self.adversary, self.perceptual, dtype
        )

    def copied(self, run: Run, dtype: str) -> dict[str, dict[str, Tensor]]:
        """Role -> weights on the CPU; for the autoencoder the EMA where it exists."""
        with run.roles[VAE].using_eval_weights():
            copies = {VAE: to_cpu_copies(self.autoencoder.module.state_dict(), dtype)}
        if self.adversary:
            copies[DISCRIMINATOR] = to_cpu_copies(
                self.adversary.network.state_dict(), "float32"
            )
        return copies


class RolesTrainer(ImageTrainer):
    """A trainer of several roles. One of them may be an autoencoder.

    Example::

        class VaeTrainerProcess(RolesTrainer):
            section: VaeTrainerConfig
            planner_class = VaePlanner

            def attach(self) -> None:
                self.roles = self.vae_roles(self.trained)
    """

    section: RolesSection

    trained: TrainedVae | None
    """The autoencoder; None where it is frozen."""

    @property
    def saves_folders(self) -> bool:
        return True

    @cached_property
    def training(self) -> AutoencoderTraining | None:
        """How the autoencoder is trained; None where it is frozen."""
        return self.section.trained_autoencoder()

    def scan(self) -> ImageData:
        data = super().scan()
        gan = self.training.discriminator if self.training else None
        if data.stream and gan:
            data = replace(
                data,
                stream=replace(
                    data.stream, least_side=PatchDiscriminator.smallest(gan.layers)
                ),
            )
        return data

    def memory_advice(self) -> str:
        return memory_advice(self.section)

    def build_callbacks(self) -> list[Callback]:
        callbacks = super().build_callbacks()
        place = self.section.save.fluxflow_files
        if place == "none" or not self.section.name:
            return callbacks
        return [load_needed(FLUXFLOW_FILES, "save.fluxflow_files")(place), *callbacks]

    def refuse_parts(self) -> None:
        _ = self._perceptual  # its files are read before anything else
        if self.training:
            gan = self.training.discriminator
            if gan:
                try:
                    refuse_small_images(gan, self.data.sizes)
                except UserError as error:
                    raise UserError(f"{self.training.place}{error}") from error

    @cached_property
    def _perceptual(self) -> PerceptualDistance | None:
        """The distance of `losses.lpips`, loaded once."""
        losses = self.training.losses if self.training else None
        if not losses or not losses.lpips:
            return None
        return load_perceptual(Path(losses.lpips_backbone).expanduser())

    def trained_vae(
        self, autoencoder: Autoencoder, scale: LatentScale | None = None
    ) -> TrainedVae:
        """The autoencoder, set to training, with its discriminator and LPIPS. A
        discriminator that is saved in its folder is continued."""
        assert self.training
        autoencoder.module.train()
        adversary = None
        gan = self.training.discriminator
        if gan:
            network = PatchDiscriminator(gan.channels, gan.layers, self.seed)
            if self.training.model.name_or_path:
                continue_discriminator(network, self.training.model.folder())
            adversary = Adversary(network.to(self.device), gan)
        perceptual = self._perceptual.to(self.device) if self._perceptual else None
        return TrainedVae(autoencoder, adversary, perceptual, scale)

    def vae_roles(self, trained: TrainedVae) -> dict[str, Role]:
        """The roles of the autoencoder and its discriminator, equal on all ranks."""
        assert self.training
        steps = self.plan.optimizer_steps
        group = self.process_group
        parameters = trained_parameters(trained.autoencoder, self.training.model.train)
        if not parameters:
            raise RunError("model.train: nothing of the autoencoder is trained.")
        roles = {
            VAE: build_role(
                self.section.role_optimizer(VAE),
                parameters,
                steps,
                self.seed,
                group,
                self.section.train.ema_config,
            )
        }
        scale = trained.scale
        if scale:
            roles[VAE].after_step, roles[VAE].buffers = (
                scale.after_step,
                scale.vectors(),
            )
        if trained.adversary:
            network = trained.adversary.network
            settings = self.section.role_optimizer(DISCRIMINATOR)
            weights = dict(network.named_parameters())
            roles[DISCRIMINATOR] = build_role(
                settings,
                weights,
                steps,
                self.seed,
                group,
                after_step=network.after_step,
            )
            roles[DISCRIMINATOR].buffers = network.vectors()
        for name, role in roles.items():
            role.every = self.section.role_optimizer(name).every
            group.broadcast(list(role.parameters.values()))
        return roles


TIMES = 20
COMPARE_IMAGES = ("l1", "reconstruction", "mse", "lpips")
"""Terms that may outweigh all others, because they compare the images."""


class LossBalance(Callback):
    """Logs one warning per start, at the first step at which one term of an
    autoencoder's loss is larger than `TIMES` times the sum of all others. The terms of
    `COMPARE_IMAGES` may be larger.

    Example::

        run.callbacks = [*run.callbacks, LossBalance(section.losses)]
    """

    essential = True

    def __init__(self, losses: LossesConfig) -> None:
        self._losses: LossesConfig | None = losses

    def on_metrics(self, run: Run, result: StepResult) -> None:
        if self._losses is None:
            return
        losses = self._losses
        numbers = result.extra_metrics
        metrics = PIXEL_METRICS | {"lpips": LPIPS_METRIC, "adversarial": "loss_gen"}
        weighted = {
            key: getattr(losses, key) * numbers[name]
            for key, name in metrics.items()
            if name in numbers
        }
        if "adversarial" in weighted and ADVERSARIAL_WEIGHT in numbers:
            weighted["adversarial"] = numbers[ADVERSARIAL_WEIGHT] * numbers["loss_gen"]
        weighted["kl"] = numbers.get("loss_kl_weighted", 0.0)
        sizes = {key: abs(value) for key, value in weighted.items()}
        key = max(sizes, key=lambda key: sizes[key], default="")
        others = sum(sizes.values()) - sizes.get(key, 0)
        if key not in COMPARE_IMAGES and 0 < TIMES * others < sizes.get(key, 0):
            logger.warning(
                f"step {result.step}: losses.{key} ({getattr(losses, key):g}) counts {sizes[key] / others:.0f} "
                "times as much as all other losses together, so the images are hardly compared. Lower it."
            )
            self._losses = None

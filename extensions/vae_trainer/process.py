"""`type: vae_trainer`: the trainer of an autoencoder, as a subclass of `jobs.process.trainer.Trainer`.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from extensions.vae_trainer.config import Scanned, VaeTrainerConfig
from extensions.vae_trainer.memory_advice import memory_advice
from extensions.vae_trainer.memory_plan import Work, plan_memory
from extensions.vae_trainer.plan import plan_items
from extensions.vae_trainer.quality import psnr, ssim
from extensions.vae_trainer.writer import AutoencoderWriter
from jobs.process.trainer import Attached, Setup, Trainer
from toolkit.config.autoencoder_losses import DISCRIMINATOR, VAE
from toolkit.config.dataset import LOSS
from toolkit.config.process import JobContext
from toolkit.config.train import OptimizerConfig
from toolkit.data.cache import key_of
from toolkit.data.epoch_order import EpochSource, epoch_batches
from toolkit.data.file_hashes import file_digest
from toolkit.data.fingerprint import DatasetHashes, fingerprint
from toolkit.data.images import ImageError, inspect_image
from toolkit.data.items import bucket_for
from toolkit.data.pixels import Picture, PixelBatch, PixelLoader, StreamPixels, stream_source
from toolkit.data.run_plan import RunPlan
from toolkit.data.stream_dataset import StreamDataset
from toolkit.data.types import BatchSource, BatchSpec, BucketedSample, Sample
from toolkit.errors import RunError, UserError
from toolkit.files.run_files import EVENTS, EventLog
from toolkit.memory.estimate import Machine, machine_of
from toolkit.models.autoencoders import ARGUMENTS, KINDS, Autoencoder, make_autoencoder
from toolkit.models.discriminator import PatchDiscriminator
from toolkit.models.from_config import refuse_arguments
from toolkit.models.perceptual import PerceptualDistance, load_perceptual
from toolkit.system.device import DTYPES
from toolkit.train.autoencoder_step import (
    Adversary,
    AutoencoderStep,
    evaluating,
    refuse_small_images,
    trained_parameters,
)
from toolkit.train.autoencoder_writer import continue_discriminator
from toolkit.train.callbacks.loss_balance import LossBalance
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.standard import Reporting, Samples, Validation
from toolkit.train.callbacks.watchdog import memory_check
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import build_role
from toolkit.train.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeData:
    """The images of a job."""

    scanned: Scanned
    stream: StreamDataset | None = None
    """Trained on instead of the images of folders."""

    @property
    def items(self) -> tuple[BucketedSample, ...]:
        """What is trained on; empty with a stream."""
        return self.scanned[1]

    @property
    def held_out(self) -> tuple[BucketedSample, ...]:
        """The validation split; empty without one."""
        return self.scanned[2].items if self.scanned[2] else ()


@dataclass(frozen=True)
class VaeModel:
    """What is trained: the autoencoder, and the discriminator of adversarial training."""

    autoencoder: Autoencoder
    adversary: Adversary | None
    perceptual: PerceptualDistance | None = None


@dataclass(frozen=True)
class VaeAttached(Attached):
    """The model, once its roles are made."""

    model: VaeModel


class VaeTrainerProcess(Trainer[VaeData, VaeModel, VaeModel, VaeAttached]):
    """Trains an autoencoder on folders of images or a stream of shards; README.md lists its output files."""

    section: VaeTrainerConfig

    # ------------------------------------------------------------ before anything expensive

    def scan(self) -> VaeData:
        stream, adversary = self.section.stream(), self.section.discriminator
        if stream and adversary:
            stream = replace(stream, least_side=PatchDiscriminator.smallest(adversary.layers))
        return VaeData(self.section.scan(), stream)

    def fingerprint(self, data: VaeData) -> DatasetHashes:
        return data.stream.hashes() if data.stream else fingerprint(data.scanned[0].samples)

    def make_plan(self, data: VaeData) -> RunPlan:
        machine = machine_of(self.section.device)
        return plan_items(self.section, JobContext(self.job.name), data.scanned, machine, data.stream)

    @property
    def saves_folders(self) -> bool:
        return True

    def memory_advice(self) -> str:
        return memory_advice(self.section, machine_of(self.section.device))

    def optimizers_by_key(self) -> Iterable[tuple[str, OptimizerConfig]]:
        return [(f"optimizers.{role}", self.section.role_optimizer(role)) for role in self.section.roles()]

    def refuse_parts(self, data: VaeData) -> None:
        model = self.section.model
        if not model.name_or_path:
            refuse_arguments(KINDS[model.class_name].model_class, model.config, ARGUMENTS)
        _ = self._perceptual  # its files are read before anything else
        if settings := self.section.discriminator:
            sizes = [item.crop.bucket for item in data.items] + ([data.stream.largest] if data.stream else [])
            refuse_small_images(settings, sizes)
        for path in self.section.sample.images if self.section.sample else ():
            try:
                inspect_image(path)
            except ImageError as error:
                raise UserError(f"sample.images: {error}") from error

    def written_at_begin(self, data: VaeData) -> None:
        data.scanned[0].scan_cache.save()

    # ------------------------------------------------------------ model, roles, callbacks

    def open_model(self, setup: Setup[VaeData]) -> VaeModel:
        section = self.section
        autoencoder = make_autoencoder(section.model, setup.seed, setup.device)
        autoencoder.module.train()
        count = sum(p.numel() for p in autoencoder.module.parameters())
        logger.info(f"{type(autoencoder.module).__name__}: {count:,} parameters; device {setup.device}")
        perceptual = self._perceptual.to(setup.device) if self._perceptual else None
        settings = section.discriminator
        if settings is None:
            return VaeModel(autoencoder, None, perceptual)
        network = PatchDiscriminator(settings.channels, settings.layers, setup.seed)
        if section.model.name_or_path:
            continue_discriminator(network, section.model.folder())
        logger.info(f"discriminator: {sum(p.numel() for p in network.parameters()):,} parameters")
        return VaeModel(autoencoder, Adversary(network.to(setup.device), settings), perceptual)

    @cached_property
    def _perceptual(self) -> PerceptualDistance | None:
        """Of `losses.lpips`, loaded once."""
        losses = self.section.losses
        return load_perceptual(Path(losses.lpips_backbone).expanduser()) if losses.lpips else None

    def encode(self, setup: Setup[VaeData], model: VaeModel) -> VaeModel:
        return model

    def attach(self, setup: Setup[VaeData], model: VaeModel, encoded: VaeModel) -> VaeAttached:
        parameters = trained_parameters(model.autoencoder, self.section.model.train)
        if not parameters:
            raise RunError("model.train: nothing of the autoencoder is trained.")
        roles = {VAE: self._role(setup, VAE, parameters)}
        if model.adversary:
            network = model.adversary.network
            role = self._role(setup, DISCRIMINATOR, dict(network.named_parameters()), network.after_step)
            role.buffers = network.vectors()
            roles[DISCRIMINATOR] = role
        for role in roles.values():
            self.process_group.broadcast(list(role.parameters.values()))
        return VaeAttached(roles, model)

    def _role(
        self,
        setup: Setup[VaeData],
        name: str,
        parameters: dict[str, torch.nn.Parameter],
        after_step: Callable[[Tensor], dict[str, Tensor]] = lambda step_ok: {},
    ) -> Role:
        own = self.section.role_optimizer(name)
        ema = self.section.train.ema_config if name == VAE else None
        steps, group = setup.plan.optimizer_steps, self.process_group
        role = build_role(own, parameters, steps, setup.seed, group, ema, after_step=after_step)
        role.every = own.every
        return role

    def weights_writer(self, setup: Setup[VaeData], attached: VaeAttached, reporting: Reporting) -> PrepareNetwork:
        autoencoder, data = attached.model.autoencoder, setup.data
        pictures = Picture.some_of(data.items, data.stream, MEASURED_IMAGES)
        device = next(autoencoder.module.parameters()).device

        def images() -> Iterator[Tensor]:
            return (picture.pixels()[None].to(device) for picture in pictures)

        discriminator = attached.model.adversary.network if attached.model.adversary else None
        return AutoencoderWriter(autoencoder, discriminator, self.section.save, images).snapshot

    def validation(self, setup: Setup[VaeData], encoded: VaeModel, attached: VaeAttached) -> Validation | None:
        items = setup.data.held_out
        if not items:
            return None
        autoencoder = attached.model.autoencoder

        def measure(should_stop: Callable[[], bool]) -> dict[str, float] | None:
            found: list[tuple[float, float, float]] = []
            for item in items:
                if should_stop():
                    return None
                original, output = self._reconstruct(autoencoder, Picture.of(item))
                found.append((float((output - original).abs().mean()), psnr(output, original), ssim(output, original)))
            l1, mean_psnr, mean_ssim = (sum(values) / len(found) for values in zip(*found, strict=True))
            return {LOSS: l1, "validation/psnr": mean_psnr, "validation/ssim": mean_ssim}

        identity = key_of(images=[(file_digest(item.sample.image), str(item.crop)) for item in items])
        return Validation(measure, identity)

    def samples(self, setup: Setup[VaeData], encoded: VaeModel, attached: VaeAttached) -> Samples | None:
        settings = self.section.sample
        if settings is None or self.section.train.disable_sampling:
            return None
        pictures = self._drawn(setup.data)
        return Samples(partial(self._draw, attached.model.autoencoder, pictures), [one.name for one in pictures])

    def _drawn(self, data: VaeData) -> Sequence[Picture]:
        settings = self.section.sample
        assert settings is not None  # there are samples
        if not settings.images:
            if data.stream and not data.held_out:
                return Picture.first_of(data.stream, settings.count)
            return [Picture.of(item) for item in (data.held_out or data.items)[: settings.count]]
        resolution, scale = self.section.datasets[0].resolution[0], self.section.model.latent_scale()
        found = []
        for path in settings.images:
            size = inspect_image(path).size
            sample = Sample(path, "", 1, size, "")
            found.append(Picture.of(BucketedSample(sample, bucket_for(size, resolution, scale))))
        return found

    def _draw(self, autoencoder: Autoencoder, pictures: Sequence[Picture], index: int) -> Image.Image:
        """The image at its size beside its reconstruction."""
        original, output = self._reconstruct(autoencoder, pictures[index])
        logger.info(f"{pictures[index].name}: PSNR {psnr(output, original):.2f} dB, SSIM {ssim(output, original):.4f}")
        pair_3HW = torch.cat([original[0], output[0]], dim=2)
        pixels = ((pair_3HW + 1) * 127.5).round().clamp(0, 255).byte().movedim(0, 2).cpu().numpy()
        return Image.fromarray(pixels)

    def _reconstruct(self, autoencoder: Autoencoder, picture: Picture) -> tuple[Tensor, Tensor]:
        """The image and its reconstruction from the mean of its latents, [1, 3, H, W] in [-1, 1]."""
        pixels_B3HW = picture.pixels()[None].to(next(autoencoder.module.parameters()).device)
        with evaluating(autoencoder):
            mean_BCHW, _ = autoencoder.encode(pixels_B3HW)
            return pixels_B3HW, autoencoder.decode(mean_BCHW).clamp(-1, 1)

    # ------------------------------------------------------------ the loop

    def fit(self, setup: Setup[VaeData], run: Run, model: VaeModel, encoded: VaeModel, attached: VaeAttached) -> None:
        section = self.section
        step = AutoencoderStep(
            model.autoencoder, section.losses, run.seed, model.adversary, model.perceptual, DTYPES[section.train.dtype]
        )
        run.callbacks = [*run.callbacks, LossBalance(section.losses)]
        if self.process_group.is_single_process:
            event = EventLog(self.save_root / EVENTS).add
            run.callbacks = [*run.callbacks, *memory_check(partial(self._allocated, setup), setup.device, event)]
        source, largest = self._batches(setup.data, run)
        if run.state.step < run.steps and (line := try_largest_batch(run, largest(), step)):
            logger.info(line)
        train(run, source, step)
        if (stream := setup.data.stream) and (line := stream.unreadable.summary()):
            logger.warning(line)

    def _batches(self, data: VaeData, run: Run) -> tuple[BatchSource, Callable[[], PixelBatch]]:
        """What is trained on, and the largest batch of it for a trial."""
        section, group = self.section, self.process_group
        size, workers = section.images_per_micro_batch, max(dataset.num_workers for dataset in section.datasets)
        if data.stream:
            streamed, processes = StreamPixels(data.stream), (group.rank, group.world_size)
            source = stream_source(data.stream, run.seed, size, streamed.load, workers, run.should_stop, *processes)
            return source, partial(streamed.trial, size)
        loader, of_epoch = PixelLoader(data.items), partial(epoch_batches, data.items, size, run.seed)

        def largest() -> PixelBatch:
            return loader.load(max(of_epoch(run.state.epoch), key=partial(_pixels, data.items)))

        return EpochSource(of_epoch, partial(loader.prefetch, workers=workers)), largest

    def _allocated(self, setup: Setup[VaeData], resumed: bool) -> int:
        """Planned bytes of tensors up to the end of the first step; resumed: with optimizer state."""
        machine = Machine("cuda" if setup.device.type == "cuda" else "cpu")
        section, data = self.section, setup.data
        work = Work.of_settings(section) if data.stream else Work.of_items(section, data.items)
        plan = plan_memory(section, work, machine)
        return plan.allocated("training" if resumed else "first step")


MEASURED_IMAGES = 256
"""Training images whose latents are measured at each save."""


def _pixels(items: Sequence[BucketedSample], spec: BatchSpec) -> int:
    return sum(prod(items[index].crop.bucket) for index in spec.items)

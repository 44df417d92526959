"""`type: vae_trainer`: the trainer of an autoencoder, as a subclass of
`trainer.RolesTrainer`.

It connects the autoencoder, its discriminator, and the images, and measures
reconstructions (`psnr`, `ssim`). The base class runs the job, `autoencoder_step`
computes the losses, and `writers` saves the folders. The runner of jobs creates the
process.

Shape suffixes: B batch, H/W height and width in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from extensions.from_scratch.autoencoder_step import evaluating
from extensions.from_scratch.autoencoders import (
    ARGUMENTS,
    KINDS,
    Autoencoder,
    make_autoencoder,
)
from extensions.from_scratch.pixels import (
    Picture,
    PixelBatch,
    PixelLoader,
    StreamPixels,
)
from extensions.from_scratch.plan import VaePlanner
from extensions.from_scratch.trainer import LossBalance, RolesTrainer, TrainedVae
from extensions.from_scratch.vae_config import VaeTrainerConfig
from extensions.from_scratch.writers import AutoencoderWriter
from jobs.process.image_trainer import Loader
from toolkit.config.sections.dataset import LOSS
from toolkit.contracts.data import BucketedSample, Sample
from toolkit.data.pixels.images import ImageError, inspect_image
from toolkit.data.scan.fingerprint import file_digest, image_digest
from toolkit.data.scan.items import bucket_for
from toolkit.errors import UserError
from toolkit.files.tensor_cache import key_of
from toolkit.models.from_config import refuse_arguments
from toolkit.system.device import DTYPES
from toolkit.train.callbacks.sample import Samples
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.validation import Validation
from toolkit.train.loop import train, try_largest_batch
from toolkit.train.run import Run

logger = logging.getLogger(__name__)


class VaeTrainerProcess(RolesTrainer):
    """Trains an autoencoder on folders of images or a stream of shards; README.md lists
    its output files.

    Example::

        process:
          - type: vae_trainer
            datasets: [{folder_path: datasets/photos, resolution: 256}]
            train: {steps: 50000, batch_size: 4, lr: 0.0001}
    """

    section: VaeTrainerConfig
    trained: TrainedVae

    # ------------------------------------------------------------ before anything
    # expensive

    planner_class = VaePlanner

    def refuse_parts(self) -> None:
        model = self.section.model
        if not model.name_or_path:
            refuse_arguments(
                KINDS[model.class_name].model_class, model.config, ARGUMENTS
            )
        super().refuse_parts()
        for path in self.section.sample.images if self.section.sample else ():
            try:
                inspect_image(path)
            except ImageError as error:
                raise UserError(f"sample.images: {error}") from error

    # ------------------------------------------------------------ model, roles,
    # callbacks

    def open_model(self) -> None:
        autoencoder = make_autoencoder(self.section.model, self.seed, self.device)
        count = sum(p.numel() for p in autoencoder.module.parameters())
        logger.info(
            f"{type(autoencoder.module).__name__}: {count:,} parameters; device {self.device}"
        )
        self.trained = self.trained_vae(autoencoder)
        adversary = self.trained.adversary
        if adversary:
            logger.info(
                f"discriminator: {sum(p.numel() for p in adversary.network.parameters()):,} parameters"
            )

    def attach(self) -> None:
        self.roles = self.vae_roles(self.trained)

    def weights_writer(self) -> PrepareNetwork:
        pictures = Picture.some_of(self.data.items, self.data.stream, MEASURED_IMAGES)
        return AutoencoderWriter(self.trained, self.section.save, pictures).snapshot

    def validation(self) -> Validation | None:
        items = self.data.held_out
        if not items:
            return None
        autoencoder = self.trained.autoencoder
        by_image: dict[str, list[float]] = {}

        def measure(should_stop: Callable[[], bool]) -> dict[str, float] | None:
            image_metrics: list[tuple[float, float, float]] = []
            by_image.clear()
            for item in items:
                if should_stop():
                    return None
                original, output = self._reconstruct(autoencoder, Picture.of(item))
                image_metrics.append(
                    (
                        float((output - original).abs().mean()),
                        psnr(output, original),
                        ssim(output, original),
                    )
                )
                by_image.setdefault(file_digest(item.sample.image), []).append(
                    image_metrics[-1][0]
                )
            l1, mean_psnr, mean_ssim = (
                sum(values) / len(image_metrics)
                for values in zip(*image_metrics, strict=True)
            )
            return {
                LOSS: l1,
                "validation/psnr": mean_psnr,
                "validation/ssim": mean_ssim,
            }

        identity = key_of(
            images=[(image_digest(item.sample.image), str(item.crop)) for item in items]
        )
        return Validation(measure, identity, lambda: by_image)

    def samples(self) -> Samples | None:
        if self.section.sample is None or self.section.train.disable_sampling:
            return None
        pictures = self._drawn()
        return Samples(
            partial(self._draw, self.trained.autoencoder, pictures),
            [one.name for one in pictures],
        )

    def _drawn(self) -> Sequence[Picture]:
        settings = self.section.sample
        data = self.data
        assert settings is not None  # there are samples
        if not settings.images:
            if data.stream and not data.held_out:
                return Picture.first_of(data.stream, settings.count)
            items = data.held_out or data.items
            return [Picture.of(item) for item in items[: settings.count]]
        resolution = self.section.datasets[0].resolution[0]
        scale = self.section.model.latent_scale()
        drawn = []
        for path in settings.images:
            size = inspect_image(path).size
            sample = Sample(path, "", 1, size, "")
            drawn.append(
                Picture.of(BucketedSample(sample, bucket_for(size, resolution, scale)))
            )
        return drawn

    def _draw(
        self, autoencoder: Autoencoder, pictures: Sequence[Picture], index: int
    ) -> Image.Image:
        """The image at its size, next to its reconstruction."""
        original, output = self._reconstruct(autoencoder, pictures[index])
        logger.info(
            f"{pictures[index].name}: PSNR {psnr(output, original):.2f} dB, SSIM {ssim(output, original):.4f}"
        )
        pair_3HW = torch.cat([original[0], output[0]], dim=2)
        pixels = (
            ((pair_3HW + 1) * 127.5)
            .round()
            .clamp(0, 255)
            .byte()
            .movedim(0, 2)
            .cpu()
            .numpy()
        )
        return Image.fromarray(pixels)

    def _reconstruct(
        self, autoencoder: Autoencoder, picture: Picture
    ) -> tuple[Tensor, Tensor]:
        """The image and its reconstruction from the mean of its latents, [1, 3, H, W]
        in [-1, 1]."""
        pixels_B3HW = picture.pixels()[None].to(
            next(autoencoder.module.parameters()).device
        )
        with evaluating(autoencoder):
            mean_BCHW, _ = autoencoder.encode(pixels_B3HW)
            return pixels_B3HW, autoencoder.decode(mean_BCHW).clamp(-1, 1)

    # ------------------------------------------------------------ the loop

    def fit(self, run: Run) -> None:
        section = self.section
        data = self.data
        step = self.trained.step(section.losses, run.seed, DTYPES[section.train.dtype])
        run.callbacks = [*run.callbacks, LossBalance(section.losses)]
        loader: Loader[PixelBatch] = (
            StreamPixels(data.stream) if data.stream else PixelLoader(data.items)
        )
        source, largest = self.batches(run, loader, lambda item: prod(item.crop.bucket))
        if run.state.step < run.steps:
            line = try_largest_batch(run, largest(), step)
            if line:
                logger.info(line)
        train(run, source, step)


MEASURED_IMAGES = 256
"""Training images whose latents are measured at each save."""


# ------------------------------------------------------------ how near a reconstruction
# is to its image

RANGE = 2.0
"""From the least value of a pixel to the largest."""


def psnr(output_B3HW: Tensor, target_B3HW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]; inf for equal ones.

    >>> round(psnr(torch.full((1, 3, 8, 8), 0.2), torch.zeros(1, 3, 8, 8)), 2)
    20.0
    """
    mse = (output_B3HW - target_B3HW).double().square().mean()
    return float(10 * torch.log10(RANGE**2 / mse))


def ssim(output_B3HW: Tensor, target_B3HW: Tensor) -> float:
    """Structural similarity, mean over pixels and channels; 1 for equal images.

    Source: Wang et al., IEEE TIP 13 (4), 2004, eq. 13, with its 11 x 11 Gaussian window
    of standard deviation 1.5, only where the whole window is within the image. Sides
    below 11 pixels take a window as large as the side.

    >>> image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    >>> round(ssim(image, image), 4)
    1.0
    """
    side = min(11, *output_B3HW.shape[-2:])
    distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    weights = torch.exp(-distance.square() / (2 * 1.5**2))
    window = torch.outer(weights, weights) / weights.sum() ** 2
    kernel = window.expand(3, 1, side, side)

    def local_mean(image_B3HW: Tensor) -> Tensor:
        return conv2d(image_B3HW, kernel, groups=3)

    x, y = (image.detach().double().cpu() for image in (output_B3HW, target_B3HW))
    mean_x = local_mean(x)
    mean_y = local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1 = (0.01 * RANGE) ** 2
    c2 = (0.03 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())

"""Training an autoencoder along with the flow model on its latents: both losses on each
batch.

The flow model sees the mean of the latents as the autoencoder encodes them at that
step. Its loss does not reach the encoder: latents that are easy to predict, because
they contain less, would lower it. Their scale is measured from time to time where the
job says so (`LatentScale`); else it does not change.

It has no optimizer and no loop. `flow_process` combines the steps and loaders of this
module for a run, `memory` runs the step on fake tensors, and `start` and `writers`
measure the scale of the latents with `scale_by`.

Shape suffixes: B batch, C latent channels (1: one scale for all), H/W height and width
in pixels, of the mask in latent pixels; h/w height and width of a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extensions.from_scratch.autoencoder_step import AutoencoderStep, evaluating
from extensions.from_scratch.autoencoders import Autoencoder, measure_latents
from extensions.from_scratch.pixels import (
    Picture,
    PixelBatch,
    PixelLoader,
    StreamPixels,
)
from toolkit.contracts.data import BatchSpec, PromptEmbeds
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.training import Backward, StepLosses, TrainStep
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch, halved
from toolkit.data.batches.stream_latents import StreamLatents
from toolkit.data.pixels.images import ImageError
from toolkit.errors import RunError
from toolkit.train.flow_step import FlowMatchingStep


@dataclass(frozen=True)
class JointBatch:
    """The pixels of a micro-batch, and its captions as the flow model takes them.

    Example::

        batch = JointLoader(PixelLoader(data.items), encoded).load(spec)
        latent_batch = step.encoded(batch)  # step: a JointStep
    """

    pixels: PixelBatch
    prompts: PromptEmbeds
    references: tuple[tuple[Tensor, ...], ...]
    """For each item its control images [3, h, w], float32 in [-1, 1]."""

    loss_mask_B1HW: Tensor | None = None
    """As of `LatentBatch`."""

    @property
    def spec(self) -> BatchSpec:
        return self.pixels.spec

    @property
    def names(self) -> tuple[str, ...]:
        return self.pixels.names

    def __len__(self) -> int:
        return len(self.pixels)

    def halves(self) -> tuple[JointBatch, ...]:
        """The batch split in two, with the same random numbers per image; a batch of
        one is not split."""
        return tuple(map(self._select, halved(len(self))))

    def _select(self, rows: Sequence[int]) -> JointBatch:
        mask_B1HW = self.loss_mask_B1HW
        return JointBatch(
            self.pixels.select(rows),
            self.prompts.select(list(rows)),
            tuple(self.references[row] for row in rows),
            None if mask_B1HW is None else mask_B1HW[list(rows)],
        )

    def describe(self) -> str:
        return self.pixels.describe()


@dataclass(frozen=True)
class JointLoader:
    """Batches of folders.

    Example::

        encoded = BatchLoader(dataset, seed)
        batch = JointLoader(PixelLoader(data.items), encoded).load(spec)
        images, prompts = batch.pixels, batch.prompts
    """

    pixels: PixelLoader
    encoded: BatchLoader
    """Loads texts and masks."""

    def load(self, spec: BatchSpec) -> JointBatch:
        """The batch on the CPU. Raises RunError for a file that cannot be read any
        more."""
        dataset = self.encoded.dataset
        items = [dataset.items[index] for index in spec.items]
        try:
            references = tuple(dataset.encoder.reference_pixels(item) for item in items)
        except ImageError as error:
            raise RunError(f"{error}. It was changed since the run began.") from error
        return JointBatch(
            self.pixels.load(spec),
            self.encoded.prompts(spec),
            references,
            self.encoded.masks(spec),
        )


@dataclass(frozen=True)
class JointStream:
    """Batches of a stream.

    Example::

        loader = JointStream(StreamPixels(dataset.stream), dataset)
        batch = loader.load(spec)
    """

    pixels: StreamPixels
    encoded: StreamLatents
    """Loads the texts."""

    def load(self, spec: BatchSpec) -> JointBatch:
        """The batch on the CPU. Raises RunError for a sample that cannot be used."""
        pixels, prompts = self.pixels.load(spec), self.encoded.prompts(spec)
        return JointBatch(pixels, prompts, ((),) * len(pixels))

    def trial(self, images: int) -> JointBatch:
        """A batch of `images` images of noise at the largest size, to test whether it
        fits into memory."""
        return JointBatch(
            self.pixels.trial(images),
            self.encoded.trial_prompts(images),
            ((),) * images,
        )


class LatentScale:
    """Mean and standard deviation of the latents of some images, measured again every
    `every` steps.

    `vectors` are its state. The autoencoder uses their values from `apply` on.

    Example::

        scale = LatentScale(model.autoencoder, pictures, every=100)
        role.after_step, role.buffers = scale.after_step, scale.vectors()
        scale.apply()  # before the loop; each 100th step measures again
    """

    def __init__(
        self, autoencoder: Autoencoder, pictures: Sequence[Picture], every: int
    ) -> None:
        self._autoencoder = autoencoder
        self._pictures = pictures
        self._every = every
        self._scale_2C = self._present()
        self._age = torch.zeros((), dtype=torch.int64)

    def vectors(self) -> dict[str, Tensor]:
        """Mean and standard deviation [2, C], and the steps since they were measured;
        changed in place."""
        return {"latent_scale": self._scale_2C, "latent_scale_age": self._age}

    def apply(self) -> None:
        """Makes the autoencoder normalise latents by this scale."""
        self._autoencoder.set_scale(self._autoencoder.normalisation(*self._scale_2C))

    def after_step(self, step_ok: Tensor) -> dict[str, Tensor]:
        """Counts a step, and measures at each `every`th. Raises RunError where the
        latents have collapsed."""
        self._age += 1
        if int(self._age) >= self._every:
            self._age.zero_()
            self._autoencoder.set_scale(scale_by(self._autoencoder, self._pictures))
            self._scale_2C.copy_(self._present())
            self.apply()
        return {}

    def _present(self) -> Tensor:
        like = torch.zeros((), dtype=torch.float64)
        mean_C11, std_C11 = self._autoencoder.latent_statistics(like)
        return torch.stack([mean_C11.flatten(), std_C11.flatten()])


def scale_by(autoencoder: Autoencoder, pictures: Iterable[Picture]) -> dict[str, Any]:
    """`Autoencoder.normalisation` by the latents of these images. Raises RunError as
    `measure_latents`."""
    device = next(autoencoder.module.parameters()).device
    with evaluating(autoencoder):
        images = (picture.pixels()[None].to(device) for picture in pictures)
        return autoencoder.normalisation(*measure_latents(autoencoder.encode, images))


class JointStep(TrainStep[JointBatch]):
    """The passes of the autoencoder (and its discriminator), then the pass of the flow
    model. Each gradient reaches only the weights of its own roles.

    Example::

        autoencoder_step = trained.step(losses, seed, dtype)
        step = JointStep(autoencoder_step, flow_step, model)
        losses = step.backward(batch, backward)
    """

    def __init__(
        self,
        autoencoder: AutoencoderStep,
        flow: FlowMatchingStep,
        model: DiffusionModel,
    ) -> None:
        self.autoencoder = autoencoder
        self.flow = flow
        self.model = model

    def __call__(self, batch: JointBatch, step: int) -> StepLosses:
        """The losses of the autoencoder and of the flow model."""
        return _together(
            [self.autoencoder(batch.pixels, step), self.flow(self.encoded(batch), step)]
        )

    def backward(self, batch: JointBatch, backward: Backward) -> StepLosses:
        # First: the passes of the autoencoder free their graph.
        latents = self.encoded(batch)
        return _together(
            [
                self.autoencoder.backward(batch.pixels, backward),
                self.flow.backward(latents, backward),
            ]
        )

    def _reference_latents(self, references: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The latents [C, H, W] of one sample's references."""
        encode = self.model.encode_images
        return tuple(encode(pixels_3hw[None])[0] for pixels_3hw in references)

    def encoded(self, batch: JointBatch) -> LatentBatch:
        """The batch of the flow model. The autoencoder encodes the images with its
        present weights."""
        return LatentBatch(
            latents_BCHW=self.model.encode_images(batch.pixels.pixels_B3HW),
            prompts=batch.prompts,
            control_latents=tuple(map(self._reference_latents, batch.references)),
            spec=batch.spec,
            names=batch.names,
            loss_weight_B=batch.pixels.loss_weight_B,
            loss_mask_B1HW=batch.loss_mask_B1HW,
        )


def _together(step_losses: Sequence[StepLosses]) -> StepLosses:
    """The losses of several passes as one record."""
    together = StepLosses({}, {}, {}, {})
    for losses in step_losses:
        together.by_role.update(losses.by_role)
        together.per_sample.update(losses.per_sample)
        together.numbers.update(losses.numbers)
        together.counts.update(losses.counts)
    return together

"""Training an autoencoder along with the flow model on its latents: both losses on each batch.

The flow model sees the mean of the latents as the autoencoder encodes them at that step, and its loss does not reach
the encoder: latents that are easy to predict, because they say less, would lower it. The scale of the latents stays
what it was, as the flow model knows it.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from toolkit.data.dataloader import BatchLoader, LatentBatch, halved, loaded_ahead
from toolkit.data.pixels import PixelBatch, PixelLoader
from toolkit.interfaces import Backward, BatchSpec, DiffusionModel, StepLosses, TrainStep
from toolkit.train.autoencoder_step import AutoencoderStep
from toolkit.train.flow_step import FlowMatchingStep


@dataclass(frozen=True)
class JointBatch:
    """The pixels of a micro-batch, and its captions as the flow model takes them."""

    pixels: PixelBatch
    encoded: LatentBatch
    """Its latents are those of the autoencoder before step 1: they are not used."""

    @property
    def spec(self) -> BatchSpec:
        return self.pixels.spec

    @property
    def names(self) -> tuple[str, ...]:
        return self.pixels.names

    def __len__(self) -> int:
        return len(self.pixels)

    def halves(self) -> tuple[JointBatch, ...]:
        """The batch split in two, with the same random numbers per image; a batch of one is not split."""
        return tuple(JointBatch(self.pixels.select(rows), self.encoded.select(rows)) for rows in halved(len(self)))

    def describe(self) -> str:
        return self.pixels.describe()


@dataclass(frozen=True)
class JointLoader:
    """Batches of both."""

    pixels: PixelLoader
    encoded: BatchLoader

    def load(self, spec: BatchSpec) -> JointBatch:
        """The batch on the CPU."""
        return JointBatch(self.pixels.load(spec), self.encoded.load(spec))

    def prefetch(self, specs: Iterable[BatchSpec], workers: int) -> Iterator[JointBatch]:
        """The batches in the order of `specs`, prefetched by `workers` threads; 0 loads in this thread."""
        return loaded_ahead(self.load, specs, workers)


class JointStep(TrainStep[JointBatch]):
    """The passes of the autoencoder (and its discriminator), then that of the flow model. The gradient of each reaches
    the weights of its own roles only."""

    def __init__(self, autoencoder: AutoencoderStep, flow: FlowMatchingStep, model: DiffusionModel) -> None:
        self.autoencoder = autoencoder
        self.flow = flow
        self.model = model

    def __call__(self, batch: JointBatch, step: int) -> StepLosses:
        """The losses of the autoencoder and of the flow model."""
        return _together([self.autoencoder(batch.pixels, step), self.flow(self._with_latents(batch), step)])

    def backward(self, batch: JointBatch, backward: Backward) -> StepLosses:
        latents = self._with_latents(batch)  # first: the passes of the autoencoder free their graph
        return _together([self.autoencoder.backward(batch.pixels, backward), self.flow.backward(latents, backward)])

    def _with_latents(self, batch: JointBatch) -> LatentBatch:
        return replace(batch.encoded, latents_BCHW=self.model.encode_images(batch.pixels.pixels_B3HW))


def _together(found: Sequence[StepLosses]) -> StepLosses:
    return StepLosses(
        {role: loss_B for losses in found for role, loss_B in losses.by_role.items()},
        {name: values for losses in found for name, values in losses.per_sample.items()},
        {name: value for losses in found for name, value in losses.numbers.items()},
    )

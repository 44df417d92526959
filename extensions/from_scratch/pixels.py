"""Batches of pixels: images that are resized and cropped to their bucket, for trainers
that encode in the step.

Nothing is encoded or cached here. `flow_process` and `vae_process` make the loaders of
a run, `joint` adds captions to their batches, and `autoencoder_step` computes losses of
them. `Picture` is for the images that are measured and drawn more than once.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from toolkit.contracts.data import BatchSpec, BucketedSample
from toolkit.data.batches.dataloader import halved
from toolkit.data.pixels.images import (
    ImageError,
    flip_image,
    open_image,
    resize_cover_crop,
    to_tensor,
)
from toolkit.data.streams.stream_dataset import StreamDataset, StreamItem
from toolkit.data.streams.webdataset import unusable
from toolkit.errors import RunError
from toolkit.system import seeding


@dataclass(frozen=True)
class PixelBatch:
    """The data of one micro-batch: images of one size with their captions.

    Example::

        batch = PixelLoader(data.items).load(spec)
        first, second = batch.halves()  # of 2 or more images
    """

    pixels_B3HW: Tensor
    """float32 in [-1, 1]."""

    captions: tuple[str, ...]
    spec: BatchSpec
    names: tuple[str, ...]
    """The file of each image, for messages."""

    loss_weight_B: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def halves(self) -> tuple[PixelBatch, ...]:
        """The batch split in two, with the same random numbers per image; a batch of
        one is not split."""
        return tuple(self.select(rows) for rows in halved(len(self)))

    def select(self, rows: Sequence[int]) -> PixelBatch:
        """The given images as a batch."""
        rows = list(rows)
        return PixelBatch(
            pixels_B3HW=self.pixels_B3HW[rows],
            captions=tuple(self.captions[row] for row in rows),
            spec=self.spec.select(rows),
            names=tuple(self.names[row] for row in rows),
            loss_weight_B=self.loss_weight_B[rows],
        )

    def describe(self) -> str:
        return f"pixels {tuple(self.pixels_B3HW.shape)}"


@dataclass(frozen=True)
class PixelLoader:
    """Batches of images; each is a pure function of its spec.

    Example::

        loader = PixelLoader(data.items)
        pixels_B3HW = loader.load(spec).pixels_B3HW
    """

    items: Sequence[BucketedSample]

    def load(self, spec: BatchSpec) -> PixelBatch:
        """The batch on the CPU. Raises RunError for a file that cannot be read any
        more."""
        items = [self.items[index] for index in spec.items]
        return PixelBatch(
            pixels_B3HW=torch.stack([load_pixels(item) for item in items]),
            captions=tuple(item.sample.caption for item in items),
            spec=spec,
            names=tuple(item.sample.image for item in items),
            loss_weight_B=torch.tensor([item.sample.loss_weight for item in items]),
        )


@dataclass(frozen=True)
class Picture:
    """An image that is drawn or measured more than once.

    Example::

        pictures = Picture.some_of(data.items, data.stream, count=64)
        pixels_3HW = pictures[0].pixels()
    """

    name: str
    pixels: Callable[[], Tensor]
    """Decodes it: [3, H, W], float32 in [-1, 1]."""

    @classmethod
    def of(cls, item: BucketedSample) -> Picture:
        """An image of a folder."""
        return cls(item.sample.name, partial(load_pixels, item))

    @classmethod
    def some_of(
        cls, items: Sequence[BucketedSample], stream: StreamDataset | None, count: int
    ) -> tuple[Picture, ...]:
        """At most `count` images, always the same: of folders evenly from all, of a
        stream as `first_of`."""
        if stream:
            return cls.first_of(stream, count)
        count = min(len(items), count)
        spread = [items[index * len(items) // count] for index in range(count)]
        return tuple(map(cls.of, spread))

    @classmethod
    def first_of(cls, stream: StreamDataset, count: int) -> tuple[Picture, ...]:
        """The images of the first `count` samples of a stream, each at its own size.
        Their files stay in memory. Raises RunError as `StreamDataset.first`."""
        loader = StreamPixels(stream)
        items = stream.at_own_size(stream.first(count))
        return tuple(cls(i.sample.name, partial(loader.pixels, i)) for i in items)


def load_pixels(item: BucketedSample) -> Tensor:
    """The pixels [3, H, W] of an image at its size, float32 in [-1, 1]."""
    sample = item.sample
    try:
        image = open_image(sample.image, sample.background)
    except ImageError as error:
        raise RunError(f"{error}. It was changed since the run began.") from error
    return to_tensor(flip_image(resize_cover_crop(image, item.crop), sample.flip))


@dataclass(frozen=True)
class StreamPixels:
    """Batches of images that a stream read; each is a pure function of its spec
    (`StreamSource.make_batch`).

    Example::

        loader = StreamPixels(data.stream)
        pixels_B3HW = loader.load(spec).pixels_B3HW
    """

    stream: StreamDataset

    def load(self, spec: BatchSpec) -> PixelBatch:
        """The batch on the CPU. Raises RunError for a damaged image."""
        items: tuple[StreamItem, ...] = spec.samples
        return PixelBatch(
            pixels_B3HW=torch.stack([self.pixels(item) for item in items]),
            captions=tuple(item.sample.caption for item in items),
            spec=spec,
            names=tuple(item.sample.name for item in items),
            loss_weight_B=torch.ones(len(items)),
        )

    def pixels(self, item: StreamItem) -> Tensor:
        """The image [3, H, W], float32 in [-1, 1]. Raises RunError for a damaged
        one."""
        sample = item.sample
        canvas = self.stream.settings.canvas
        try:
            image = open_image(sample.name, canvas, data=sample.image)
        except ImageError as error:
            raise unusable(sample.name, f"its image {error.reason}") from error
        return to_tensor(resize_cover_crop(image, item.crop))

    def trial(self, images: int) -> PixelBatch:
        """A batch of `images` images of noise at the largest size, to test whether it
        fits into memory."""
        first, (width, height) = self.stream.looked_at[0], self.stream.largest
        noise_3HW = (
            torch.rand(3, height, width, generator=seeding.generator(0, "trial")) * 2
            - 1
        )
        rows = tuple(range(images))
        return PixelBatch(
            pixels_B3HW=noise_3HW.expand(images, -1, -1, -1).clone(),
            captions=(first.caption,) * images,
            spec=BatchSpec(0, rows, rows),
            names=(f"an image of {width}x{height} pixels",) * images,
            loss_weight_B=torch.ones(images),
        )

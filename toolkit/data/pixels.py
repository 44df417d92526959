"""Batches of pixels: images as they are, resized and cropped to their bucket, for trainers that encode in the step.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.config.dataset import Rectangle
from toolkit.data.dataloader import halved, loaded_ahead
from toolkit.data.images import ImageError, flip_image, open_image, resize_cover_crop, to_tensor
from toolkit.data.items import bucket_for, cover
from toolkit.data.webdataset import StreamSample, Unreadable
from toolkit.errors import RunError
from toolkit.interfaces import BatchSpec, BucketedSample, Size


@dataclass(frozen=True)
class PixelBatch:
    """The data of one micro-batch: images of one size with their captions."""

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
        """The batch split in two, with the same random numbers per image; a batch of one is not split."""
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
    """Batches of images; each is a pure function of its spec."""

    items: Sequence[BucketedSample]

    def load(self, spec: BatchSpec) -> PixelBatch:
        """The batch on the CPU. Raises RunError for a file that cannot be read any more."""
        items = [self.items[index] for index in spec.items]
        return PixelBatch(
            pixels_B3HW=torch.stack([load_pixels(item) for item in items]),
            captions=tuple(item.sample.caption for item in items),
            spec=spec,
            names=tuple(item.sample.image for item in items),
            loss_weight_B=torch.tensor([item.sample.loss_weight for item in items]),
        )

    def prefetch(self, specs: Iterable[BatchSpec], workers: int) -> Iterator[PixelBatch]:
        """The batches in the order of `specs`, prefetched by `workers` threads; 0 loads in this thread."""
        return loaded_ahead(self.load, specs, workers)


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
    """Batches of images that a stream read; each is a pure function of its spec (`StreamSource.make_batch`)."""

    resolution: int | Rectangle
    divisibility: int
    """Sides are multiples of this many pixels."""

    unreadable: Unreadable
    square_crop: bool = False
    background: str = "white"

    def load(self, spec: BatchSpec) -> PixelBatch:
        """The batch on the CPU. All its images have the size that most of them have by `bucket_for`; what the others
        have too much is cut off.

        An image that turns out to be damaged stays in its place, in grey and with weight 0, so that a batch of one is
        no special case. Raises RunError when there are too many of them.
        """
        samples: tuple[StreamSample, ...] = spec.samples
        buckets = Counter(self._bucket(sample.size) for sample in samples)
        bucket = buckets.most_common(1)[0][0]
        pixels = [self._pixels(sample, bucket) for sample in samples]
        return PixelBatch(
            pixels_B3HW=torch.stack([torch.zeros(3, bucket.height, bucket.width) if p is None else p for p in pixels]),
            captions=tuple(sample.caption for sample in samples),
            spec=spec,
            names=tuple(sample.name for sample in samples),
            loss_weight_B=torch.tensor([0.0 if p is None else 1.0 for p in pixels]),
        )

    def _bucket(self, size: Size) -> Size:
        return bucket_for(size, self.resolution, self.divisibility, self.square_crop).bucket

    def _pixels(self, sample: StreamSample, bucket: Size) -> Tensor | None:
        try:
            image = open_image(sample.name, self.background, data=sample.image)
        except ImageError as error:
            self.unreadable.add_sample(sample.name, f"its image {error.reason}")
            return None
        return to_tensor(resize_cover_crop(image, cover(Size(*image.size), bucket)))

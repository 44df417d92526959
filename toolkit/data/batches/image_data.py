"""The images of a training job: of folders, or a stream of shards in their place.

`ImageData` joins the results of a scan, its items and the validation split, or a
stream, and answers what the plan and the trainers ask of both in the same way: samples,
micro-batches and steps of an epoch, sizes, hashes. It loads no pixels and makes no
batches; `dataloader` does. `toolkit.plan` makes it for the diffusion trainers, other
trainers in `extensions` make their own. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.config.sections.train import OptimizationConfig
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.contracts.data import BucketedSample, Sample, Size
from toolkit.data.batches.epoch_order import count_batches
from toolkit.data.scan.fingerprint import DatasetHashes, fingerprint, name_of
from toolkit.data.scan.folder import DatasetScan
from toolkit.data.scan.moved import RunOrder
from toolkit.data.scan.validation_split import ValidationSplit
from toolkit.data.streams.counts import optimizer_steps

if TYPE_CHECKING:
    from toolkit.data.streams.stream_dataset import StreamDataset


def open_stream(section: ImageTrainingSection, multiple: int) -> StreamDataset | None:
    """As `StreamDataset.of`; what reads tar files and HTTP is imported only for a
    stream."""
    if not section.streamed:
        return None
    from toolkit.data.streams.stream_dataset import StreamDataset

    return StreamDataset.of(section, multiple)


@dataclass(frozen=True)
class ImageData:
    """What a run trains on, and what it holds out.

    Example::

        data = ImageData(scan, items, split)
        data.samples  # uses of images in an epoch
        data.optimizer_steps(section.train)
    """

    scan: DatasetScan
    items: tuple[BucketedSample, ...]
    """Each image at each of its sizes; empty with a stream."""

    split: ValidationSplit | None = None
    stream: StreamDataset | None = None
    """Trained on instead of the items."""

    @property
    def held_out(self) -> tuple[BucketedSample, ...]:
        """The items of the validation split; empty without one. They are not trained
        on."""
        return self.split.items if self.split else ()

    @property
    def samples(self) -> int:
        """Samples of an epoch, repeats included. 0 for a stream of unknown length."""
        if self.stream:
            return self.stream.samples
        return sum(item.sample.repeats for item in self.items)

    @property
    def sizes(self) -> list[Size]:
        """Sizes of what is trained on, in pixels: of each item, or the largest of a
        stream."""
        if self.stream:
            return [self.stream.largest]
        return [item.crop.bucket for item in self.items]

    @property
    def has_several(self) -> bool:
        """Whether more is trained on than one image at one size."""
        return self.stream is not None or len(self.items) > 1

    def hashes(self) -> DatasetHashes:
        """Hashes of the data, from which a resume tells what was added, removed and
        edited."""
        return self.stream.hashes() if self.stream else fingerprint(self.scan.samples)

    def in_order(self, order: RunOrder) -> ImageData:
        """The same images in the order in which the run began. Raises KeyError for an
        image that `order` lacks."""
        place = {name: index for index, name in enumerate(order.names)}

        def key(sample: Sample) -> tuple[int, int]:
            return order.entries[sample.dataset], place[name_of(sample)]

        return replace(
            self, items=tuple(sorted(self.items, key=lambda item: key(item.sample)))
        )

    def micro_batches(self, batch_size: int) -> int:
        """Micro-batches of an epoch; 0 for a stream of unknown length. An item is used
        as often as its repeats say, and each micro-batch has one size."""
        if self.stream:
            return self.stream.micro_batches(batch_size)
        return count_batches(self.items, batch_size)

    def optimizer_steps(self, train: OptimizationConfig) -> int:
        """Optimizer steps of the run, as `toolkit.data.streams.counts.optimizer_steps`.
        For a stream, as `StreamDataset.optimizer_steps`."""
        if self.stream:
            return self.stream.optimizer_steps(train)
        batches = self.micro_batches(train.batch_size)
        return optimizer_steps(
            train.steps, train.epochs, batches, train.gradient_accumulation
        )

"""A stream of shards as the dataset of a job: its captions and sizes by the job's keys,
and what is known of it before training.

Nothing is scanned: only the first samples are read, to see that the keys are right.
`webdataset` reads the samples and keeps their order; here they get their captions, and
those of a micro-batch one size. `image_data.open_stream` makes the `StreamDataset`,
`stream_source` reads batches from it. Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from toolkit.config.sections.dataset import DatasetConfig, Rectangle
from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS, OptimizationConfig
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.contracts.data import CaptionRules, Cursor, ResizeCrop, Sample, Size
from toolkit.data.scan.captions import caption_rules, trained_caption
from toolkit.data.scan.fingerprint import DatasetHashes
from toolkit.data.scan.items import bucket_for, cover, largest_bucket
from toolkit.data.streams.counts import StreamPlan, optimizer_steps
from toolkit.data.streams.sample_keys import SampleKeys
from toolkit.data.streams.shards import Shard, expand_shards
from toolkit.data.streams.webdataset import ShardStream, StreamSample
from toolkit.errors import RunError, UserError
from toolkit.rounding import ceil_divide, round_up

LOOKED_AT = 8
"""Samples that every start reads."""

_PAUSES_S = (0.5, 1.0, 2.0)
"""Seconds before each new attempt at a connection while a job is planned."""


class StreamItem(NamedTuple):
    """A sample of a stream, and how it is fitted to the size of its batch.

    Example::

        for item in stream.of_one_size(stream.looked_at):
            print(item.sample.name, item.crop.bucket)
    """

    sample: StreamSample
    crop: ResizeCrop


@dataclass(frozen=True)
class StreamDataset:
    """The stream of a job's `datasets`.

    Example::

        stream = StreamDataset.of(section, multiple=32)
        print(stream.plan().lines())
        read = stream.reader(seed=42, batch_size=4)
    """

    settings: DatasetConfig
    shards: tuple[Shard, ...]
    rules: CaptionRules
    multiple: int
    """Sides of a bucket are multiples of this many pixels."""

    epochs: int | None = None
    """How often it is read through where its length is not known; None: without end."""

    least_side: int = 0
    """Pixels that both sides of a batch have at least; smaller images are enlarged."""

    looked_at: tuple[StreamSample, ...] = ()
    """The first samples, with their captions as they are trained."""

    @classmethod
    def of(cls, section: ImageTrainingSection, multiple: int) -> StreamDataset | None:
        """The stream of a section, or None where its datasets are folders. Reads the
        first samples.

        multiple: sides of a bucket are multiples of this many pixels. Raises UserError
        for shards that are not there or may not be read, and where the first samples
        cannot be used.
        """
        settings = section.streamed
        if settings is None:
            return None
        try:
            shards = expand_shards(settings.url, settings.webdataset.token)
            epochs = section.train.epochs if section.unknown_steps() else None
            rules = caption_rules(settings, section.trigger_word)
            dataset = cls(settings, shards, rules, multiple, epochs)
            return replace(dataset, looked_at=dataset.first(LOOKED_AT))
        except (UserError, RunError) as error:
            raise UserError(f"datasets[0].url: {error}") from error

    # ------------------------------------------------------------ what is known of it

    @property
    def resolution(self) -> int | Rectangle:
        return self.settings.resolution[0]

    @property
    def samples(self) -> int:
        """Samples of an epoch, as `webdataset.samples` gives them; 0: not known."""
        return self.settings.webdataset.samples

    @property
    def largest(self) -> Size:
        """The largest size in pixels that a batch can have at the resolution of the
        dataset."""
        return largest_bucket(self.resolution, self.multiple)

    def micro_batches(self, batch_size: int) -> int:
        """Micro-batches of an epoch, the last incomplete one included; 0: not known."""
        return ceil_divide(self.samples, batch_size)

    def optimizer_steps(self, train: OptimizationConfig) -> int:
        """Optimizer steps of the run, as `toolkit.data.streams.counts.optimizer_steps`.
        Where `self.epochs` is set, the stream has an unknown length:
        UNTIL_THE_DATA_ENDS."""
        if self.epochs is not None:
            return UNTIL_THE_DATA_ENDS
        return optimizer_steps(
            train.steps,
            train.epochs,
            self.micro_batches(train.batch_size),
            train.gradient_accumulation,
        )

    def hashes(self) -> DatasetHashes:
        """The file names of the shards, by which a resume tells whether they are the
        same."""
        return {
            f"{number}: {shard.name.rpartition('/')[2]}": "shard"
            for number, shard in enumerate(self.shards, 1)
        }

    def plan(self) -> StreamPlan:
        """The facts of the stream for the plan of the run. Needs at least one sample in
        `looked_at`."""
        first = self.looked_at[0]
        return StreamPlan(
            shards=len(self.shards),
            first_shard=self.shards[0].name,
            last_shard=self.shards[-1].name,
            samples=self.samples,
            first_sample=first.name,
            first_size=first.size,
            first_caption=first.caption,
            largest=self.largest,
            epochs=self.epochs,
        )

    # ------------------------------------------------------------ samples

    def first(self, count: int) -> tuple[StreamSample, ...]:
        """The first samples, in the order of `url`: always the same ones, fewer
        where there are fewer. Raises RunError as `ShardStream.read`."""
        stream = ShardStream(self.shards, 0, self._keys, pauses=_PAUSES_S)
        return tuple(map(self._captioned, stream.first(count)))

    def shard_stream(self, seed: int, batch_size: int) -> ShardStream:
        """A reader of all shards for `self.epochs` epochs; None: without end. seed: of
        the order of shards and samples. batch_size: neighbours that are grouped by
        aspect ratio."""
        return ShardStream(
            self.shards,
            seed,
            self._keys,
            self.settings.webdataset.window,
            batch_size,
            self.epochs,
        )

    def reader(
        self,
        seed: int,
        batch_size: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Callable[[Cursor], Iterator[tuple[StreamSample, Cursor]]]:
        """`StreamSource.read` of `shard_stream`, with the captions as they are trained.
        stopping: its field."""
        stream = self.shard_stream(seed, batch_size)
        return partial(self._read, replace(stream, stopping=stopping))

    def _read(
        self, stream: ShardStream, cursor: Cursor
    ) -> Iterator[tuple[StreamSample, Cursor]]:
        for sample, behind in stream.read(cursor):
            yield self._captioned(sample), behind

    def of_one_size(self, samples: Sequence[StreamSample]) -> tuple[StreamItem, ...]:
        """The samples of a micro-batch at the size that most of them have by
        `bucket_for`; the other samples are cut to it."""
        buckets = Counter(
            bucket_for(sample.size, self.resolution, self.multiple).bucket
            for sample in samples
        )
        least = round_up(self.least_side, self.multiple)
        bucket = Size(*(max(side, least) for side in buckets.most_common(1)[0][0]))
        return tuple(
            StreamItem(sample, cover(sample.size, bucket)) for sample in samples
        )

    def at_own_size(self, samples: Sequence[StreamSample]) -> tuple[StreamItem, ...]:
        """Each sample with its own bucket, for batches of one."""
        return tuple(item for sample in samples for item in self.of_one_size([sample]))

    def sample(self, streamed: StreamSample) -> Sample:
        """The sample in the form of one from a folder, used once per epoch. It has no
        file: `image` is its name in the stream."""
        return Sample(
            image=streamed.name,
            caption=streamed.caption,
            repeats=1,
            size=streamed.size,
            folder=streamed.name.rpartition("/")[0],
            rules=self.rules,
            background=self.settings.canvas,
        )

    @property
    def _keys(self) -> SampleKeys:
        settings = self.settings.webdataset
        return SampleKeys(settings.image_key, settings.label_key, settings.caption_key)

    def _captioned(self, sample: StreamSample) -> StreamSample:
        return sample._replace(
            caption=trained_caption(sample.caption, self.settings, self.rules)
        )

"""Loads batches from the caches, in the order of an epoch or from a stream of samples
of unknown length, such as the shards of a WebDataset.

The caption of a use is chosen here; nothing else is random. Nothing is encoded here
except texts that cannot be cached: `latent_cache` fills the caches, `stream_latents`
encodes the images of a stream. The trainers read batches from a `BatchLoader` by an
`EpochSource`, or from `stream_source`.

Shape suffixes: B batch, C latent channels, H/W latent height and width, L text tokens,
D width."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from toolkit.contracts.data import (
    Batch,
    BatchSpec,
    BucketedSample,
    Cursor,
    EncodedPrompt,
    MicroBatch,
    PromptEmbeds,
)
from toolkit.data.batches.latent_cache import EncodedDataset, ItemEntries
from toolkit.data.scan.captions import caption_for_use, drawn_caption
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.system.read_ahead import loaded_ahead

logger = logging.getLogger(__name__)


def halved(size: int) -> list[range]:
    """The rows of both halves of a batch, the first one larger where the size is odd. A
    batch of one gives a single range.

    >>> halved(5), halved(1)
    ([range(0, 3), range(3, 5)], [range(0, 1)])
    """
    middle = (size + 1) // 2
    return [rows for rows in (range(middle), range(middle, size)) if rows]


@dataclass(frozen=True)
class LatentBatch:
    """The data of one micro-batch: items of one target size, already encoded.

    Example::

        batch = loader.load(spec)
        batch.describe()  # "latents (2, 16, 64, 64), 1 control image"
        first, second = batch.halves()  # each item keeps its random numbers
    """

    latents_BCHW: Tensor
    """Normalised latents of the targets."""

    prompts: PromptEmbeds
    control_latents: tuple[tuple[Tensor, ...], ...]
    """For each item the latents [C, h, w] of its control images, 0 to 3, each of its
    own size."""

    spec: BatchSpec
    names: tuple[str, ...]
    """The image file of each item, for messages."""

    loss_weight_B: Tensor
    loss_mask_B1HW: Tensor | None = None
    """Loss weight of each latent pixel, in [0, 1]; None: all 1."""

    extra_prompts: Mapping[str, PromptEmbeds] = field(default_factory=dict)
    """Embeddings of further prompts by name (`encode_items`)."""

    stacked: int = 1
    """Images that are stacked along H in the latents of an item."""

    def __len__(self) -> int:
        return len(self.names)

    def halves(self) -> tuple[LatentBatch, ...]:
        """The batch split in two, with the same random numbers per item; a batch of one
        is not split."""
        return tuple(self.select(rows) for rows in halved(len(self)))

    def select(self, rows: Sequence[int]) -> LatentBatch:
        """A batch of the items at these rows, in this order. Raises IndexError for a
        row that the batch lacks."""
        rows = list(rows)
        masks_B1HW = self.loss_mask_B1HW
        return replace(
            self,
            latents_BCHW=self.latents_BCHW[rows],
            prompts=self.prompts.select(rows),
            control_latents=tuple(self.control_latents[row] for row in rows),
            spec=self.spec.select(rows),
            names=tuple(self.names[row] for row in rows),
            loss_weight_B=self.loss_weight_B[rows],
            loss_mask_B1HW=None if masks_B1HW is None else masks_B1HW[rows],
            extra_prompts={
                name: prompts.select(rows)
                for name, prompts in self.extra_prompts.items()
            },
        )

    def describe(self) -> str:
        """Shape of the latents and the most control images of an item, for messages."""
        most = max(map(len, self.control_latents), default=0)
        more = f", {most} control image{'s' * (most > 1)}" if most else ""
        return f"latents {tuple(self.latents_BCHW.shape)}{more}"


def _uses(spec: BatchSpec) -> list[tuple[int, int, int]]:
    """Item, position and epoch of each use of a batch."""
    pairs = zip(spec.items, spec.positions, strict=True)
    return [(index, position, spec.epoch) for index, position in pairs]


def _control_latents(entries: ItemEntries) -> tuple[Tensor, ...]:
    """The latents [C, h, w] of the control images of an item."""
    return tuple(entry.read() for entry in entries.references)


@dataclass(frozen=True)
class BatchLoader:
    """Batches of an encoded dataset; each is a pure function of its spec and the
    seed.

    Example::

        loader = BatchLoader(encode_items(items, model, stores_for, dtype), seed=42)
        spec = epoch_batches(items, batch_size=4, seed=42, epoch=0)[0]
        batch = loader.load(spec)
    """

    dataset: EncodedDataset
    seed: int

    encode_prompt: Callable[[str, BucketedSample], EncodedPrompt] | None = None
    """Encodes a text that is not cached; by default from the dataset's own encoder."""

    def load(self, spec: BatchSpec) -> LatentBatch:
        """The batch on the CPU: latents [B, C, h, w] in the dtype they were stored in,
        with the prompts, control latents, masks and loss weights of the items."""
        samples = [self.dataset.items[index].sample for index in spec.items]
        entries = [self.dataset.entries[index] for index in spec.items]
        extra = [
            entry.extra[self._drawn(*use)]
            for entry, use in zip(entries, _uses(spec), strict=True)
        ]
        extra_prompts = {
            name: PromptEmbeds.stack([prompts[name].read_all() for prompts in extra])
            for name in extra[0]
        }
        return LatentBatch(
            latents_BCHW=torch.stack([entry.target() for entry in entries]),
            prompts=self.prompts(spec),
            control_latents=tuple(map(_control_latents, entries)),
            spec=spec,
            names=tuple(sample.image for sample in samples),
            loss_weight_B=torch.tensor([sample.loss_weight for sample in samples]),
            loss_mask_B1HW=self.masks(spec),
            extra_prompts=extra_prompts,
            stacked=max(1, len(entries[0].layers)),
        )

    def prompts(self, spec: BatchSpec) -> PromptEmbeds:
        """Embeddings of the captions that the batch uses, padded to the longest."""
        return PromptEmbeds.stack([self._text(*use) for use in _uses(spec)])

    def masks(self, spec: BatchSpec) -> Tensor | None:
        """Loss masks [B, 1, H, W]; ones for an item without a mask. None when no item
        has one."""
        entries = [self.dataset.entries[index] for index in spec.items]
        masks = [entry.mask.read() if entry.mask else None for entry in entries]
        given = next((mask_1HW for mask_1HW in masks if mask_1HW is not None), None)
        if given is None:
            return None
        whole_1HW = torch.ones_like(given)
        return torch.stack(
            [whole_1HW if mask_1HW is None else mask_1HW for mask_1HW in masks]
        )

    def _drawn(self, index: int, position: int, epoch: int) -> str:
        """The caption of one use before it is dropped or shuffled."""
        sample = self.dataset.items[index].sample
        return drawn_caption(sample, self.seed, epoch, position)

    def _text(self, index: int, position: int, epoch: int) -> EncodedPrompt:
        """The text of one use: a cached caption, the cached empty one, or a text
        encoded now."""
        item = self.dataset.items[index]
        rules = item.sample.rules
        drawn = self._drawn(index, position, epoch)
        caption = caption_for_use(drawn, rules, self.seed, epoch, position)
        if rules.shuffle_tokens:
            encode_prompt = self.encode_prompt or self.dataset.encoder.encode_prompt
            return encode_prompt(caption, item)
        return self.dataset.entries[index].captions[caption].read_all()


@dataclass(frozen=True)
class StreamSource:
    """A `BatchSource` that reads samples one after the other, and never again.

    >>> def read(cursor):
    ...     return ((number, number + 1) for number in range(cursor or 0, 5))
    >>> source = StreamSource(read, lambda spec: spec.samples, batch_size=2)
    >>> [micro_batch.spec.samples for micro_batch in source.iterate(None)]
    [(0, 1), (2, 3), (4,)]
    """

    read: Callable[[Cursor], Iterator[tuple[Any, Cursor]]]
    """The samples from a cursor of the stream on (None: all), not yet decoded, each
    with the cursor behind it."""

    make_batch: Callable[[BatchSpec], Batch]
    """Decodes `BatchSpec.samples`; called by `workers` threads, or in this one with 0
    of them."""

    batch_size: int
    workers: int = 0
    prepare: Callable[[list[Any]], Sequence[Any]] = tuple
    """From the samples of a micro-batch to its `BatchSpec.samples`. It decides what
    depends on all of them together, before several processes share them."""

    epoch_of: Callable[[Cursor], int] | None = None
    """The epoch of the sample behind a cursor of the stream, which never falls; None:
    it has no epochs. The last batch of an epoch may be short."""

    samples_per_epoch: int = 0
    """As the user gave it. There is a warning if the first epoch has another number. 0:
    not known."""

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """The cursor is the samples read and the stream's own cursor. A sample's number
        keys all its draws."""
        number, at = (cursor["samples"], cursor["stream"]) if cursor else (0, None)
        epoch_of = self.epoch_of or (lambda _: 0)
        waiting: list[Any] = []
        for sample, behind in self.read(at):
            waiting.append(sample)
            epoch = epoch_of(at)
            at = behind
            ends_epoch = epoch_of(at) > epoch
            if len(waiting) == self.batch_size or ends_epoch:
                if ends_epoch and epoch == 0:
                    self._compare_length(number + len(waiting))
                yield _micro_batch(epoch, number, self.prepare(waiting), at, ends_epoch)
                number = number + len(waiting)
                waiting = []
        if waiting:
            yield _micro_batch(epoch, number, self.prepare(waiting), at)

    def _compare_length(self, sample_count: int) -> None:
        if self.samples_per_epoch and sample_count != self.samples_per_epoch:
            logger.warning(
                "datasets[0].webdataset.samples: "
                f"{self.samples_per_epoch:,} samples are given, and an epoch of the stream has {sample_count:,}. "
                "Correct it: epochs are counted by it."
            )

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        """The batches in the order of `specs`, loaded ahead in `workers` threads."""
        return loaded_ahead(self.make_batch, specs, self.workers)


def _micro_batch(
    epoch: int, first: int, samples: Sequence[Any], at: Cursor, ends_epoch: bool = False
) -> MicroBatch:
    numbers = tuple(range(first, first + len(samples)))
    spec = BatchSpec(epoch, numbers, numbers, tuple(samples))
    return MicroBatch(spec, {"samples": numbers[-1] + 1, "stream": at}, ends_epoch)


def stream_source(
    stream: StreamDataset,
    seed: int,
    batch_size: int,
    make_batch: Callable[[BatchSpec], Batch],
    workers: int,
    stopping: Callable[[], bool] = lambda: False,
) -> StreamSource:
    """The batches of a stream, epoch after epoch; each of one size.

    batch_size: of a micro-batch. make_batch: such as `StreamPixels.load`. stopping:
    whether a stop is requested; servers are then not waited for.
    """
    return StreamSource(
        stream.reader(seed, batch_size, stopping),
        make_batch,
        batch_size,
        workers,
        stream.of_one_size,
        stream.shard_stream(seed, batch_size).epoch_of,
        stream.samples,
    )

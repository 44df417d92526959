"""The types of data that the rooms share: images of a dataset, batches of them,
prompts, sources of batches.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels /
`ModelFacts.latent_scale`), L text tokens, D text embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


class Size(NamedTuple):
    """Width and height; pixels unless said otherwise.

    >>> str(Size(1024, 768))
    '1024x768'
    """

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


PLACEHOLDERS = ("[trigger]", "[name]")
"""Placeholders in captions and prompts that the trigger word replaces."""


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """What happens to a caption each time it is used; everything else is done once, at
    the scan.

    >>> from toolkit.data.scan.captions import caption_for_use
    >>> rules = CaptionRules(dropout_rate=1.0)
    >>> caption_for_use("a fox", rules, seed=0, epoch=0, position=0)
    ''
    """

    dropout_rate: float = 0.0
    """Probability in [0, 1] that the caption of one use is empty."""

    shuffle_tokens: bool = False
    """Shuffle the comma-separated tags, in another order at each use."""

    keep_tokens: int = 0
    """Leading tags that `shuffle_tokens` leaves in place (a prepended trigger word and
    the prefix are not counted)."""

    trigger: str = ""
    """Trigger word that the caption starts with, or empty. It is never moved."""

    prefix: str = ""
    """Text that the caption starts with, after the trigger word if that is in front, or
    empty. It is never moved."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Weights of the loss over the area of an image.

    >>> Mask("masks/01.png", min_value=0.1).inverted
    False
    """

    file: str
    """Mask file, white where the loss counts. With `alpha` it is the image itself,
    opaque where the loss counts."""

    alpha: bool = False
    min_value: float = 0.0
    """Loss weight outside the mask, in [0, 1]."""

    inverted: bool = False
    """The loss counts where the mask is black (transparent)."""


class Focus(NamedTuple):
    """Which part of an image is kept where it is cut to its bucket: of what is cut off,
    the share that is cut at the left and at the top, 0 to 1.

    >>> Focus(across=0, down=0.5)  # keeps the left edge
    Focus(across=0, down=0.5)
    """

    across: float
    down: float


MIDDLE = Focus(0.5, 0.5)


class Sample(NamedTuple):
    """One image of a dataset with its caption, control images and mask. Text and
    numbers only, no pixels.

    A tuple with files named by text: 100,000 of them take a tenth of the time of as
    many dataclasses with paths.

    >>> size = Size(800, 600)
    >>> sample = Sample("photos/01.jpg", "a fox", repeats=2, size=size, folder="photos")
    >>> sample.name, sample.texts
    ('01.jpg', ('a fox',))
    """

    image: str
    """Path of the image file."""

    caption: str
    """Caption with the trigger word in place; empty when there is none."""

    repeats: int
    """How often the image is used in one epoch, per size; at least 1."""

    size: Size
    """Pixels of the image after EXIF rotation."""

    folder: str
    """The folder that holds the image, as the user wrote it (a subfolder appended with
    /)."""

    control_images: tuple[str, ...] = ()
    """Paths of its control images in slot order."""

    rules: CaptionRules = CaptionRules()
    mask: Mask | None = None
    loss_weight: float = 1.0
    """Factor on the loss; 0: nothing is learned from the image."""

    background: str = ""
    """Colour that transparent pixels of the image and its control images are composited
    on; empty: white, unless the model has transparency itself."""

    flip: bool = False
    """Whether the image, its control images and its mask are mirrored left to right."""

    dataset: int = 0
    """Index of its entry in `datasets`."""

    captions: tuple[str, ...] = ()
    """All captions, where there are several: one of them is drawn at each use.
    `caption` is the first."""

    layers: tuple[str, ...] = ()
    """Paths of the layers that the image is to be taken apart into, from back to
    front."""

    focus: Focus = MIDDLE
    """Which part of the image is kept where it is cut to its bucket."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every caption that may be used."""
        return self.captions or (self.caption,)

    @property
    def name(self) -> str:
        """The image's file without its folder."""
        return self.image.rpartition(os.sep)[2]


class ShardSample(NamedTuple):
    """The files of one sample in a shard.

    >>> sample = ShardSample("shard/000017", {"txt": b"a fox"}, byte=1024)
    >>> sample.fields["txt"].decode()
    'a fox'
    """

    key: str
    """Their path up to the first dot of the file's name."""

    fields: dict[str, bytes]
    """What is behind that dot, in small letters -> the file."""

    byte: int
    """Where the sample begins in the (unpacked) tar."""


class ResizeCrop(NamedTuple):
    """How an image is fitted to its bucket: resized to `scaled`, then cropped to
    `bucket` at (left, top).

    >>> crop = ResizeCrop(Size(768, 512), left=128, top=0, bucket=Size(512, 512))
    >>> crop.scaled.width - crop.bucket.width  # columns that are cut off
    256
    """

    scaled: Size
    left: int
    top: int
    bucket: Size

    def at(self, focus: Focus) -> ResizeCrop:
        """The same bucket, cut from another part of the image.

        >>> ResizeCrop(Size(768, 512), 128, 0, Size(512, 512)).at(Focus(1, 0.5)).left
        256
        """
        (width, height), bucket = self.scaled, self.bucket
        return self._replace(
            left=int((width - bucket.width) * focus.across),
            top=int((height - bucket.height) * focus.down),
        )


class BucketedSample(NamedTuple):
    """One image at one training size.

    >>> whole = ResizeCrop(Size(512, 512), 0, 0, Size(512, 512))
    >>> item = BucketedSample(Sample("01.png", "a fox", 1, Size(900, 900), "."), whole)
    >>> item.crop.bucket.width
    512
    """

    sample: Sample
    crop: ResizeCrop


@dataclass(frozen=True)
class BatchSpec:
    """Which items form one micro-batch; a pure function of (seed, epoch, batch
    size).

    >>> spec = BatchSpec(epoch=0, items=(4, 7), positions=(10, 11))
    >>> piece = spec.select([1])
    >>> piece.items, piece.first
    ((7,), 10)
    """

    epoch: int
    """Counted from 0."""

    items: tuple[int, ...]
    """Indices into the list of bucketed samples, all of one bucket."""

    positions: tuple[int, ...]
    """Index of each use in the epoch's global order. With the epoch it keys all random
    numbers of that use."""

    samples: tuple[Any, ...] = ()
    """What a stream read for each item, not yet decoded; empty where `items` is enough
    to load them."""

    piece_of: int | None = field(default=None, compare=False)
    """`first` of the micro-batch that these items were cut from; None: they are a whole
    one."""

    @property
    def first(self) -> int:
        """Position of the first item of the whole micro-batch. It keys what is drawn
        once for all of its items, so that each piece of the micro-batch (`select`)
        draws the same."""
        if self.piece_of is None:
            return self.positions[0]
        return self.piece_of

    def select(self, rows: Iterable[int]) -> BatchSpec:
        """The given items: a piece of this micro-batch."""
        rows = tuple(rows)
        items, positions, samples = (
            tuple(of_items[row] for row in rows) if of_items else ()
            for of_items in (self.items, self.positions, self.samples)
        )
        return BatchSpec(self.epoch, items, positions, samples, self.first)


@dataclass(frozen=True)
class PromptEmbeds:
    """Text embeddings of a batch, padded at the end to the longest.

    >>> import torch
    >>> prompts = PromptEmbeds.stack([torch.zeros(3, 8), torch.zeros(5, 8)])
    >>> tuple(prompts.embeds_BLD.shape), prompts.lengths
    ((2, 5, 8), (3, 5))
    """

    embeds_BLD: Tensor
    """With a trained text encoder: token ids [B, L], which it embeds at each use."""

    lengths: tuple[int, ...]
    """Valid tokens of each item."""

    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further tensors of the family's text encoders by name, such as a pooled
    embedding: [B, ...], one shape for all prompts."""

    def select(self, rows: Sequence[int]) -> PromptEmbeds:
        """The given items, padded to the longest of them."""
        rows = list(rows)
        lengths = tuple(self.lengths[row] for row in rows)
        extra = {name: tensor[rows] for name, tensor in self.extra.items()}
        return PromptEmbeds(self.embeds_BLD[rows, : max(lengths)], lengths, extra)

    def cpu(self) -> PromptEmbeds:
        """A copy in CPU memory."""
        extra = {name: tensor.cpu() for name, tensor in self.extra.items()}
        return PromptEmbeds(self.embeds_BLD.cpu(), self.lengths, extra)

    @staticmethod
    def stack(prompts: Sequence[EncodedPrompt]) -> PromptEmbeds:
        """Single prompts as one batch. Raises ValueError when their extra tensors
        differ in name or shape."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        encoded = [
            {EMBEDS: prompt} if isinstance(prompt, torch.Tensor) else prompt
            for prompt in prompts
        ]
        shapes = set()
        for one in encoded:
            parts = {name: t.shape for name, t in one.items() if name != EMBEDS}
            shapes.add(tuple(sorted(parts.items())))
        if len(shapes) > 1:
            raise ValueError(
                f"prompts of one batch have unlike extra tensors: {sorted(map(str, shapes))}"
            )
        padded_BLD = pad_sequence([one[EMBEDS] for one in encoded], batch_first=True)
        extra = {
            name: torch.stack([one[name] for one in encoded])
            for name in encoded[0]
            if name != EMBEDS
        }
        return PromptEmbeds(
            padded_BLD, tuple(len(one[EMBEDS]) for one in encoded), extra
        )


EMBEDS = "tensor"
"""The name of the embeddings [L, D] in an encoded prompt, and of the only tensor of a
cache entry that has one."""


EncodedPrompt: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""One prompt: its embeddings [L, D], or these under `EMBEDS` and the tensors of
`PromptEmbeds.extra`."""


class Batch(Protocol):
    """The data of one micro-batch; every trainer has its own class for it.

    Example::

        for batch in source.load([micro_batch.spec]):
            losses = step(batch, state.step)
    """

    @property
    def spec(self) -> BatchSpec: ...

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each item, for messages."""

    def __len__(self) -> int: ...

    def halves(self) -> Sequence[Batch]:
        """The batch split in two, with the same random numbers per item; a batch of one
        is not split."""

    def describe(self) -> str:
        """Its size for messages, such as "latents (3, 16, 64, 64)"."""


Cursor = Any
"""Position of the next micro-batch: a JSON value that only the source reads. None: the
beginning."""


class MicroBatch(NamedTuple):
    """The next micro-batch of a source.

    >>> spec = BatchSpec(0, items=(3,), positions=(9,))
    >>> micro_batch = MicroBatch(spec, cursor=[0, 10])
    >>> micro_batch.spec.first, micro_batch.ends_epoch
    (9, False)
    """

    spec: BatchSpec
    cursor: Cursor
    """Position behind it, from which a resume continues."""

    ends_epoch: bool = False
    """Whether it is the last of its epoch, where the source has epochs."""


class BatchSource(Protocol):
    """Where micro-batches come from: an epoch list, or a stream of unknown length.

    Example::

        for micro_batch in source.iterate(state.cursor):
            (batch,) = source.load([micro_batch.spec])
    """

    def iterate(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """The micro-batches from the cursor on, always the same ones, to the end of the
        data."""

    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Batch]:
        """The batches of these specs, in order, prefetched."""

"""Caches latents, loss weights of masks and text embeddings, which are encoded once
before training: on disk beside the runs, shared by jobs, or in memory.

Each image is stored as soon as it is encoded, so interrupted encoding resumes where it
stopped. Texts are encoded together, layer by layer, and stored at the end. When nothing
is missing no encoder is called, and so none is loaded. Trainers and tools call
`encode_items`, which makes an `ItemEntries` of each item, then fills the caches;
batches read the entries. Samplers make single entries by `ItemEncoder`.

Shape suffixes: B batch, C latent channels, H/W latent height and width, P pixel
channels, L text tokens, D width."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from toolkit.config.sections.trainer import DatasetsSection
from toolkit.contracts.data import (
    EMBEDS,
    BucketedSample,
    EncodedPrompt,
    Mask,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.training import Progress
from toolkit.data.pixels.images import (
    ImageError,
    flip_image,
    image_reading,
    image_size,
    open_image,
    open_mask,
    over_white,
    resize,
    resize_cover_crop,
    to_tensor,
)
from toolkit.data.scan.fingerprint import digest_as_read, image_digest, of_sides
from toolkit.data.scan.found import shorten
from toolkit.data.scan.items import refuse_long_captions
from toolkit.errors import RunError
from toolkit.files.tensor_cache import TensorCache, key_of
from toolkit.files.writing import CACHE_FOLDER
from toolkit.system.read_ahead import loaded_ahead

logger = logging.getLogger(__name__)


def mask_weights(mask: Mask, crop: ResizeCrop, flip: bool, latent_scale: int) -> Tensor:
    """Weights [1, H, W] in [0, 1], float32: w = 1 - (1 - min_value) (1 - m), so white
    is exactly 1.

    latent_scale: pixels along one side of a latent pixel.

    m is the mean of the mask over the pixels of a latent pixel, after the resize, crop
    and flip of its image. A mask image of another size is stretched; colours count by
    their brightness, transparency as black. Raises ImageError when the file cannot be
    used.
    """
    pixels = flip_image(resize_cover_crop(open_mask(mask), crop), flip)
    share_1HW = avg_pool2d(
        torch.from_numpy(numpy.array(pixels, dtype=numpy.float32) / 255.0)[None],
        latent_scale,
    )
    if mask.inverted:
        share_1HW = 1.0 - share_1HW
    return 1.0 - (1.0 - mask.min_value) * (1.0 - share_1HW)


FORMAT = 1
"""Part of every key: raised when the computation of an entry changes, so that old
entries are not used."""

PROMPT_FORMAT = 2
"""FORMAT of texts that are encoded with images, or that contain special tokens. It was
raised when image tokens got three-dimensional positions, and special tokens in prompts
became plain text."""

FIRST_LATENT_SCALE = 8
"""Latent scale of masks that were cached before their keys contained it."""


class CachePair(NamedTuple):
    """The caches of one dataset.

    >>> in_memory = CachePair(TensorCache(None), TensorCache(None))
    >>> in_memory.latents.has(key_of(image="a.png"))
    False
    """

    latents: TensorCache
    text: TensorCache


@dataclass(frozen=True)
class CacheEntry:
    """One cached tensor of an item: its cache, its key, and how to compute it.

    >>> store = TensorCache(None)
    >>> key = key_of(image="a.png")
    >>> entry = CacheEntry("latents of a.png", store, key, lambda: torch.zeros(4))
    >>> entry.read().shape, store.has(key)
    (torch.Size([4]), True)
    """

    what: str
    """Kind and source file, for messages."""

    store: TensorCache
    key: str
    make: Callable[[], EncodedPrompt]
    """Computes the result of `DiffusionModel.encode_prompt` for a text, else one
    tensor."""

    weighs: bool = False
    """Whether the tensor is a factor of the loss. If it is 0 everywhere, nothing is
    learned, and a warning is logged."""

    def tensors(self) -> dict[str, Tensor]:
        """The cached tensors by name; they are made if the cache lacks them. Raises
        ImageError."""
        return self.store.get(self.key) or self.encode()

    def encode(self) -> dict[str, Tensor]:
        """Computes the tensors and stores them, also where the cache has them. Raises
        ImageError for a bad image and RunError where the cache cannot be written."""
        tensors = encoded_by_name(self.make())
        self.store.put(self.key, tensors)
        return tensors

    def read(self) -> Tensor:
        """The one tensor of the entry; of a prompt, its embeddings. Raises RunError as
        `read_all`."""
        return self.read_all()[EMBEDS]

    def read_all(self) -> dict[str, Tensor]:
        """All cached tensors by name. An entry that vanished or was damaged is computed
        again.

        Raises RunError when its encoder is no longer loaded.
        """
        try:
            return self.tensors()
        except (RunError, ImageError, OSError) as error:
            raise RunError(
                f"{self.what}: its cache entry is gone and cannot be made again: {error}"
            ) from error


class ItemEncoder:
    """Creates the cache entries of an item; computes a tensor only on demand. All keys
    are content hashes.

    Example::

        encoder = ItemEncoder(model, torch.bfloat16)
        entry = encoder.latents(item, CacheStores(training_folder).on_disk)
        latents_CHW = entry.read()  # encoded now if the cache lacks it
    """

    def __init__(self, model: DiffusionModel, dtype: torch.dtype) -> None:
        self._model = model
        self._channels = model.family.pixel_channels
        self._sees_references = model.family.text_sees_references
        self.dtype = dtype
        """Dtype of the encoded tensors."""
        self._identities = cache(model.cache_keys)
        self._sizes: dict[str, Size] = {}
        # Several threads may load batches, but only one at a time may run an encoder.
        self._lock = RLock()

    def latents(
        self, item: BucketedSample, stores: CachePair, data: bytes | None = None
    ) -> CacheEntry:
        """Target latents [C, H, W] of the image at its bucket. data: the image file,
        where it is not on disk."""
        sample = item.sample
        store = stores.latents
        if data is None:
            source = image_digest(sample.image)
        else:
            reading = image_reading(sample.image, data)
            source = digest_as_read(sha256(data).hexdigest(), reading)
        key = self._key("vae", "latents", sample, source, store, crop=item.crop)

        def make() -> Tensor:
            return self.encode_image(self.pixels(item, data))

        return CacheEntry(f"latents of {sample.image}", store, key, make)

    def layers(self, item: BucketedSample, stores: CachePair) -> tuple[CacheEntry, ...]:
        """Latents [C, H, W] of each layer of the target, with the composite first where
        the model predicts it."""
        sample = item.sample
        if not sample.layers:
            return ()
        images = sample.layers
        if self._model.predicts_composite:
            images = (sample.image, *images)
        return tuple(self._latents_of(path, item, stores) for path in images)

    def _latents_of(
        self, path: str, item: BucketedSample, stores: CachePair
    ) -> CacheEntry:
        """Latents [C, H, W] of another image at the bucket of the item."""
        sample = item.sample._replace(image=path)
        return self.latents(BucketedSample(sample, item.crop), stores)

    def pixels(self, item: BucketedSample, data: bytes | None = None) -> Tensor:
        """The image [P, sH, sW] at its bucket, float32 in [-1, 1]. data: as of
        `latents`. Raises ImageError."""
        sample, crop = item
        image = open_image(
            sample.image, sample.background, data=data, channels=self._channels
        )
        return to_tensor(flip_image(resize_cover_crop(image, crop), sample.flip))

    def mask(self, item: BucketedSample, stores: CachePair) -> CacheEntry | None:
        """The entry of the loss weights [1, H, W], at the size of the latents; None for
        an image without a mask. The mask file is hashed, and the weights are not
        computed yet."""
        mask = item.sample.mask
        if mask is None:
            return None
        flip = item.sample.flip
        scale = self._model.family.latent_scale
        key = key_of(
            kind="mask",
            source=image_digest(mask.file),
            settings=(mask.alpha, mask.min_value, mask.inverted),
            crop=item.crop,
            flip=of_sides(flip),
            format=FORMAT,
            **({} if scale == FIRST_LATENT_SCALE else {"latent_scale": scale}),
        )
        make = partial(mask_weights, mask, item.crop, flip, scale)
        return CacheEntry(
            f"mask of {item.sample.image}", stores.latents, key, make, weighs=True
        )

    def references(
        self, item: BucketedSample, stores: CachePair
    ) -> tuple[CacheEntry, ...]:
        """Latents [C, h, w] of each control image, in slot order, each with its own
        size. An image with layers is its own control image."""
        sample = item.sample
        if sample.layers and not sample.control_images:
            return (self.latents(item, stores),)
        store = stores.latents
        entries = []
        for path in sample.control_images:
            source = image_digest(path)
            size = self._reference_size(path, item)
            key = self._key("vae", "reference", sample, source, store, size=size)
            make = partial(self._encode_reference, path, item)
            what = f"latents of control image {path}"
            entries.append(CacheEntry(what, store, key, make))
        return tuple(entries)

    def _encode_reference(self, path: str, item: BucketedSample) -> Tensor:
        return self.encode_image(self._reference_pixels(path, item))

    def text(self, item: BucketedSample, prompt: str, stores: CachePair) -> CacheEntry:
        """Embeddings [L, D] of the prompt with those of the item's control images that
        the text encoder sees."""
        sample = item.sample
        seen = self._images_in_prompt(sample)
        digests = [image_digest(path) for path in seen]
        parts: dict[str, Any] = {}
        if digests or "<|" in prompt:
            parts["format"] = PROMPT_FORMAT
        if digests and self._model.family.text_at_reference_size:
            parts["sizes"] = [self._reference_size(path, item) for path in seen]
        parts["prompt"] = prompt
        store = stores.text
        key = self._key("text_encoder", "text", sample, digests, store, **parts)
        make = partial(self.encode_prompt, prompt, item)
        return CacheEntry(f"text of {sample.image}", store, key, make)

    def _images_in_prompt(self, sample: Sample) -> tuple[str, ...]:
        """The control images that the text encoder sees with a prompt."""
        return sample.control_images if self._sees_references else ()

    def encode_prompt(self, prompt: str, item: BucketedSample) -> dict[str, Tensor]:
        """The prompt's embeddings [L, D] under EMBEDS and its further tensors, computed
        now and not cached."""
        sample = item.sample
        seen = self._images_in_prompt(sample)
        images = []
        for path in seen:
            image = open_image(path, sample.background, channels=self._channels)
            if self._model.family.text_at_reference_size:
                image = resize(image, self._reference_size(path, item))
            images.append(over_white(flip_image(image, sample.flip)))
        with self._lock, torch.no_grad():
            encoded = encoded_by_name(self._model.encode_prompt(prompt, images))
        return {name: self._on_cpu(tensor) for name, tensor in encoded.items()}

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        """The tensor as it is cached: floating-point numbers in the dtype of the cache,
        ids and masks unchanged."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to("cpu", dtype)

    def reference_pixels(self, item: BucketedSample) -> tuple[Tensor, ...]:
        """Each control image [P, h, w] at its size, in slot order, float32 in [-1, 1].
        Raises ImageError."""
        images = item.sample.control_images
        return tuple(self._reference_pixels(path, item) for path in images)

    def _reference_pixels(self, path: str, item: BucketedSample) -> Tensor:
        image = open_image(path, item.sample.background, channels=self._channels)
        image = resize(image, self._reference_size(path, item))
        return to_tensor(flip_image(image, item.sample.flip))

    def _reference_size(self, path: str, item: BucketedSample) -> Size:
        if path not in self._sizes:
            try:
                self._sizes[path] = image_size(path)
            except ImageError as error:
                raise RunError(f"control image {error}") from error
        return self._model.reference_size(self._sizes[path], item.crop.bucket)

    def encode_image(self, pixels_PHW: Tensor) -> Tensor:
        """Latents [C, H, W] of pixels [P, sH, sW] in [-1, 1], computed now and not
        cached."""
        with self._lock, torch.no_grad():
            return self._model.encode_images(pixels_PHW[None])[0].to("cpu", self.dtype)

    def _key(
        self,
        part: str,
        kind: str,
        sample: Sample,
        source: str | list[str],
        store: TensorCache,
        **parts: Any,
    ) -> str:
        """The key of an entry. If the store has the entry only under the key of an
        earlier version of the program, it is that key. Entries in memory keep the
        earliest key, by which the validation of a run recognises its images."""
        background = ""
        # Text without images depends neither on the background nor on the flip.
        if source:
            default = "white" if self._channels == 3 else "kept"
            background = sample.background or default
            if sample.flip:
                parts["flip"] = of_sides(sample.flip)
        keys = [
            key_of(
                kind=kind,
                source=source,
                background=background,
                encoder=identity,
                dtype=str(self.dtype),
                **{"format": FORMAT, **parts},
            )
            for identity in self._identities(part)
        ]
        if store.folder is None or len(keys) == 1:
            return keys[-1]
        return next((key for key in keys if store.has(key)), keys[0])


@dataclass(frozen=True)
class ItemEntries:
    """The cache entries of one item.

    Example::

        entries = encode_items(items, model, stores_for, dtype).entries[0]
        latents_CHW = entries.target()
        embeddings_LD = entries.captions["a red cat"].read()
    """

    latents: CacheEntry
    references: tuple[CacheEntry, ...]
    mask: CacheEntry | None
    captions: Mapping[str, CacheEntry]
    """Entries by caption, for each caption that a use may have. The empty caption is
    included if captions may be dropped, or the sample has none. Empty: texts are
    encoded at each use."""

    extra: Mapping[str, Mapping[str, CacheEntry]] = field(default_factory=dict)
    """Caption of the sample -> the entries of its further prompts by name."""

    layers: tuple[CacheEntry, ...] = ()
    """Latents of the images of which a target with layers consists; else empty."""

    def target(self) -> Tensor:
        """Latents [C, H, W] of the target. Several images are stacked along H."""
        entries = self.layers or (self.latents,)
        return torch.cat([entry.read() for entry in entries], dim=1)

    def masks(self) -> tuple[CacheEntry, ...]:
        """The entry of the mask, or nothing."""
        return (self.mask,) if self.mask else ()

    def images(self) -> tuple[CacheEntry, ...]:
        """All entries that are made from image files: target, control images,
        layers and mask."""
        images = (self.latents, *self.references, *self.layers)
        return (*images, *self.masks())

    def texts(self) -> tuple[CacheEntry, ...]:
        """All entries that are made from text: captions, then further prompts."""
        groups = (self.captions, *self.extra.values())
        return tuple(entry for group in groups for entry in group.values())


@dataclass(frozen=True)
class EncodedDataset:
    """Items whose tensors are all cached.

    Example::

        dataset = encode_items(items, model, stores_for, torch.bfloat16)
        dataset.entries[0].target()  # latents [C, H, W] of the first item
        dataset.needs_text_encoder  # True where captions are shuffled
    """

    items: tuple[BucketedSample, ...]
    entries: tuple[ItemEntries, ...]
    encoder: ItemEncoder

    @property
    def needs_text_encoder(self) -> bool:
        """Whether some text is encoded during training, so that the text encoder has to
        stay."""
        return any(not entries.captions for entries in self.entries)


def encode_items(
    items: Sequence[BucketedSample],
    model: DiffusionModel,
    stores_for: Callable[[Sample], CachePair],
    dtype: torch.dtype,
    progress: Progress = lambda what, done, total: None,
    extra_prompts: Callable[[Sample], Mapping[str, str]] = lambda sample: {},
    latents: bool = True,
    workers: int = 1,
    verify: bool = True,
    later: list[Sequence[CacheEntry]] | None = None,
) -> EncodedDataset:
    """Makes sure that every tensor of every item is in the cache. Each distinct tensor
    is encoded once.

    All images are encoded first, then all texts, so that only one encoder has to be
    loaded at a time. `progress` is called after each item as ("latents" or "text
    embeddings", done, total).

    extra_prompts: further prompts of a sample by name, the same names for all samples;
    they are encoded with its control images. latents: False encodes only masks and
    texts, for jobs that train the encoder of images. workers: threads that read images
    and cached entries; only one at a time runs an encoder. verify: read cached entries,
    and make damaged ones again. later: takes the texts, which the caller encodes by
    `fill_texts` together with the texts of other calls; None: they are encoded now.

    Raises DataErrors naming every image with a text that is too long for the model,
    before anything is encoded.

    Example::

        dataset = encode_items(items, model, stores.of_samples(section), torch.bfloat16)
        batch = BatchLoader(dataset, seed=42).load(spec)
    """
    further = [
        {
            caption: extra_prompts(item.sample._replace(caption=caption))
            for caption in item.sample.texts
        }
        for item in items
    ]
    # A further prompt may be too long for the model where its caption is not.
    longer = [
        item._replace(sample=item.sample._replace(caption=text, captions=()))
        for item, prompts in zip(items, further, strict=True)
        for caption, texts in prompts.items()
        for text in texts.values()
        if len(text) > len(caption)
    ]
    family = model.family
    refuse_long_captions([*items, *longer], model.prompt_error, family.sure_prompt)
    encoder = ItemEncoder(model, dtype)
    entries = [
        _entries(item, encoder, stores_for(item.sample), prompts)
        for item, prompts in zip(items, further, strict=True)
    ]
    groups = [entry.images() for entry in entries]
    if not latents:
        groups = [entry.masks() for entry in entries if entry.mask]
    what = "latents" if latents else "masks"
    _fill_cache(what, groups, progress, workers, verify)
    texts = [entry.texts() for entry in entries if entry.texts()]
    if later is None:
        fill_texts(texts, model, progress, workers, verify)
    else:
        later += texts
    return EncodedDataset(tuple(items), tuple(entries), encoder)


def _entries(
    item: BucketedSample,
    encoder: ItemEncoder,
    stores: CachePair,
    further: Mapping[str, Mapping[str, str]],
) -> ItemEntries:
    """The entries of an item. Nothing is computed yet. further: each caption -> its
    further prompts by name."""
    rules = item.sample.rules
    # Every caption that a use may have; shuffled tags have too many orders.
    captions = () if rules.shuffle_tokens else item.sample.texts
    if captions and rules.dropout_rate > 0:
        captions = (*captions, "")
    return ItemEntries(
        latents=encoder.latents(item, stores),
        references=encoder.references(item, stores),
        mask=encoder.mask(item, stores),
        captions={text: encoder.text(item, text, stores) for text in captions},
        extra={
            caption: {
                name: encoder.text(item, prompt, stores)
                for name, prompt in prompts.items()
            }
            for caption, prompts in further.items()
        },
        layers=encoder.layers(item, stores),
    )


def fill_texts(
    groups: Sequence[Sequence[CacheEntry]],
    model: DiffusionModel,
    progress: Progress = lambda what, done, total: None,
    workers: int = 1,
    verify: bool = True,
    stays: bool = False,
) -> None:
    """Verifies every cached text and encodes the missing ones together, each once
    however often it is used.

    stays: load the whole text encoder, for texts that are encoded later. Other
    arguments as of `encode_items`. `progress` is also called for the layers of the text
    encoder, as ("text encoder layers", done, total). Prompts whose images cannot be
    read are skipped until all others are done; then one RunError names them all.
    """

    def lacking(group: Sequence[CacheEntry]) -> list[CacheEntry]:
        return [
            entry
            for entry in group
            if not (entry.store.get if verify else entry.store.has)(entry.key)
        ]

    missing: list[list[CacheEntry]] = []
    done = 0
    for entries in loaded_ahead(lacking, _each_once(groups), _threads(workers)):
        if entries:
            missing.append(entries)
            continue
        done += 1
        progress("text embeddings in the cache", done, len(groups))
    lacked = [*chain.from_iterable(missing)]
    together = _encoded_together(lacked, model, progress, stays)
    unreadable: dict[str, None] = {}
    for entries in missing:
        for entry in entries:
            encode = next(together)
            try:
                entry.store.put(entry.key, encoded_by_name(encode()))
            except (ImageError, OSError) as error:
                unreadable[f"{entry.what}: {error}"] = None
        done += 1
        progress("text embeddings", done, len(groups))
    if unreadable:
        raise RunError("\n".join(unreadable))


def _threads(workers: int) -> int:
    """Threads in addition to the one that encodes: none for one worker."""
    return 0 if workers == 1 else workers


def _encoded_together(
    entries: Sequence[CacheEntry],
    model: DiffusionModel,
    progress: Progress,
    stays: bool,
) -> Iterator[Callable[[], EncodedPrompt]]:
    """A function for each text that returns its embeddings. All texts are encoded
    together, layer by layer, or one by one if the encoder stays."""
    makes = [entry.make for entry in entries]
    if stays:
        return iter(makes)
    folder = next((entry.store.folder for entry in entries if entry.store.folder), None)
    of_layers = partial(progress, "text encoder layers")
    return model.encode_together(makes, of_layers, folder)


def _each_once(groups: Sequence[Sequence[CacheEntry]]) -> list[list[CacheEntry]]:
    """The entries of each group that no group before it has."""
    first_uses = list[list[CacheEntry]]()
    seen = set[tuple[int, str]]()
    for group in groups:
        entries = {(id(entry.store), entry.key): entry for entry in group}
        first_uses.append(
            [entry for place, entry in entries.items() if place not in seen]
        )
        seen.update(entries)
    return first_uses


class _Filled(NamedTuple):
    """The outcome of filling the cache with the images of one item."""

    encoded: bool
    """Whether any image was encoded; otherwise all were in the cache."""

    errors: list[str]
    black: list[str]
    """Keys of masks that are 0 everywhere."""


def _filled(group: Sequence[CacheEntry], verify: bool) -> _Filled:
    """Encodes the entries of a group that the cache lacks."""
    encoded = False
    errors = list[str]()
    black = list[str]()
    for entry in group:
        if not verify and entry.store.has(entry.key):
            continue
        try:
            tensors = entry.store.get(entry.key)
            if tensors is None:
                tensors = entry.encode()
                encoded = True
            if entry.weighs and not tensors[EMBEDS].any():
                black.append(entry.key)
        except (ImageError, OSError) as error:
            errors.append(f"{entry.what}: {error}")
    return _Filled(encoded, errors, black)


def _fill_cache(
    what: str,
    groups: Sequence[Sequence[CacheEntry]],
    progress: Progress,
    workers: int,
    verify: bool,
) -> None:
    """Verifies every cached entry and computes missing ones, each once however often it
    is used.

    Files that cannot be read are skipped until all others are done; then one RunError
    names them all. One warning names the masks that leave nothing of their images.
    """
    unreadable: dict[str, None] = {}
    black = set[str]()
    filled = loaded_ahead(
        partial(_filled, verify=verify), _each_once(groups), _threads(workers)
    )
    for done, outcome in enumerate(filled, start=1):
        unreadable.update(dict.fromkeys(outcome.errors))
        black.update(outcome.black)
        progress(what if outcome.encoded else f"{what} in the cache", done, len(groups))
    if unreadable:
        raise RunError("\n".join(unreadable))
    entries = chain.from_iterable(groups)
    masks = dict.fromkeys(entry.what for entry in entries if entry.key in black)
    if masks:
        logger.warning(
            f"these masks are black everywhere, so nothing is learned from their images: {shorten(masks)}"
        )


def encoded_by_name(encoded: EncodedPrompt) -> dict[str, Tensor]:
    """The tensors of an encoded prompt, or a single tensor, by name."""
    return {EMBEDS: encoded} if isinstance(encoded, Tensor) else dict(encoded)


class CacheStores:
    """The caches of a job. Each dataset says which of its entries are kept on disk.

    Example::

        stores = CacheStores(Path("output"))
        encode_items(items, model, stores.of_samples(section), torch.bfloat16)
    """

    def __init__(self, training_folder: Path) -> None:
        root = training_folder / CACHE_FOLDER
        self.on_disk = CachePair(
            TensorCache(root / "latents"), TensorCache(root / "text")
        )
        """For sample prompts and `cache` processes too."""
        self._memory = CachePair(TensorCache(None), TensorCache(None))

    def of_samples(self, section: DatasetsSection) -> Callable[[Sample], CachePair]:
        """The caches of each sample of `section.datasets`, by the `cache` of its
        dataset."""
        disk, memory = self.on_disk, self._memory
        by_dataset = []
        for dataset in section.datasets:
            latents = (disk if dataset.keeps("latents") else memory).latents
            text = (disk if dataset.keeps("text") else memory).text
            by_dataset.append(CachePair(latents, text))
        return lambda sample: by_dataset[sample.dataset]

"""Batches of latents from a stream. Images and captions are encoded when they are read,
or taken from the cache where the job keeps them.

The caption of a use is chosen here; nothing else is random. `stream_source` calls
`StreamLatents.load` for each micro-batch; the image trainer of `jobs` makes both.
Images and texts are encoded one at a time, so that a result depends on nothing else in
its batch, and is the entry of a cache that the same image in a folder would have.

Shape suffixes: B batch, C latent channels, P pixel channels, H/W latent height and
width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from toolkit.contracts.data import (
    EMBEDS,
    BatchSpec,
    BucketedSample,
    PromptEmbeds,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.data.batches.latent_cache import CachePair, ItemEncoder
from toolkit.data.pixels.images import ImageError
from toolkit.data.scan.captions import caption_for_use
from toolkit.data.streams.stream_dataset import StreamDataset, StreamItem
from toolkit.data.streams.webdataset import StreamSample, unusable
from toolkit.system import seeding

_TEXTS = 16
"""Latest embeddings that are kept in memory: the empty caption, and those of a data set
with few captions."""


class StreamLatents:
    """Makes the batches of a stream (`StreamSource.make_batch`); each is a pure
    function of its spec and the seed.

    Example::

        encoder = ItemEncoder(model, torch.bfloat16)
        latents = StreamLatents(stream, model, encoder, seed=42, stores=stores)
        source = stream_source(stream, 42, batch_size=4, make_batch=latents.load, workers=2)
    """

    def __init__(
        self,
        stream: StreamDataset,
        model: DiffusionModel,
        encoder: ItemEncoder,
        seed: int,
        stores: CachePair,
        extra_prompts: Callable[[Sample], Mapping[str, str]] = lambda sample: {},
    ) -> None:
        """encoder: of the model. stores: keep what the `cache` of the stream says.
        extra_prompts: as of `latent_cache.encode_items`."""
        self.stream = stream
        self.family = model.family
        self._model = model
        self.encoder = encoder
        self._seed = seed
        self._stores = stores
        self._keep_latents = stream.settings.keeps("latents")
        self._keep_text = stream.settings.keeps("text")
        self._extra_prompts = extra_prompts
        self._text = lru_cache(_TEXTS)(self._embeddings)

    def load(self, spec: BatchSpec) -> LatentBatch:
        """The batch on the CPU. Raises RunError for a sample whose image is damaged, or
        whose caption is too long for the model."""
        items: tuple[StreamItem, ...] = spec.samples
        samples = [self.stream.sample(item.sample) for item in items]
        latents = map(self._latents, items, samples)
        return LatentBatch(
            latents_BCHW=torch.stack([*latents]),
            prompts=self.prompts(spec),
            control_latents=((),) * len(items),
            spec=spec,
            names=tuple(sample.image for sample in samples),
            loss_weight_B=torch.ones(len(items)),
            extra_prompts=self._extra(samples),
        )

    def prompts(self, spec: BatchSpec) -> PromptEmbeds:
        """The texts of a batch. Raises RunError for one that the model has no room
        for."""
        texts = [
            caption_for_use(
                self._caption(item), self.stream.rules, self._seed, spec.epoch, position
            )
            for item, position in zip(spec.samples, spec.positions, strict=True)
        ]
        return PromptEmbeds.stack([self._text(text) for text in texts])

    def latent_size(self, spec: BatchSpec) -> Size:
        """Width and height of the latents of a batch, in latent pixels."""
        return self.family.latent_size(spec.samples[0].crop.bucket)

    def trial(self, images: int) -> LatentBatch:
        """A batch of so many images of noise at the largest size, with the longest
        caption of the first samples, to see whether it fits into the memory."""
        width, height = self.stream.largest
        shape = (self.family.pixel_channels, height, width)
        noise_PHW = torch.rand(shape, generator=seeding.generator(0, "trial")) * 2 - 1
        latents_CHW = self.encoder.encode_image(noise_PHW)
        sample = self.stream.sample(self._longest)
        rows = tuple(range(images))
        return LatentBatch(
            latents_BCHW=latents_CHW.expand(images, -1, -1, -1).clone(),
            prompts=self.trial_prompts(images),
            control_latents=((),) * images,
            spec=BatchSpec(0, rows, rows),
            names=(f"an image of {width}x{height} pixels",) * images,
            loss_weight_B=torch.ones(images),
            extra_prompts=self._extra([sample] * images),
        )

    def trial_prompts(self, images: int) -> PromptEmbeds:
        """Embeddings of the longest caption of the first samples, once for each of
        `images`."""
        return PromptEmbeds.stack([self._text(self._longest.caption)] * images)

    @property
    def _longest(self) -> StreamSample:
        return max(self.stream.looked_at, key=lambda sample: len(sample.caption))

    def _extra(self, samples: Sequence[Sample]) -> dict[str, PromptEmbeds]:
        prompts = [self._extra_prompts(sample) for sample in samples]
        return {
            name: PromptEmbeds.stack([self._text(prompt[name]) for prompt in prompts])
            for name in prompts[0]
        }

    def _latents(self, item: StreamItem, sample: Sample) -> Tensor:
        """The latents [C, H, W]."""
        bucketed = BucketedSample(sample, item.crop)
        image = item.sample.image
        try:
            if self._keep_latents:
                entry = self.encoder.latents(bucketed, self._stores, image)
                return entry.tensors()[EMBEDS]
            return self.encoder.encode_image(self.encoder.pixels(bucketed, image))
        except ImageError as error:
            raise unusable(sample.image, f"its image {error.reason}") from error

    def _caption(self, item: StreamItem) -> str:
        sample = item.sample
        if len(sample.caption) > self.family.sure_prompt:
            fault = self._model.prompt_error(sample.caption, item.crop.bucket, ())
            if fault:
                remedy = "Shorten it, or remove the sample from its shard"
                raise unusable(sample.name, f"its caption has {fault}", remedy)
        return sample.caption

    def _embeddings(self, text: str) -> dict[str, Tensor]:
        sample = Sample("a caption of the stream", text, 1, Size(1, 1), "")
        size = Size(1, 1)
        # The size has no effect: it decides those of references, which streams lack.
        item = BucketedSample(sample, ResizeCrop(size, 0, 0, size))
        if self._keep_text:
            return self.encoder.text(item, text, self._stores).tensors()
        return self.encoder.encode_prompt(text, item)

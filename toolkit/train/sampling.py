"""Sample images during training, with the same model, cache and flow as the training
itself.

Shape suffixes: B batch (1), C latent channels, H/W latent height and width, P pixel
channels.

`jobs.process.image_trainer` makes the sampler of a run; tools that generate images make
their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from textwrap import shorten

import torch
from PIL import Image
from torch import Tensor

from toolkit.config.sections.output import SamplePicture
from toolkit.contracts.data import (
    BucketedSample,
    PromptEmbeds,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.contracts.model import DiffusionModel, ModelFacts
from toolkit.contracts.training import Progress
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CachePair,
    ItemEncoder,
    fill_texts,
)
from toolkit.data.pixels.images import image_size
from toolkit.data.scan.captions import inject_trigger
from toolkit.errors import UserError
from toolkit.files.writing import atomic_write, os_error_as_run_error
from toolkit.flow.loss import INTERPOLANTS
from toolkit.flow.sampler import euler_sample, resampled, sigmas


@dataclass(frozen=True)
class SamplePrompt:
    """One sample image to generate.

    >>> size = Size(1024, 1024)
    >>> prompt = SamplePrompt("a cat", "", size, seed=42, guidance_scale=4.0, steps=20)
    >>> prompt.guided
    True
    """

    prompt: str
    negative: str
    """Used only with guidance; empty stands for `ModelFacts.empty_negative`."""

    size: Size
    """Size in pixels that the model can generate (`ModelFacts.drawable`)."""

    seed: int
    guidance_scale: float
    """1: without guidance."""

    steps: int
    references: tuple[Path, ...] = ()
    flow_shift: float | None = None
    """Shift s of the sigmas, s sigma / (1 + (s - 1) sigma), above 0; None: the model's
    own, by the size."""

    stretched: bool = True
    """Whether the sigmas are stretched to the model's last one
    (`DynamicShift.shift_terminal`), where it has one."""

    levels: tuple[float, ...] = ()
    """Noise levels before the shift, one for each step; empty: evenly spaced ones."""

    layers: int = 0
    """Layers that the reference is taken apart into, by a model that does so."""

    @property
    def guided(self) -> bool:
        """Whether a second, negative prediction is made at each step: with a
        `guidance_scale` above 1."""
        return self.guidance_scale > 1


@dataclass(frozen=True)
class _Encoded:
    prompt: CacheEntry
    negative: CacheEntry | None
    references: tuple[CacheEntry, ...]


def sample_prompts(
    items: Iterable[SamplePicture], trigger_word: str, family: ModelFacts
) -> list[SamplePrompt]:
    """The items of `sample` sections, with sizes that the family can generate. Steps
    and guidance that an item leaves out are the family's; the trigger word replaces its
    placeholder."""
    prompts = []
    for item in items:
        steps = item.sample_steps or family.sample_steps
        references = tuple(Path(path).expanduser() for path in item.ctrl_img)
        first = (
            image_size(references[0]) if references and family.stacks_layers else None
        )
        guidance = (
            family.guidance if item.guidance_scale is None else item.guidance_scale
        )
        prompt = SamplePrompt(
            prompt=inject_trigger(item.prompt, trigger_word, add=False),
            negative=inject_trigger(item.neg, trigger_word, add=False),
            size=family.sample_size(Size(item.width, item.height), first),
            seed=item.seed,
            guidance_scale=guidance,
            steps=steps,
            levels=resampled(family.sample_sigmas, steps),
            flow_shift=item.flow_shift,
            stretched=item.stretched,
            references=references,
            layers=item.layers if family.stacks_layers else 0,
        )
        prompts.append(prompt)
    return prompts


class SamplingInterrupted(Exception):
    """A stop was requested in the middle of an image, which is discarded."""


class Sampler:
    """Generates images with the present weights of the model; never changes the
    training.

    Example::

        prompts = sample_prompts(section.sample_pictures(), "maya", model.family)
        sampler = Sampler(model, prompts, dataset.encoder, stores)
        sampler.encode(progress)
        image = sampler.generate(0)
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[SamplePrompt],
        encoder: ItemEncoder,
        stores: CachePair,
        predict: Callable[..., Tensor] | None = None,
        watch: Callable[[int, int, int], bool] = lambda index, step, steps: False,
    ) -> None:
        """encoder, stores: compute and cache prompt embeddings and control latents. predict: replaces
        `model.predict_velocity`. watch: called before each sampling step with the index of the prompt, the step (from
        1) and their number; True makes `generate` raise SamplingInterrupted."""
        self.model = model
        self._watch = watch
        self._predict = predict
        self.prompts = tuple(prompts)
        self._encoded = [
            _entries(prompt, encoder, stores, model.family) for prompt in self.prompts
        ]
        self._speed = INTERPOLANTS[model.family.prediction].speed

    def encode(
        self, progress: Progress, later: list[Sequence[CacheEntry]] | None = None
    ) -> None:
        """Encodes what the cache lacks, so that sampling needs no text encoder: all
        texts, then all references.

        later: takes the texts, which the caller encodes by `fill_texts`, with those of
        other calls; None: they are encoded now. Raises UserError for a prompt that is
        too long for the model.
        """
        for item in self.prompts:
            sizes = [image_size(path) for path in item.references]
            for text in (item.prompt, item.negative):
                if message := self.model.prompt_error(text, item.size, sizes):
                    raise UserError(
                        f"sample prompt {shorten(text, 100)!r} has {message}"
                    )
        texts = [[entry] for entry in self._texts()]
        if later is None:
            fill_texts(texts, self.model, progress)
        else:
            later += texts
        references = self._references()
        for done, entry in enumerate(references, start=1):
            entry.read_all()
            progress("control images of samples", done, len(references))

    def entries(self) -> list[CacheEntry]:
        """The cache entries of the prompts: all texts, then all references."""
        return self._texts() + self._references()

    def _texts(self) -> list[CacheEntry]:
        return [
            entry
            for item in self._encoded
            for entry in (item.prompt, item.negative)
            if entry
        ]

    def _references(self) -> list[CacheEntry]:
        return [entry for item in self._encoded for entry in item.references]

    @torch.no_grad()
    def generate(self, index: int) -> Image.Image:
        """The image of prompt `index`; layers stand beside each other (`layers_of`)."""
        return drawn(self.model, self.latents(index), self.prompts[index].layers)

    @torch.no_grad()
    def latents(self, index: int) -> Tensor:
        """The latents [1, C, H, W] of prompt `index`, float32; of several images below
        each other."""
        item = self.prompts[index]
        encoded = self._encoded[index]
        references = [tuple(entry.read() for entry in encoded.references)]
        conditional = self._steps_of(
            PromptEmbeds.stack([encoded.prompt.read_all()]), references
        )
        negative = (
            PromptEmbeds.stack([encoded.negative.read_all()])
            if encoded.negative
            else None
        )
        unconditional = self._steps_of(negative, references) if negative else None
        guidance = (
            [torch.tensor([item.guidance_scale])]
            if self.model.family.embeds_guidance
            else []
        )

        steps = count(1)

        def velocity(x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
            if self._watch(index, next(steps), item.steps):
                raise SamplingInterrupted
            t_B = self.model.sampling_level(t_B)
            cond_BCHW = conditional(x_t_BCHW, t_B, *guidance)
            if unconditional is None:
                return self._speed * cond_BCHW
            uncond_BCHW = unconditional(x_t_BCHW, t_B)
            return self._speed * self.model.apply_cfg(
                cond_BCHW, uncond_BCHW, item.guidance_scale
            )

        schedule = self._sigmas(item)
        family = self.model.family
        levels = schedule[:-1]  # the last sigma, 0, is the image itself
        self.model.prefetch_timesteps(self.model.sampling_level(levels).tolist())
        width, height = family.latent_size(item.size)
        # Noise from the CPU generator: a seed gives the same image on every machine,
        # and in diffusers.
        generator = torch.Generator("cpu").manual_seed(item.seed)
        count_of_images = (
            item.layers + self.model.predicts_composite if item.layers else 1
        )
        noise_BNCHW = torch.randn(
            (1, count_of_images, family.latent_channels, height, width),
            generator=generator,
        )
        return euler_sample(
            velocity, noise_BNCHW.transpose(1, 2).flatten(2, 3), schedule
        )

    def _steps_of(
        self, prompts: PromptEmbeds, references: Sequence[Sequence[Tensor]]
    ) -> Callable[..., Tensor]:
        predict = self._predict
        if predict is None:
            return self.model.sampling_steps(prompts, references)
        return lambda x_t_BCHW, t_B, *guidance: predict(
            x_t_BCHW, t_B, prompts, references, *guidance
        )

    def _sigmas(self, item: SamplePrompt) -> Tensor:
        shift = self.model.dynamic_shift
        family = self.model.family
        mu = shift.mu(family.tokens(family.latent_size(item.size)), item.steps)
        if item.flow_shift is not None:
            mu = math.log(item.flow_shift)  # `sigmas` shifts by exp(mu)
        return sigmas(
            item.steps,
            mu,
            shift.shift_terminal if item.stretched else None,
            item.levels,
        )


def _entries(
    prompt: SamplePrompt, encoder: ItemEncoder, stores: CachePair, family: ModelFacts
) -> _Encoded:
    """The prompt as an item of a dataset: a target of its size with its control images.

    Where the guidance scale is an input of the model, no negative prompt is needed.
    """
    size = prompt.size
    references = tuple(map(str, prompt.references))
    sample = Sample(
        f"sample {prompt.prompt!r}",
        prompt.prompt,
        repeats=1,
        size=size,
        folder="",
        control_images=references,
    )
    item = BucketedSample(sample, ResizeCrop(scaled=size, left=0, top=0, bucket=size))
    needs_negative = prompt.guided and not family.embeds_guidance
    negative = (
        encoder.text(item, prompt.negative or family.empty_negative, stores)
        if needs_negative
        else None
    )
    return _Encoded(
        encoder.text(item, prompt.prompt, stores),
        negative,
        encoder.references(item, stores),
    )


def drawn(model: DiffusionModel, latents_BCHW: Tensor, layers: int = 0) -> Image.Image:
    """The image that latents [1, C, H, W] stand for. layers: how many the last images
    in it are; they stand beside each other, from back to front, each with its
    opacity."""
    if not layers:
        return to_pil(model.decode_latents(latents_BCHW))
    of_images = latents_BCHW.chunk(layers + model.predicts_composite, dim=2)
    return beside_each_other(
        [to_pil(model.decode_latents(one)) for one in of_images[-layers:]]
    )


def beside_each_other(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size in one row."""
    width, height = images[0].size
    row = Image.new(images[0].mode, (width * len(images), height))
    for index, image in enumerate(images):
        row.paste(image, (index * width, 0))
    return row


def layers_of(row: Image.Image, layers: int) -> list[Image.Image]:
    """The images of `beside_each_other`, from left to right. Columns that are left over
    by the division are cut off.

    >>> [image.size for image in layers_of(Image.new("RGB", (64, 16)), layers=4)]
    [(16, 16), (16, 16), (16, 16), (16, 16)]
    """
    width = row.width // layers
    return [
        row.crop((index * width, 0, (index + 1) * width, row.height))
        for index in range(layers)
    ]


def write_layers(folder: Path, stem: str, row: Image.Image, layers: int) -> None:
    """The images of a row as `<stem>_layer0.png` and so on, from back to front, each
    with its opacity."""
    if not layers:
        return
    folder.mkdir(exist_ok=True)
    for number, layer in enumerate(layers_of(row, layers)):
        path = folder / f"{stem}_layer{number}.png"
        with os_error_as_run_error(path), atomic_write(path) as temporary:
            layer.save(temporary, "PNG")


def to_pil(pixels_BPHW: Tensor) -> Image.Image:
    """The first of the images [B, P, H, W] in [-1, 1] as 8-bit RGB (P = 3), or RGBA (P
    = 4), rounded as in diffusers.

    >>> to_pil(torch.ones(1, 3, 2, 2)).getpixel((0, 0))
    (255, 255, 255)
    """
    values = (
        (pixels_BPHW[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    )
    return Image.fromarray((values * 255).round().astype("uint8"))

"""The plan of a `flow_trainer` process: counts its images and estimates its memory. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.flow_memory_plan import MEMORY_ADVICE, Work, images_at_once, plan_memory, save_size
from extensions.from_scratch.losses_config import too_short
from toolkit.config.dataset import area_of
from toolkit.config.process import JobContext
from toolkit.config.train import OptimizerConfig
from toolkit.data.image_data import ImageData
from toolkit.data.run_plan import RunPlan, SaveSize
from toolkit.data.types import BucketedSample
from toolkit.memory.estimate import MemoryEstimate
from toolkit.train.planning import Planner


class FlowTrainerSection(FlowTrainerConfig):
    """`type: flow_trainer`: trains a flow model on the latents of an autoencoder, from nothing or from its own earlier
    result."""

    # Apart from its keys, which all that is planned here reads.
    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps, memory. Raises DataErrors naming every offending file."""
        return FlowPlanner(self, job).dry_run()


class FlowPlanner(Planner[FlowTrainerConfig]):
    """The plan of a flow model's training."""

    def scan(self) -> ImageData:
        return ImageData(*self.section.scan(), self.section.stream())

    def without_model(self) -> Iterator[str]:
        model = self.section.model
        if model.is_yet_to_come(self.job):
            folder = model.name_or_path if self.job.yet_to_come(model.name_or_path) else model.vae
            yield f"starts from {folder}, which an earlier process of the job writes: counted then"
            yield from _parts(self.section)
            yield from _roles(self.section)

    def describe_model(self, data: ImageData) -> Iterator[str]:
        yield from _parts(self.section)
        yield from _roles(self.section)
        yield from _alike(data.items)

    def memory(self, data: ImageData) -> MemoryEstimate:
        return plan_memory(self.section, largest_work(self.section, data.items), self.machine)

    def advice(self, data: ImageData, memory: MemoryEstimate) -> str | None:
        limit = self.machine.limit
        return MEMORY_ADVICE if limit and memory.peak_bytes > limit else None

    def save_size(self) -> SaveSize:
        return save_size(self.section)

    def optimizers(self) -> Iterable[tuple[str, OptimizerConfig]]:
        for role in self.section.roles():
            given = role in self.section.optimizers.model_fields_set
            yield f"optimizers.{role}" if given else "train", self.section.role_optimizer(role)

    def length_notes(self, steps: int) -> Iterator[str]:
        yield from super().length_notes(steps)
        if along := self.section.autoencoder:
            yield from too_short(along.losses, along.discriminator, steps)


def largest_work(section: FlowTrainerConfig, items: Sequence[BucketedSample]) -> Work:
    """The largest micro-batch: of these items, or without any by `datasets`."""
    areas = [prod(item.crop.bucket) for item in items]
    areas = areas or [area_of(size) for dataset in section.datasets for size in dataset.resolution]
    pixels = max(areas)
    return Work(images_at_once(section), pixels, max(map(pixels_at_once, items), default=pixels) - pixels)


def pixels_at_once(item: BucketedSample) -> int:
    """Pixels of an image and its references, each of which has about as many."""
    return prod(item.crop.bucket) * (1 + len(item.sample.control_images))


def _parts(section: FlowTrainerConfig) -> Iterator[str]:
    """What is made, from what, and what is frozen."""
    model, text = section.model, section.model.text_encoder
    if model.name_or_path:
        yield f"goes on from {model.name_or_path}"
    else:
        transformer = model.transformer
        yield f"Auto-created transformer: {transformer.class_name}{_listed(transformer.config)}"
        yield f"prediction: {model.prediction}"
        if model.has_random_text():
            yield f"Auto-created text_encoder: BertModel{_listed(text.config)}"
            yield f"Auto-created tokenizer from the captions, {text.max_tokens} tokens of each at most"
        if text.projection_dim:
            yield f"Auto-created projection of the text embeddings to {text.projection_dim}"
    vae = model.vae or model.name_or_path
    if new := model.new_vae:
        yield f"Auto-created vae: {new.class_name}{_listed(new.config)}, trained along"
    elif along := section.autoencoder:
        yield f"trained along: {'the decoder of ' if along.train == 'decoder' else ''}the autoencoder in {vae}"
    else:
        yield f"Freezing vae ({vae})"
    if not section.trains_text():
        random = ", random weights" if model.has_random_text() else ""
        yield f"Freezing text_encoder ({text.name_or_path or model.name_or_path or 'new'}{random})"


def _roles(section: FlowTrainerConfig) -> Iterator[str]:
    """What is trained with which optimizer."""
    for role in section.roles():
        own = section.role_optimizer(role)
        every = f", each {own.every} steps" if own.every > 1 else ""
        yield f"{role}: {own.optimizer}, learning rate {own.lr:g}, {own.lr_scheduler}{every}"


def _listed(config: dict[str, Any]) -> str:
    return " with " + ", ".join(f"{key}={value}" for key, value in config.items()) if config else ""


def _alike(items: Sequence[BucketedSample]) -> Iterator[str]:
    """A warning where captions say nothing."""
    captions = {item.sample.caption for item in items}
    if len(captions) == 1 and len({item.sample.image for item in items}) > 1:
        caption = captions.pop()
        found = f"all captions are {caption!r}" if caption else "no image has a caption"
        yield f"warning: {found}: prompts will have no effect on what is drawn"

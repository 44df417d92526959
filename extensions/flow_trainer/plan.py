"""The plan of a `flow_trainer` process: counts its images and estimates its memory. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from extensions.flow_trainer.config import FlowTrainerConfig, Scanned
from extensions.flow_trainer.memory_plan import MEMORY_ADVICE, Work, images_at_once, plan_memory, save_size
from toolkit.config.dataset import area_of
from toolkit.config.process import JobContext
from toolkit.data.captions import prompt_warnings
from toolkit.data.epoch_order import count_batches
from toolkit.data.fingerprint import fingerprint
from toolkit.data.run_plan import RunPlan, folder_plans, optimizer_steps
from toolkit.data.stream_dataset import StreamDataset
from toolkit.data.types import BucketedSample
from toolkit.memory.estimate import Machine, machine_from_config
from toolkit.train.outlook import compile_notes, ema_notes, schedule_notes, too_short_notes
from toolkit.train.planning import with_outlook


class FlowTrainerSection(FlowTrainerConfig):
    """`type: flow_trainer`: trains a flow model on the latents of an autoencoder, from nothing or from its own earlier
    result."""

    # Apart from its keys, which all that is planned here reads.
    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps, memory. Raises DataErrors naming every offending file."""
        return plan_run(self, job)


def plan_run(section: FlowTrainerConfig, job: JobContext) -> RunPlan:
    """The plan of a checked section. Raises DataErrors naming every offending file."""
    model = section.model
    if not model.is_yet_to_come(job):
        data, stream, machine = section.scan(), section.stream(), machine_from_config(section.device)
        plan = plan_items(section, job, data, machine, stream)
        hashes = stream.hashes if stream else lambda: fingerprint(data[0].samples)
        return with_outlook(section, job, plan, machine, hashes)
    folder = model.name_or_path if job.yet_to_come(model.name_or_path) else model.vae
    note = f"starts from {folder}, which an earlier process of the job writes: counted then"
    notes = (note, *_parts(section), *_roles(section))
    return RunPlan(section.type, section.display_name(job), (), 0, 0, section.train.steps, notes=notes)


def plan_items(
    section: FlowTrainerConfig,
    job: JobContext,
    data: Scanned,
    machine: Machine | None = None,
    stream: StreamDataset | None = None,
) -> RunPlan:
    """The plan once the datasets are scanned. machine: where it runs; by default as in `device`. stream: in the place
    of folders."""
    scanned, items, validation_split = data
    train, size = section.train, section.train.batch_size
    if stream:
        batches, steps = stream.micro_batches(size), stream.optimizer_steps(train)
    else:
        batches = count_batches(items, size)
        steps = optimizer_steps(train.steps, train.epochs, batches, train.gradient_accumulation, train.step_limit)
    machine = machine or machine_from_config(section.device)
    memory, along = plan_memory(section, largest_work(section, items), machine), section.autoencoder
    return RunPlan(
        type=section.type,
        name=section.display_name(job),
        datasets=folder_plans(scanned.folders, items),
        samples_per_epoch=stream.samples if stream else sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=batches,
        optimizer_steps=steps,
        accumulation=train.gradient_accumulation,
        requested_epochs=train.epochs,
        notes=(
            *_parts(section),
            *_roles(section),
            *_alike(items),
            *scanned.notes,
            *prompt_warnings([item.prompt for item in section.sample_pictures()], section.trigger_words()),
            *(validation_split.notes[:1] if validation_split else ()),
            memory.render(),
            *((MEMORY_ADVICE,) if machine.limit and memory.peak_bytes > machine.limit else ()),
            *compile_notes(train, machine),
            *_schedules(section, steps),
            *too_short_notes(section, steps, *((along.losses, along.discriminator) if along else ())),
            *ema_notes(section, steps, batches),
        ),
        memory=memory,
        save_size=save_size(section),
        stream=stream.plan() if stream else None,
    )


def largest_work(section: FlowTrainerConfig, items: Sequence[BucketedSample]) -> Work:
    """The largest micro-batch: of these items, or without any by `datasets`."""
    areas = [prod(item.crop.bucket) for item in items]
    areas = areas or [area_of(size) for dataset in section.datasets for size in dataset.resolution]
    pixels = max(areas)
    return Work(images_at_once(section), pixels, max(map(pixels_at_once, items), default=pixels) - pixels)


def pixels_at_once(item: BucketedSample) -> int:
    """Pixels of an image and its references, each of which has about as many."""
    return prod(item.crop.bucket) * (1 + len(item.sample.control_images))


def _schedules(section: FlowTrainerConfig, steps: int) -> Iterator[str]:
    """Warnings of each role's schedule, once where they are the same."""
    found = [line for role in section.roles() for line in schedule_notes(section.role_optimizer(role), steps)]
    yield from dict.fromkeys(found)


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

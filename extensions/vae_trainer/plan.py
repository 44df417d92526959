"""The plan of a `vae_trainer` process: counts its images and estimates its memory. Imports no torch, writes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from extensions.vae_trainer.config import Scanned, VaeTrainerConfig
from extensions.vae_trainer.memory_advice import advice
from extensions.vae_trainer.memory_plan import Work, plan_memory, save_size, trained_weights
from toolkit.config.autoencoder import SPADE
from toolkit.config.process import JobContext
from toolkit.data.epoch_order import count_batches
from toolkit.data.fingerprint import fingerprint
from toolkit.data.run_plan import RunPlan, folder_plans, optimizer_steps
from toolkit.data.stream_dataset import StreamDataset
from toolkit.memory.estimate import Machine, MemoryEstimate, machine_from_config
from toolkit.train.outlook import ema_notes, schedule_notes, too_short_notes
from toolkit.train.planning import with_outlook


class VaeTrainerSection(VaeTrainerConfig):
    """`type: vae_trainer`: trains an autoencoder of images, from nothing or from a folder."""

    # Apart from its keys, which all that is planned here reads.
    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps, memory. Raises DataErrors naming every offending file."""
        return plan_run(self, job)


def plan_run(section: VaeTrainerConfig, job: JobContext) -> RunPlan:
    """The plan of a checked section. Raises DataErrors naming every offending file."""
    if not section.model.is_yet_to_come(job):
        data, stream, machine = section.scan(), section.stream(), machine_from_config(section.device)
        plan = plan_items(section, job, data, machine, stream)
        hashes = stream.hashes if stream else lambda: fingerprint(data[0].samples)
        return with_outlook(section, job, plan, machine, hashes)
    note = f"starts from {section.model.name_or_path}, which an earlier process of the job writes: counted then"
    notes = (note, *_length(section), *_optimizers(section))
    return RunPlan(section.type, section.display_name(job), (), 0, 0, section.train.steps, notes=notes)


def plan_items(
    section: VaeTrainerConfig,
    job: JobContext,
    data: Scanned,
    machine: Machine | None = None,
    stream: StreamDataset | None = None,
) -> RunPlan:
    """The plan once the datasets are scanned. machine: where it runs; by default as in `device`. stream: in the place
    of folders."""
    machine = machine or machine_from_config(section.device)
    scanned, items, validation_split = data
    train, size = section.train, section.train.batch_size
    if stream:
        batches, steps = stream.micro_batches(size), stream.optimizer_steps(train)
        work = Work.of_settings(section)
    else:
        batches = count_batches(items, size)
        steps = optimizer_steps(train.steps, train.epochs, batches, train.gradient_accumulation, train.step_limit)
        work = Work.of_items(section, items)
    memory = plan_memory(section, work, machine)
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
            *_roles(section),
            *scanned.notes,
            *(validation_split.notes[:1] if validation_split else ()),
            *_memory(section, work, machine, memory),
            *_schedules(section, steps),
            *too_short_notes(section, steps, section.losses, section.discriminator),
            *ema_notes(section, steps, batches),
        ),
        memory=memory,
        save_size=save_size(section),
        stream=stream.plan() if stream else None,
    )


def _roles(section: VaeTrainerConfig) -> Iterator[str]:
    """What is made, from what, and what is trained with which optimizer."""
    model = section.model
    start = f"from {model.folder()}" if model.name_or_path else "with random weights"
    part = "the decoder; the encoder is frozen" if model.train == "decoder" else "all of it"
    kind, scale = model.arguments()["_class_name"], model.latent_scale()
    spade = "; SPADE in the decoder" if model.uses_spade() else ""
    yield f"{kind} {start}, {scale} x {scale} pixels per latent pixel{spade}; trained: {part}"
    if model.name_or_path and model.arguments().get(SPADE) and not model.uses_spade():
        yield "model.spade: false: the decoder goes on without the SPADE of that folder"
    counts = trained_weights(section)
    for role in section.roles():
        own = section.role_optimizer(role)
        yield f"{role}: {counts[role]:,} parameters, {own.optimizer}, learning rate {own.lr:g}, {own.lr_scheduler}"


def _length(section: VaeTrainerConfig) -> Iterator[str]:
    """How long it trains, where its images cannot be counted yet, and what ends it."""
    train = section.train
    limit = f", at most {train.step_limit:,} optimizer steps" if train.step_limit else ""
    yield f"{train.epochs:,} epochs{limit}" if train.epochs else f"{train.steps:,} optimizer steps"
    if stop := section.stop_when:
        yield f"or until the mean of {stop.metric} is below {stop.below:g}"


def _optimizers(section: VaeTrainerConfig) -> Iterator[str]:
    for role in section.roles():
        own = section.role_optimizer(role)
        yield f"{role}: {own.optimizer}, learning rate {own.lr:g}, {own.lr_scheduler}"


def _memory(section: VaeTrainerConfig, work: Work, machine: Machine, memory: MemoryEstimate) -> Iterator[str]:
    yield memory.render()
    if line := advice(section, work, machine, memory):
        yield line


def _schedules(section: VaeTrainerConfig, steps: int) -> Iterator[str]:
    """Warnings of each role's schedule, once where they are the same."""
    found = [(role, line) for role in section.roles() for line in schedule_notes(section.role_optimizer(role), steps)]
    for line in dict.fromkeys(line for _, line in found):
        roles = [role for role, its in found if its == line]
        whose = f" ({', '.join(roles)})" if len(roles) < len(section.roles()) else ""
        yield f"{line}{whose}"

"""The plan of an `sd_trainer` process: scans its datasets and counts. Imports no torch, writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from extensions.sd_trainer.memory_advice import advice
from extensions.sd_trainer.memory_inputs import ItemGroup, count_trainable_params, group_items
from extensions.sd_trainer.memory_plan import Machine, machine_from_config, plan_memory
from toolkit.config.process import JobContext
from toolkit.config.sections import DiffusionSection
from toolkit.config.train import TrainConfig
from toolkit.data.epoch_order import count_batches
from toolkit.data.folder import DatasetScan
from toolkit.data.image_header import picture_size
from toolkit.data.items import too_many_references
from toolkit.data.run_plan import RunPlan, folder_plans, optimizer_steps
from toolkit.data.scan_cache import ScanCache
from toolkit.data.validation_split import ValidationSplit, scan_and_split
from toolkit.distributed_env import read_distributed_env
from toolkit.errors import DataErrors, InputError, UserError
from toolkit.interfaces import BucketedSample, Size
from toolkit.memory.estimate import MemoryEstimate
from toolkit.models.families import family_for, yet_to_come
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.ema_decay import initial_weight_fraction
from toolkit.optim.schedules import ScheduleArgs, course_of, overfull


def plan_run(config: DiffusionSection, job: JobContext) -> RunPlan:
    """The plan of a checked `sd_trainer` section."""
    scan_cache = ScanCache.beside(config.training_folder)
    return plan_items(config, job, *scan_and_split(config, family_for(config.model), scan_cache))


def plan_items(
    config: DiffusionSection,
    job: JobContext,
    scan: DatasetScan,
    items: tuple[BucketedSample, ...],
    validation_split: ValidationSplit | None = None,
    machine: Machine | None = None,
) -> RunPlan:
    """The plan of a section whose datasets are scanned. machine: where it runs; by default as in `device`."""
    machine = machine or machine_from_config(config.device)
    refuse_prompts(config)
    groups = group_items(config, items, validation_split.items if validation_split else ())
    memory = None if _is_unwritten(config, job) else plan_memory(config, groups, machine)
    train = config.train
    micro_batches = count_batches(items, train.batch_size)
    steps = optimizer_steps(train.steps, train.epochs, micro_batches, train.gradient_accumulation)
    return RunPlan(
        type=config.type,
        name=config.display_name(job),
        datasets=folder_plans(scan.folders, items),
        samples_per_epoch=sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=micro_batches,
        optimizer_steps=steps,
        accumulation=train.gradient_accumulation,
        requested_epochs=train.epochs,
        notes=(
            *yet_to_come(config.model, job),
            *describe_data_parallel(train),
            *scan.notes,
            *(validation_split.notes if validation_split else ()),
            *_base_loras(config),
            *_recovery(config),
            *(_estimates(config, groups, machine, memory) if memory else ()),
            *_schedule(train, steps),
            *_ema_share(config, steps, micro_batches),
        ),
        memory=memory,
    )


def refuse_prompts(config: DiffusionSection) -> None:
    """Raises DataErrors naming every sample prompt with too many control images, or that is too long for the model,
    where that can be checked already."""
    family = family_for(config.model)
    mistakes = []
    for name, section in (("sample", config.sample), ("first_sample", config.first_sample)):
        for index, item in enumerate(section.sample_items() if section else ()):
            if len(item.ctrl_img) > family.max_references:
                reason = too_many_references(len(item.ctrl_img), family, "ctrl_img")
                mistakes.append(InputError(f"{name}.samples[{index}].ctrl_img", reason))
                continue
            texts = {"prompt": item.prompt, "neg": item.neg or ""}
            long = {key: text for key, text in texts.items() if len(text) > family.sure_prompt}
            references = [picture_size(Path(path).expanduser()) for path in item.ctrl_img] if long else []
            for key, text in long.items():
                if message := family.prompt_error(config.model, text, Size(item.width, item.height), references):
                    mistakes.append(InputError(f"{name}.samples[{index}].{key}", f"has {message}"))
    if mistakes:
        raise DataErrors(mistakes)


def check_disk_space(config: DiffusionSection, folder: Path) -> None:
    """Raises UserError when not even one checkpoint and one file of the run would fit on the disk of `folder`."""
    trained = count_trainable_params(config)
    needed = trained.state_bytes(config.train) + trained.written * DTYPE_BYTES[config.save.dtype]
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"training_folder: {folder} has {_size(free)} free, one save of this job takes {_size(needed)}. "
            "Free some space, or choose a folder on another disk."
        )


def describe_data_parallel(train: TrainConfig) -> Iterator[str]:
    """How the samples of a step are split over the ranks."""
    processes = read_distributed_env().size
    if processes == 1:
        return
    count, size = train.gradient_accumulation, train.batch_size
    what = f"{processes} processes share the {count} x {size} images of each step"
    cut = min(-(-processes // count), size)
    each = count * cut
    if each < processes:
        idle = processes - each
        yield f"{what}: {idle} are idle. A gradient_accumulation of {processes} gives each one batch."
    elif each % processes:
        yield f"{what}: some compute {each // processes + 1} batches, the others {each // processes}, and wait."
    else:
        uneven = f" or {size // cut + 1}" if size % cut else ""
        yield f"{what}: {each // processes} x {size // cut}{uneven} each"


def _base_loras(config: DiffusionSection) -> Iterator[str]:
    """The LoRAs that are merged into the model."""
    for lora in config.model.base_loras:
        yield f"merged into the model before training: {lora.file_name()} times {lora.multiplier:g}"


def _recovery(config: DiffusionSection) -> Iterator[str]:
    if config.model.quantize and config.model.accuracy_recovery_adapter:
        yield (
            f"added to the frozen {config.model.qtype} model: {config.model.recovery_name()}; "
            "layers it does not cover are int8"
        )


def _is_unwritten(config: DiffusionSection, job: JobContext) -> bool:
    """Whether an earlier process of the job writes the model."""
    folder = config.model.folder()
    return folder in job.earlier_outputs and not folder.is_dir()


def _estimates(
    config: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, memory: MemoryEstimate
) -> Iterator[str]:
    """Memory and disk, by arithmetic on the model's config."""
    trained = count_trainable_params(config)
    yield memory.render()
    yield from memory.notes
    if line := advice(config, groups, machine, memory):
        yield line
    yield (
        f"{config.network.type} {config.network.size()} on {len(trained.layers)} layers: "
        f"{trained.weights:,} trainable parameters; each {'folder' if config.network.trains_model else 'file'} "
        f"{_size(trained.written * DTYPE_BYTES[config.save.dtype])}, "
        f"each state {_size(trained.state_bytes(config.train))} on disk"
        + (f"; the model's own weights in {config.model.qtype}" if config.model.quantize else "")
    )


def _schedule(train: TrainConfig, steps: int) -> Iterator[str]:
    """A line where warm-up and decay do not fit into the run."""
    course = course_of(steps, params=train.lr_scheduler_params, **ScheduleArgs.named_in(train))
    if line := overfull(train.lr_scheduler, course):
        yield line


def _ema_share(config: DiffusionSection, steps: int, micro_batches: int) -> Iterator[str]:
    """The weight of the initial parameters in the saved EMA."""
    ema = config.train.ema_config
    if not ema.use_ema:
        return
    first = optimizer_steps(*config.save.interval(), micro_batches, config.train.gradient_accumulation)
    saves = [step for step in (first, steps) if 0 < step <= steps]
    shares = [
        f"{_percent(initial_weight_fraction(step, ema.ema_decay, ema.use_num_updates))} at step {step}"
        for step in saves
    ]
    yield (
        f"EMA {ema.ema_decay:g}: weight of the initial parameters in the saved average: "
        f"{', '.join(dict.fromkeys(shares))}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "under 0.1 %"


def _size(count: float) -> str:
    """Bytes for people (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"

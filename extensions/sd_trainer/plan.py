"""The plan of an `sd_trainer` process: scans its datasets and counts. Imports no torch, writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from extensions.sd_trainer.memory_advice import advice
from extensions.sd_trainer.memory_inputs import (
    ItemGroup,
    TrainableParams,
    count_trainable_params,
    group_items,
    group_stream,
    step_work,
    trainable_names,
)
from extensions.sd_trainer.memory_plan import plan_memory
from toolkit.config.dataset import sides_of
from toolkit.config.process import JobContext
from toolkit.config.sections import DiffusionSection, TrainerConfig
from toolkit.config.train import TrainConfig
from toolkit.data.captions import prompt_warnings
from toolkit.data.epoch_order import count_batches
from toolkit.data.fingerprint import digest_of, fingerprint
from toolkit.data.folder import DatasetScan
from toolkit.data.images import ImageError
from toolkit.data.items import readable_references, too_large
from toolkit.data.run_plan import RunPlan, SaveSize, folder_plans, optimizer_steps
from toolkit.data.scan_cache import ScanCache
from toolkit.data.stream_dataset import StreamDataset
from toolkit.data.types import BucketedSample, Size
from toolkit.data.validation_split import ValidationSplit, scan_and_split
from toolkit.errors import DataErrors, InputError, RunError, UserError
from toolkit.files.writing import readable_size
from toolkit.memory.estimate import Machine, MemoryEstimate, machine_from_config
from toolkit.memory.flops import StepWork
from toolkit.models.families import family_for, yet_to_come
from toolkit.networks.kinds import KINDS
from toolkit.networks.targets import select_target_modules, unused_choices
from toolkit.number_types import DTYPE_BYTES, QTYPE_ERRORS
from toolkit.system.distributed_env import read_distributed_env
from toolkit.train.config_diff import ConfigChange, corrections
from toolkit.train.outlook import compile_notes, ema_notes, schedule_notes, too_short_notes
from toolkit.train.planning import with_outlook


def plan_run(config: DiffusionSection, job: JobContext) -> RunPlan:
    """The plan of a checked `sd_trainer` section."""
    scan_cache = ScanCache.beside(config.training_folder)
    family = family_for(config.model)
    scan, items, split = scan_and_split(config, family, scan_cache)
    stream = StreamDataset.of(config, family.size_multiple)
    machine = machine_from_config(config.device)
    plan = plan_items(config, job, scan, items, split, machine, stream)
    assert isinstance(config, TrainerConfig)  # true of the only section that is planned here
    found = stream.hashes if stream else lambda: fingerprint(scan.samples)
    return with_outlook(config, job, plan, machine, found, partial(corrections_of, config, scan), config.model)


def corrections_of(config: DiffusionSection, scan: DatasetScan, revision: int) -> list[ConfigChange]:
    """What the program computes differently for this job than the one that recorded `revision`."""
    has_references = any(sample.control_images for sample in scan.samples)
    return corrections(revision, config.model_dump(mode="json"), has_references)


def dataset_digest(config: DiffusionSection) -> str:
    """The hash of the dataset that a checkpoint records; empty where it cannot be read, and of a stream, whose settings
    say which it is."""
    if config.streamed:
        return ""
    try:
        scan, *_ = scan_and_split(config, family_for(config.model), ScanCache.beside(config.training_folder))
        return digest_of(fingerprint(scan.samples))
    except (UserError, RunError):
        return ""


def plan_items(
    config: DiffusionSection,
    job: JobContext,
    scan: DatasetScan,
    items: tuple[BucketedSample, ...],
    validation_split: ValidationSplit | None = None,
    machine: Machine | None = None,
    stream: StreamDataset | None = None,
) -> RunPlan:
    """The plan of a section whose datasets are scanned. machine: where it runs; by default as in `device`."""
    machine = machine or machine_from_config(config.device)
    refuse_prompts(config)
    groups = item_groups(config, items, validation_split, stream)
    memory = None if job.yet_to_come(config.model.folder()) else plan_memory(config, groups, machine)
    train = config.train
    micro_batches = stream.micro_batches(train.batch_size) if stream else count_batches(items, train.batch_size)
    steps = optimizer_steps(train.steps, train.epochs, micro_batches, train.gradient_accumulation, train.step_limit)
    steps = stream.optimizer_steps(train) if stream else steps
    return RunPlan(
        type=config.type,
        name=config.display_name(job),
        datasets=folder_plans(scan.folders, items),
        samples_per_epoch=stream.samples if stream else sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=micro_batches,
        optimizer_steps=steps,
        accumulation=train.gradient_accumulation,
        requested_epochs=train.epochs,
        notes=(
            *yet_to_come(config.model, job),
            *describe_data_parallel(train),
            *_encoded_as_they_come(config),
            *compile_notes(train, machine),
            *_int8_products(config, machine),
            *_sizes(config),
            *scan.notes,
            *prompt_warnings([item.prompt for item in config.sample_pictures()], config.trigger_words()),
            *(validation_split.notes if validation_split else ()),
            *_base_loras(config),
            *_recovery(config),
            *_preservations(train),
            *_excess_rank(config),
            *(_estimates(config, groups, machine, memory) if memory else ()),
            *schedule_notes(train, steps),
            *too_short_notes(config, steps),
            *ema_notes(config, steps, micro_batches),
        ),
        memory=memory,
        save_size=save_size(config) if memory else None,
        step_work=_step_work(config, groups) if memory and machine.kind == "cuda" else None,
        stream=stream.plan() if stream else None,
    )


def _step_work(config: DiffusionSection, groups: Sequence[ItemGroup]) -> StepWork | None:
    return step_work(config, family_for(config.model).footprint(config.model.files_folder()), groups)


def item_groups(
    config: DiffusionSection,
    items: Sequence[BucketedSample],
    validation_split: ValidationSplit | None = None,
    stream: StreamDataset | None = None,
) -> tuple[ItemGroup, ...]:
    """The groups of what is trained on and held out, for the memory estimate."""
    held_out = validation_split.items if validation_split else ()
    return group_stream(config, stream, held_out) if stream else group_items(config, items, held_out)


def _int8_products(config: DiffusionSection, machine: Machine) -> Iterator[str]:
    model, compiled = config.model, config.train.compile.enabled
    wanted = model.quantize and model.qtype == "int8" and model.int8_matmul == "auto" and compiled
    if wanted and machine.kind == "cuda" and machine.capability in (None, 9):
        yield "model.int8_matmul auto: off on compute capability 9.x (H100, H200) until it is measured there"


def _encoded_as_they_come(config: DiffusionSection) -> Iterator[str]:
    if not (stream := config.streamed):
        return
    kept = [
        name
        for name, keeps in (
            ("latents", stream.cache_latents_to_disk),
            ("text embeddings", config.requested_text_cache(stream)),
        )
        if keeps
    ]
    where = f"; {' and '.join(kept)} are kept on the disk" if kept else ", at each use anew"
    yield f"images and captions are encoded as they come{where}; VAE and text encoder stay loaded"


def refuse_prompts(config: DiffusionSection) -> None:
    """Raises DataErrors naming every sample prompt with too many control images, or one that cannot be used, or that is
    too long for the model, where that can be checked already."""
    family = family_for(config.model)
    mistakes = []
    for name, section in (("sample", config.sample), ("first_sample", config.first_sample)):
        for index, item in enumerate(section.sample_items() if section else ()):
            try:
                references = readable_references(item.ctrl_img, family)
            except (ImageError, UserError) as error:
                mistakes.append(InputError(f"{name}.samples[{index}].ctrl_img", str(error)))
                continue
            if reason := too_large(family.drawable(Size(item.width, item.height)), family):
                mistakes.append(InputError(f"{name}.samples[{index}]", reason))
            texts = {"prompt": item.prompt, "neg": item.neg or ""}
            long = {key: text for key, text in texts.items() if len(text) > family.sure_prompt}
            for key, text in long.items():
                if message := family.prompt_error(config.model, text, Size(item.width, item.height), references):
                    mistakes.append(InputError(f"{name}.samples[{index}].{key}", f"has {message}"))
    if mistakes:
        raise DataErrors(mistakes)


def save_size(config: DiffusionSection) -> SaveSize:
    """What one save takes."""
    trained = count_trainable_params(config)
    return SaveSize(trained.written * DTYPE_BYTES[config.save.dtype], _state_bytes(config, trained))


def _state_bytes(config: DiffusionSection, trained: TrainableParams) -> int:
    return 0 if config.save.states == "never" else trained.state_bytes(config.train)


def describe_data_parallel(train: TrainConfig) -> Iterator[str]:
    """How the samples of a step are split over the ranks."""
    processes = read_distributed_env().world_size
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


def _sizes(config: DiffusionSection) -> Iterator[str]:
    """What was understood of a `resolution` that is more than one number."""
    multiple = family_for(config.model).size_multiple
    for dataset in config.datasets:
        if len(dataset.resolution) == 1 and isinstance(dataset.resolution[0], int):
            continue
        sizes = (
            f"up to {size} x {size} pixels of area, aspect ratio kept"
            if isinstance(size, int)
            else f"exactly {' x '.join(str(side // multiple * multiple) for side in sides_of(size))} pixels, the rest "
            "of each image cut off"
            for size in dataset.resolution
        )
        yield f"resolution of {dataset.folder_path or dataset.url[0]}: {'; '.join(sizes)}"


def _base_loras(config: DiffusionSection) -> Iterator[str]:
    """The LoRAs that are merged into the model."""
    for lora in config.model.base_loras:
        yield f"merged into the model before training: {lora.file_name()} times {lora.multiplier:g}"


def _recovery(config: DiffusionSection) -> Iterator[str]:
    if config.model.quantize and config.model.makes_recovery():
        yield f"{config.model.qtype}: an accuracy-recovery adapter is made for it, or taken from the cache"
    elif config.model.quantize and config.model.accuracy_recovery_adapter:
        yield (
            f"added to the frozen {config.model.qtype} model: {config.model.recovery_name()}; "
            "layers it does not cover are int8"
        )
    elif config.model.quantize and config.model.qtype in QTYPE_ERRORS:
        qtype = config.model.qtype
        lost = f"{qtype}: each weight is off by {100 * QTYPE_ERRORS[qtype]:.2g} %"
        yield f"{lost}; an accuracy-recovery adapter for {qtype} ('{qtype}|file') makes up for it"


def _preservations(train: TrainConfig) -> Iterator[str]:
    """What is held of the base model, and what that costs."""
    class_name = train.diff_output_preservation_class
    held = {
        "diff_output_preservation": f"captions with {class_name!r} for the trigger word",
        "blank_prompt_preservation": "an empty prompt",
    }
    for name, factor in train.preservations().items():
        yield f"{name}: the prediction for {held[name]} is held ({factor:g} times its change is added to the loss)"
    if count := len(train.preservations()):
        yield f"that takes {2 * count} more predictions per micro-batch, {count} of them with a backward pass"


def _excess_rank(config: DiffusionSection) -> Iterator[str]:
    """A warning where the rank of a LoRA is above that of whole weights."""
    network, family = config.network, family_for(config.model)
    if not KINDS[network.type].up_names:  # of other kinds the rank is not that of a product of two matrices
        return
    layers = family.linear_layers(config.model.files_folder())
    chosen = [min(layers[name]) for name in select_target_modules(network, list(layers))]
    if count := sum(width < network.linear for width in chosen):
        yield (
            f"warning: network.linear {network.linear}: {count} of {len(chosen)} layers have fewer inputs or outputs "
            f"(the least {min(chosen)}), and more ranks than these change nothing"
        )


_ON_DISK = {
    "always": ", each state {} on disk",
    "at_end": ", and one state of {} at the end, on disk",
    "never": " on disk, no state: a stopped run begins anew",
}
"""`save.states` -> what it means, behind the size of a file."""


def _estimates(
    config: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, memory: MemoryEstimate
) -> Iterator[str]:
    """Memory and disk, by arithmetic on the model's config."""
    trained = count_trainable_params(config)
    yield memory.render()
    yield from memory.notes
    yield from unused_choices(config.network, trainable_names(config))
    if line := advice(config, groups, machine, memory):
        yield line
    yield (
        f"{config.network.type} {config.network.size()} on {len(trained.layers)} layers: "
        f"{trained.weights:,} trainable parameters; each {'folder' if config.network.trains_model else 'file'} "
        f"{readable_size(trained.written * DTYPE_BYTES[config.save.dtype])}"
        f"{_ON_DISK[config.save.states].format(readable_size(_state_bytes(config, trained)))}"
        + (f"; the model's own weights in {config.model.qtype}" if config.model.quantize else "")
    )

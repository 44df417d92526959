"""Combinations of keys that an `sd_trainer` section rules out, and keys that have no
effect in it. Imports no torch.

To add a check, add an `if` to the group that it belongs to: `error` stops the job,
`warning` is printed, `unused` of a section warns of keys that nothing reads. Write each
message on its own line, so that a search for its words finds it. A check of one
subsection alone belongs in the `check` of that section.

`config.SdTrainerConfig.check` calls `findings` for each job, also in a dry run.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.config.reading.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.reading.findings import Findings, below, error, warning
from toolkit.config.sections.dataset import LOSS, MASKS, sides_of
from toolkit.config.sections.model import FEWEST_SWAPPED, QTYPE_SPELLINGS
from toolkit.config.sections.model_files import (
    ModelFolder,
    single_files,
)
from toolkit.config.sections.output import SampleConfig, SampleItem
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.models.families import (
    LARGE_MODEL_BLOCKS,
    AnotherFamilyError,
    ModelFamily,
    family_for,
    published_names,
    rounded_side,
    single_file_faults,
    unlike_distilled,
)
from toolkit.models.single_file import unwritten
from toolkit.optim.optimizer_args import ELEMENTWISE, HIGHEST_LR, requires_single_lr
from toolkit.optim.schedules import SCHEDULES, remarks
from toolkit.system.distributed_env import read_distributed_env

REDRAWS_DROPOUT = ("eager", "eager_debug", "eager_noexcept", "pre_dispatch_eager")
"""Compilers with which a recomputed block samples dropout again, so that its gradients
are wrong (torch/_higher_order_ops/wrap.py, `divide_kwargs`: the others make the random
numbers part of the program)."""

ADAPTER_LR = 5e-4
"""Learning rate above which an adapter of a large model tends to burn
(docs/first_character.md)."""

SampleEntry = SampleConfig | SampleItem

TYPE_IN_A_NAME = re.compile(
    r"(?<![a-z0-9])(?:q?u?int[2-8]|q?float8|fp8|nf4|nvfp4)(?![a-z0-9])"
)


def findings(s: DiffusionSection) -> Findings:
    """All checks of several subsections together."""
    for group in (
        _arch, _model_or_adapter, _weight_files, _files_beside, _optimizer, _preservation, _schedule,
        _noise_levels, _distilled, _memory, _modulation_table, _compile, _offloads, _processes, _images, _layers,
        _unseen_sizes, _first_samples, _samples, _validation, _files,
    ):  # fmt: skip
        yield from group(s)


def _arch(s: DiffusionSection) -> Findings:
    try:
        family_for(s.model)
    except AnotherFamilyError as fault:
        yield error("model.arch", str(fault).removeprefix("model.arch: "))
    except UserError:  # another rule, or the plan, reports the model
        return


def _model_or_adapter(s: DiffusionSection) -> Findings:
    train = s.train
    model = s.model
    network = s.network
    if network.trains_model:
        if model.quantize:
            yield error(
                "model.quantize",
                "network.type 'full' trains the weights, and quantized weights "
                "cannot be trained. Set it to false.",
            )
        if network.pretrained_lora_path is not None:
            yield error(
                "network.pretrained_lora_path",
                "network.type 'full' has no adapter to initialise. Remove it.",
            )
        if model.blocks_to_swap and (
            not train.fused_backward_pass or train.gradient_accumulation > 1
        ):
            yield error(
                "model.blocks_to_swap",
                "blocks that are trained can be swapped only where each is updated in the backward pass. Set "
                "train.fused_backward_pass: true and train.gradient_accumulation: 1, or blocks_to_swap: 0.",
            )
        if network.scale_weight_norms:
            yield error(
                "network.scale_weight_norms",
                "network.type 'full' has no adapter to limit. Remove it.",
            )
        for key in ("linear", "linear_alpha", "dropout", "rank_dropout", "module_dropout", "loraplus_lr_ratio",
                    "scale_weight_norms"):  # fmt: skip
            if key in network.model_fields_set:
                yield warning(
                    f"network.{key}",
                    "has no effect: network.type 'full' trains the model itself.",
                )
    else:
        if train.full_bf16:
            yield error(
                "train.full_bf16",
                "needs 'network: {type: full}': adapter weights are always float32.",
            )
        if network.linear_alpha == 0 and not KINDS[network.type].library_class:
            yield warning("network.linear_alpha", "0 disables the adapter.")
        if network.dropout == 1:
            yield warning(
                "network.dropout",
                "1 zeroes every input of the adapter, so nothing is learned.",
            )
    if network.loraplus_lr_ratio not in (0, 1) and not KINDS[network.type].up_names:
        yield error(
            "network.loraplus_lr_ratio",
            f"network.type '{network.type}' has no up matrix to train at a higher rate. Remove it.",
        )


def _weight_files(s: DiffusionSection) -> Findings:
    files = {
        f"model.base_loras.{index}.path": lora.path
        for index, lora in enumerate(s.model.base_loras)
    }
    for key, lora in s.files_beside().items():
        files[f"{key}.path"] = lora.file()
    files["network.pretrained_lora_path"] = s.network.pretrained_lora_path or ""
    files["model.accuracy_recovery_adapter"] = s.model.accuracy_recovery_adapter or ""
    for key, path in files.items():
        if path:
            yield from weight_file_findings(s, key, path)
    given = single_files(s.model)
    if not given:
        return
    for key, fault in single_file_faults(s.model, s.model.files_folder()):
        yield error(f"model.{key}", fault)
    if s.saves_folders:
        encoders = given.keys() - {"transformer"}
        if encoders:
            message = (
                "network.type 'full' saves the encoders of the model folder. Put the weights there, or set "
                "save.layout: single_file."
            )
            for part in sorted(encoders):
                yield error(f"model.{part}_path", message)


def weight_file_findings(s: DiffusionSection, key: str, path: str) -> Findings:
    """Reasons why a LoRA file does not fit the model that it is for. key: the key of
    the job at which they are reported. path: of the file.

    The widths of its layers are compared only where it can be read and its origin
    raises no error.
    """
    from toolkit.models.adapter_origin import (
        origin_findings,
        unreadable,
        width_findings,
    )

    if fault := unreadable(path):
        yield error(key, fault)
        return
    of_origin = list(origin_findings(key, path, s.model, s.model.files_folder()))
    yield from of_origin
    if not any(one.severity == "error" for one in of_origin):
        yield from width_findings(key, path, s.model, s.model.files_folder())


def _files_beside(s: DiffusionSection) -> Findings:
    """LoRA files that are active beside the network, where there is none, or where they
    cannot be switched."""
    sharded = s.train.parallel == "fsdp" and read_distributed_env().world_size > 1
    for key in s.files_beside():
        if s.network.trains_model:
            yield error(
                key,
                "network.type 'full' trains the weights that this file changes. Remove it, or train an adapter.",
            )
        elif sharded:
            yield error(
                key,
                "is not supported with 'parallel: fsdp'. Remove it, or use 'parallel: ddp'.",
            )


def _optimizer(s: DiffusionSection) -> Findings:
    train = s.train
    network = s.network
    optimizer = train.optimizer
    for key in ("fused_backward_pass", "full_bf16"):
        if getattr(train, key) and optimizer not in PER_PARAMETER_OPTIMIZERS:
            why = (
                "keeps its own average"
                if train.is_schedule_free
                else "may need all gradients"
            )
            yield error(
                f"train.{key}",
                f"updates one parameter at a time, but {optimizer} {why}. Use "
                f"{', '.join(PER_PARAMETER_OPTIMIZERS)}.",
            )
    if train.fused_backward_pass and train.dtype == "float16":
        yield error(
            "train.fused_backward_pass",
            "does not work with 'dtype: float16', which checks all gradients before it applies any. Use bf16.",
        )
    if requires_single_lr(optimizer) and network.loraplus_lr_ratio not in (0, 1):
        yield error(
            "network.loraplus_lr_ratio",
            f"optimizer '{optimizer}' adapts one learning rate for all weights. Remove this key, or use 'adamw'.",
        )
    if (
        train.is_schedule_free
        and network.scale_weight_norms
        and not network.trains_model
    ):
        yield error(
            "network.scale_weight_norms",
            f"optimizer '{optimizer}' saves averaged weights, which the limit would "
            "not cover. Remove this key, or use 'adamw'.",
        )
    if train.lr == 0:
        yield warning("train.lr", "0 means that nothing is trained.")
    if requires_single_lr(optimizer) and 0 < train.lr < 0.1:
        yield warning(
            "train.optimizer",
            f"{optimizer} estimates the learning rate itself, and lr {train.lr:g} "
            "scales it down. A typical value is 'lr: 1'.",
        )
    if train.lr > HIGHEST_LR.get(optimizer, math.inf):
        yield warning(
            "train.lr",
            f"{train.lr:g} is unusually high for {optimizer}; training is likely to "
            "diverge. A typical value is 1e-4 (prodigy: 1).",
        )
    elif (
        train.lr > ADAPTER_LR
        and HIGHEST_LR.get(optimizer) == HIGHEST_LR["adamw"]
        and not network.trains_model
    ):
        # An earlier process may make the model, of a size that is not known here.
        is_here = (
            s.model.files_folder().is_dir() or s.model.name_or_path in published_names()
        )
        if is_here and (_blocks(s) or 0) >= LARGE_MODEL_BLOCKS:
            yield warning(
                "train.lr",
                f"{train.lr:g} is high for a large model: above {ADAPTER_LR:g} its images tend to burn. A "
                "typical value is 0.0001 to 0.0002.",
            )
    # `accelerate launch --mixed_precision`, or its configuration, passes its choice on
    # in a variable.
    asked = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}.get(
        os.getenv("ACCELERATE_MIXED_PRECISION", "")
    )
    if asked and asked != train.dtype:
        yield warning(
            "train.dtype",
            f"{train.dtype} takes precedence over accelerate's --mixed_precision ({asked}).",
        )


def _preservation(s: DiffusionSection) -> Findings:
    train = s.train
    preserved = train.preservations()
    has_trigger = s.trigger_word or any(dataset.trigger_word for dataset in s.datasets)
    if s.network.trains_model:
        message = "needs the model without its adapter, and network.type 'full' has no adapter. Remove it."
        for name in preserved:
            yield error(f"train.{name}", message)
    if "diff_output_preservation" in preserved and not has_trigger:
        yield error(
            "train.diff_output_preservation",
            "replaces the trigger word by its class, but trigger_word is not set. Set it, or use "
            "'blank_prompt_preservation'.",
        )
    if train.diff_output_preservation and not train.diff_output_preservation_class:
        yield warning(
            "train.diff_output_preservation_class",
            "is not set, so the trigger word is removed. Set what it is an example of, such as 'woman'.",
        )


def _schedule(s: DiffusionSection) -> Findings:
    train = s.train
    scheduler = train.lr_scheduler
    if "decay" not in SCHEDULES[scheduler].uses:
        reason = f": lr_scheduler {scheduler} ignores it."
        yield from below("train", train.unused("lr_decay_steps", reason))
    for param, message in remarks(scheduler, train.lr_scheduler_params):
        yield warning(f"train.lr_scheduler_params.{param}", message)


def _steps(s: DiffusionSection) -> int:
    """Optimizer steps of the run; 0: known only once the images are counted."""
    return 0 if s.train.epochs else s.train.steps


def _noise_levels(s: DiffusionSection) -> Findings:
    """Parts of an epoch of unknown length."""
    if (
        s.train.num_timestep_buckets
        and s.streamed
        and not s.streamed.webdataset.samples
    ):
        yield error(
            "train.num_timestep_buckets",
            "a stream needs 'datasets[0].webdataset.samples' for this. Set both.",
        )


def _distilled(s: DiffusionSection) -> Findings:
    """A model that is made for few steps, trained without an adapter that keeps it
    so."""
    family = _family(s)
    if not family or not family.sample_sigmas:
        return
    if not s.train.assistant:
        yield warning(
            "model.name_or_path",
            f"{family.title} is distilled for {len(family.sample_sigmas)} steps, and training undoes that. "
            f"Train on {next(iter(family.published))} and use the LoRA with this model, or set train.assistant.",
        )


def _memory(s: DiffusionSection) -> Findings:
    model = s.model
    count = model.blocks_to_swap
    blocks = _blocks(s) if count else None
    if blocks is not None and count >= blocks:
        most = blocks - 1 if blocks > FEWEST_SWAPPED else 0  # fewer save no memory
        yield error(
            "model.blocks_to_swap",
            f"{count} is more than the model allows: it has {blocks} blocks, of which one must stay on the "
            f"GPU. Use {f'{most} or fewer' if most else 0}.",
        )
    if 0 < count < FEWEST_SWAPPED:
        yield warning(
            "model.blocks_to_swap",
            f"{count} saves no memory, because two swapped blocks are buffered on "
            f"the GPU. Use at least {FEWEST_SWAPPED}.",
        )
    for switch, keys in (
        ("quantize", "qtype accuracy_recovery_adapter"),
        ("quantize_te", "qtype_te"),
    ):
        for key in keys.split():
            if key in model.model_fields_set and not getattr(model, switch):
                yield warning(
                    f"model.{key}", f"has no effect without '{switch}: true'."
                )
    if model.quantize and not model.accuracy_recovery_adapter:
        if model.qtype in ("int2", "uint2"):
            yield warning(
                "model.qtype",
                f"{model.qtype} without an accuracy recovery adapter leaves weights about 50 % off. Use "
                f"'{model.qtype}|file' to add one.",
            )
    elif model.quantize:
        named = TYPE_IN_A_NAME.findall(model.recovery_name().lower().replace("_", " "))
        types = {QTYPE_SPELLINGS.get(name, name) for name in named}
        if named and model.qtype not in types:
            yield warning(
                "model.accuracy_recovery_adapter",
                f"was made for {named[0]}, and cannot correct the errors of qtype {model.qtype}. Remove it, or "
                f"use one for {model.qtype}.",
            )


def _modulation_table(s: DiffusionSection) -> Findings:
    if s.model.modulation_table is not True:
        return
    try:
        tabulated = (
            family_for(s.model).footprint(s.model.files_folder()).modulation_layers
        )
    except UserError:  # another rule reports the model
        return
    if not tabulated:
        yield warning(
            "model.modulation_table",
            "has no effect: this model has no table of modulation layers.",
        )


def _family(s: DiffusionSection) -> ModelFamily | None:
    try:
        return family_for(s.model)
    except UserError:  # another rule, or the plan, reports the model
        return None


def _blocks(s: DiffusionSection) -> int | None:
    try:
        return family_for(s.model).block_count(Path(s.model.name_or_path).expanduser())
    except UserError:  # another rule reports the model
        return None


def _compile(s: DiffusionSection) -> Findings:
    train = s.train
    network = s.network
    drops = not network.trains_model and (
        network.dropout or network.rank_dropout or network.module_dropout
    )
    recomputes = train.checkpointing_level() != "none"
    if (
        train.compile.enabled
        and train.compile.backend in REDRAWS_DROPOUT
        and drops
        and recomputes
    ):
        yield error(
            "train.compile.backend",
            f"'{train.compile.backend}' samples dropout again in a recomputed block, so gradients would be "
            "wrong. Use inductor or aot_eager, or 'gradient_checkpointing: none'.",
        )
    if (
        train.compile.enabled
        and train.compile.fullgraph
        and network.network_kwargs.constraint
    ):
        yield error(
            "train.compile.fullgraph",
            "cannot be combined with network_kwargs.constraint, which looks at values. Set it to false.",
        )


def _offloads(s: DiffusionSection) -> Findings:
    """Whether it is known what `block_offload` takes with this kind of network."""
    known = [name for name, kind in KINDS.items() if kind.units.offloaded]
    if s.train.checkpointing_level() == "block_offload" and s.network.type not in known:
        yield error(
            "train.gradient_checkpointing",
            f"'block_offload' works with network.type {', '.join(known)}, not "
            f"with {s.network.type}. Use full_offload.",
        )


def _processes(s: DiffusionSection) -> Findings:
    train = s.train
    model = s.model
    processes = read_distributed_env().world_size
    if read_distributed_env().is_single_process:
        yield from below(
            "train",
            train.unused(
                "parallel ddp_timeout",
                " with one process. Start several with torchrun.",
            ),
        )
        return
    if train.fused_backward_pass:
        yield error(
            "train.fused_backward_pass",
            f"updates each parameter before the gradients of {processes} processes are summed. Set it to false.",
        )
    if train.parallel != "fsdp":
        return
    fsdp = "'train.parallel: fsdp'"
    if train.batch_size > 1:  # items of different sizes need several passes
        yield error(
            "train.batch_size",
            f"{train.batch_size}: {fsdp} needs 1. Raise gradient_accumulation instead.",
        )
    if s.micro_batches_per_step % processes:
        yield error(
            "train.gradient_accumulation",
            f"{train.gradient_accumulation}: {fsdp} needs a multiple of the number of processes, {processes}.",
        )
    if s.network.trains_model and train.optimizer not in ELEMENTWISE:
        yield error(
            "train.optimizer",
            f"'{train.optimizer}' may need whole weights, and {fsdp} shards them. Use one of "
            f"{', '.join(ELEMENTWISE)}.",
        )
    if KINDS[s.network.type].needs_base:
        yield error(
            "network.type",
            f"'{s.network.type}' computes with whole weights, and {fsdp} shards them. Use lora, loha or lokr.",
        )
    for key, given, reason in (
        (
            "model.quantize",
            model.quantize,
            "FSDP2 shards parameters, and quantized weights are not parameters",
        ),
        (
            "model.blocks_to_swap",
            model.blocks_to_swap,
            "the blocks are already spread over the GPUs",
        ),
        (
            "model.modulation_table",
            model.modulation_table is True,
            "the table's weights are sharded too",
        ),
        (
            "train.compile",
            train.compile.enabled is True,
            "compiled blocks do not gather their weights",
        ),
    ):
        if given:
            yield error(
                key, f"does not work with {fsdp}: {reason}. Remove one of them."
            )


def _images(s: DiffusionSection) -> Findings:
    family = _family(s)
    for index, dataset in enumerate(s.datasets):
        key, slots = dataset.references
        of_layers = family is not None and family.stacks_layers
        if (
            family
            and len(slots) > family.max_references
            and not (dataset.control_optional or of_layers)
        ):
            yield error(
                f"datasets.{index}.{key}", family.too_many_references(len(slots), key)
            )


ABOVE_LAYERS = {
    **dict.fromkeys(
        ("control_path", "control_suffix", "control_optional"),
        "the image itself is the only control image",
    ),
    **dict.fromkeys(
        sorted(MASKS), "a mask would be that of one image, and the target is several"
    ),
    "background": "layers are trained with their opacity",
    "url": "a stream has no layers",
}
"""Keys of a dataset -> why they do not apply to a model of layers."""


def _layers(s: DiffusionSection) -> Findings:
    """Keys that a model of layers needs or does not take, and those that only such a
    model takes."""
    if (family := _family(s)) is not None:
        yield from (_of_layers if family.stacks_layers else _without_layers)(
            s, family.title
        )


def _sample_entries(s: DiffusionSection) -> Iterator[tuple[str, SampleEntry]]:
    """`sample`, then its samples, by their keys."""
    if s.sample:
        yield "sample", s.sample
        for index, item in enumerate(s.sample.samples):
            yield f"sample.samples.{index}", item


def _without_layers(s: DiffusionSection, title: str) -> Findings:
    for index, dataset in enumerate(s.datasets):
        if "layers_suffix" in dataset.model_fields_set:
            yield error(
                f"datasets.{index}.layers_suffix",
                f"{title} generates no layers. Remove it.",
            )
    for place, entry in _sample_entries(s):
        is_given = isinstance(entry, SampleItem) or "layers" in entry.model_fields_set
        # `--f 1` in musubi-tuner's prompts is one image.
        if is_given and entry.layers not in (None, 1):
            yield warning(
                f"{place}.layers", f"has no effect: {title} generates no layers."
            )
    unused = s.model.model_kwargs.unused(
        "composite_target", f": {title} generates no layers."
    )
    yield from below("model", below("model_kwargs", unused))


def _of_layers(s: DiffusionSection, title: str) -> Findings:
    for index, dataset in enumerate(s.datasets):
        for key in sorted(dataset.model_fields_set & ABOVE_LAYERS.keys()):
            yield error(
                f"datasets.{index}.{key}",
                f"does not apply to {title}: {ABOVE_LAYERS[key]}. Remove it.",
            )
        if not (dataset.layers_suffix or dataset.url):
            yield error(
                f"datasets.{index}",
                f"{title} learns the layers of each image. Give 'layers_suffix: _layer'.",
            )
    for place, item in _sample_entries(s):
        if not isinstance(item, SampleItem):
            continue
        if not item.ctrl_img:
            yield error(
                f"{place}.ctrl_img",
                f"is required: {title} takes an image apart into layers. Give that image.",
            )
    if s.validation and "control_path" in s.validation.model_fields_set:
        yield error(
            "validation.control_path",
            f"does not apply to {title}: it does not edit its image. Remove it.",
        )
    for key in sorted(
        s.model.model_kwargs.model_fields_set
        & {"match_target_res", "control_resolution"}
    ):
        yield warning(
            f"model.model_kwargs.{key}",
            f"has no effect: {title} sees the image in its own size.",
        )


def _unseen_sizes(s: DiffusionSection) -> Findings:
    """Sizes that a model which began with random weights has never seen."""
    folder = ModelFolder(s.model.files_folder())
    sizes = {
        f"datasets.{index}.resolution": list(map(sides_of, dataset.resolution))
        for index, dataset in enumerate(s.datasets)
    }
    for key, sides in {
        **sizes,
        "sample": [(item.width, item.height) for item in s.sample_pictures()],
    }.items():
        if note := folder.size_note(sides):
            yield warning(key, note)


def _first_samples(s: DiffusionSection) -> Findings:
    """Keys about the first set: those that contradict each other, and those that do
    nothing."""
    train = s.train
    sample = s.sample
    wants_one = (
        "skip_first_sample" in train.model_fields_set and not train.skip_first_sample
    )
    asked = [
        (key, words)
        for key, words, is_asked in (
            ("sample.sample_at_first", "sample_at_first: true", sample and sample.sample_at_first),
            ("train.force_first_sample", "force_first_sample: true", train.force_first_sample),
            ("train.skip_first_sample", "skip_first_sample: false", wants_one),
        )
        if is_asked
    ]  # fmt: skip
    denied = ""
    if train.skip_first_sample:
        denied = "skip_first_sample: true"
    elif sample and sample.sample_at_first is False:
        denied = "sample_at_first: false"
    if denied and asked:
        key, words = asked[0]
        yield error(
            key, f"'{words}' and '{denied}' contradict each other. Remove one of them."
        )
    if train.force_first_sample and not sample:
        yield warning(
            "train.force_first_sample", "has no effect without a 'sample' section."
        )


def _samples(s: DiffusionSection) -> Findings:
    """Prompts and sizes that give something else than they say, and steps that the
    model was not made for."""
    family = _family(s)
    for key, entry in _sample_entries(s):
        if key == "sample" and s.sample and not s.sample.samples:
            yield warning(
                key, "has no prompts: no images are generated. Give 'prompts'."
            )
        if isinstance(entry, SampleConfig):
            for name in ("vae_path", "lora"):
                drawn = s.sample_pictures() and not s.train.disable_sampling
                if getattr(entry, name) and not drawn:
                    yield error(
                        f"{key}.{name}",
                        "there are no samples that need it. Remove it, or give prompts.",
                    )
            if entry.vae_path:
                yield from _decoder(s, entry.vae_path)
        if not family:
            continue
        for side in ("width", "height"):
            if message := rounded_side(family, getattr(entry, side)):
                yield warning(f"{key}.{side}", message)
        if family.sample_sigmas:
            for what, message in unlike_distilled(
                family, entry.sample_steps, entry.guidance_scale
            ):
                yield warning(
                    f"{key}.{'sample_steps' if what == 'steps' else 'guidance_scale'}",
                    message,
                )


def _decoder(s: DiffusionSection, path: str) -> Findings:
    """A VAE for samples: a file that is not of this model."""
    key = "sample.vae_path"
    model = s.model.model_copy(
        update={"transformer_path": None, "text_encoder_path": None, "vae_path": path}
    )
    for _, fault in single_file_faults(model, s.model.files_folder()):
        yield error(key, fault)


def _validation(s: DiffusionSection) -> Findings:
    validation = s.validation
    stop = s.stop_when
    steps = _steps(s)
    if validation is None:
        return
    if validation.folder_path is not None and not s.streamed:
        folders = (
            validation.folder_path,
            *(dataset.folder_path for dataset in s.datasets),
        )
        first, *others = (Path(folder).expanduser().resolve() for folder in folders)
        if first in others:
            yield warning(
                "validation.folder_path",
                f"'{validation.folder_path}' is also trained on: a low loss says nothing about new images.",
            )
    counted = steps or not validation.every
    if stop and stop.below is not None and stop.metric.startswith(LOSS) and counted:
        times = 1 + steps // validation.every if validation.every else 1
        if times < stop.smooth:
            yield warning(
                "stop_when.smooth",
                f"will never trigger: it needs {stop.smooth} validations, and only {times} run before the end. "
                "Lower it, or 'validation.every'.",
            )


def _files(s: DiffusionSection) -> Findings:
    save = s.save
    if save.mem_eff_save and not s.network.trains_model:
        yield warning(
            "save.mem_eff_save", "has no effect without 'network: {type: full}'."
        )
    if save.layout == "single_file" and not s.network.trains_model:
        yield warning(
            "save.layout",
            "has no effect without 'network: {type: full}': an adapter is one file anyway.",
        )
    elif save.layout == "single_file" and save.mem_eff_save:
        yield error(
            "save.mem_eff_save",
            "writes model folders. Remove it, or 'layout: single_file'.",
        )
    elif save.layout == "single_file" and (family := _family(s)):
        if fault := unwritten(family):
            yield error("save.layout", f"{fault} Remove it: folders are written.")

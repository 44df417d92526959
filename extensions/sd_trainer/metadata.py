"""Metadata in the header of a network file: our own keys, and those that other programs
display.

`ss_*` are the names of kohya-ss' trainers (sd-scripts; musubi-tuner,
training/trainer_base.py), `modelspec.*` are the keys of the Stability.AI Model Metadata
Standard 1.0.0. No dates and no session ids: two runs of one job, one of them
interrupted, write the same bytes. Never a path, never a secret; `${VAR}` is not
expanded.

`process` calls `job_metadata` once for each run; `writers` put it into the files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

from toolkit.config.sections.dataset import area_of, sides_of
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.scan.captions import trained_caption
from toolkit.data.scan.folder import FolderInfo
from toolkit.data.scan.words import tags_of, without_names
from toolkit.files.redact import redact_json
from toolkit.models.families import family_for
from toolkit.networks.spelling import STORED, Spelling
from toolkit.plan.run_plan import RunPlan
from toolkit.version import NAME, VERSION

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
"""accelerate's names, which kohya-ss' trainers write."""

_OF_THE_USER = ("author", "description", "license", "tags", "usage_hint", "thumbnail")
"""Keys of `meta` that are part of the standard."""

_OF_THE_SCHEDULE = ("lr_scheduler", "lr_warmup_steps", "max_grad_norm")
_OF_THE_NOISE = (
    "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "sigmoid_scale", "discrete_flow_shift",
    "min_timestep", "max_timestep",
)  # fmt: skip


def job_metadata(
    section: DiffusionSection,
    meta: Mapping[str, Any],
    name: str,
    steps: int,
    seed: int,
    optimizer: object,
    plan: RunPlan | None = None,
    spelling: Spelling = STORED,
    folders: Sequence[FolderInfo] = (),
) -> dict[str, str]:
    """The metadata that all files of a run share: the user's own keys first, ours
    after. Empty with `save.no_metadata`. `LoraWriter.metadata_at` adds the step.

    meta: the job's, unexpanded. name, steps: of the run. plan: of the run, for the
    datasets. folders: the images, for the words. spelling: of the files. `alpha` is what the run was trained with;
    `ss_network_alpha` is what the file's matrices are scaled with.
    """
    if section.save.no_metadata:
        return {}
    kohya = _training(section, meta, name, steps, seed, optimizer, spelling)
    if plan:
        kohya |= _datasets(plan, section)
    if words := _words(section, folders, section.as_written(name, "name")):
        kohya["tag_frequency"] = words
    ours: dict[str, Any] = {
        "training_info": {},
        "software": {"name": NAME, "version": VERSION},
        "base_model": _base_model(section),
        **_files_of_others(section),
        "network_type": section.network.type,
        **_size(section),
        "trigger_word": section.as_written(section.trigger_word, "trigger_word"),
    }
    # Scalars are written as Python writes them (`True`, `None`): so do kohya-ss'
    # trainers, and their readers expect it.
    for key, value in kohya.items():
        ours[f"ss_{key}"] = value if isinstance(value, dict | list) else str(value)
    for key, value in _modelspec(section, meta, name, plan).items():
        ours[f"modelspec.{key}"] = value
    # Headers of safetensors hold strings only.
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in redact_json({**meta, **ours}, by_key=True).items()
    }


def _size(section: DiffusionSection) -> dict[str, Any]:
    """The size of the network, by the keys that its kind has."""
    network = section.network
    if network.trains_model:
        return {"full_bf16": section.train.full_bf16}
    without_effect = KINDS[network.type].without_effect
    sizes = {"rank": "linear", "alpha": "linear_alpha"}
    size = {
        name: getattr(network, key)
        for name, key in sizes.items()
        if key not in without_effect
    }
    if network.type == "lokr":
        size["lokr_factor"] = network.factor
    return size


def _files_of_others(section: DiffusionSection) -> dict[str, Any]:
    """The LoRA files that were used in the training, by the key of the job, each with
    the last part of its path."""
    model = section.model

    def named(file: str, *place: str | int) -> str:
        return _last_part(section.as_written(file, *place))

    used: dict[str, Any] = {}
    if model.quantize and model.accuracy_recovery_adapter:
        used["accuracy_recovery_adapter"] = named(
            model.accuracy_recovery_adapter, "model", "accuracy_recovery_adapter"
        )
    if model.base_loras:
        used["base_loras"] = []
        for index, lora in enumerate(model.base_loras):
            file = named(lora.path, "model", "base_loras", index, "path")
            used["base_loras"].append({"file": file, "multiplier": lora.multiplier})
    if assistant := section.train.assistant:
        file = named(assistant.path, "train", "assistant", "path")
        used["assistant"] = {"file": file, "multiplier": assistant.multiplier}
    return used


def network_module(kind: str) -> str:
    """`ss_network_module`: one name for each kind of network, whatever file its class
    is in.

    >>> network_module("lora")
    'toolkit.networks.lora'
    """
    return f"toolkit.networks.{kind}"


def _training(
    section: DiffusionSection,
    meta: Mapping[str, Any],
    name: str,
    steps: int,
    seed: int,
    optimizer: object,
    spelling: Spelling,
) -> dict[str, Any]:
    train = section.train
    model = section.model
    network = section.network
    # `StochasticRoundingOptimizer` wraps the optimizer that is meant.
    kind = type(getattr(optimizer, "inner", optimizer))
    arguments = redact_json(train.optimizer_params, by_key=True)
    comment = meta.get("training_comment", meta.get("comment"))
    of_network: dict[str, Any] = {"network_module": network_module(network.type)}
    if not network.trains_model:
        written_elsewhere = {"type", "linear", "linear_alpha", "dropout"}
        excluded = {*written_elsewhere, "pretrained_lora_path"}  # the last is a path
        is_folded = spelling.folds_alpha and network.type in ("lora", "dora")
        of_network |= {
            "network_dim": network.linear,
            "network_alpha": network.linear if is_folded else network.linear_alpha,
            "network_dropout": network.dropout,
            "network_args": network.model_dump(
                mode="json", exclude_defaults=True, exclude=excluded
            ),
        }
    return {
        "output_name": section.as_written(name, "name"),
        "base_model_version": family_for(model).arch,
        "sd_model_name": _base_model(section),
        "steps": 0,
        "epoch": 0,
        "max_train_steps": steps,
        "seed": seed,
        "learning_rate": train.lr,
        "optimizer": f"{kind.__module__}.{kind.__qualname__}"
        f"({', '.join(f'{key}={value}' for key, value in arguments.items())})",
        **{key: getattr(train, key) for key in (*_OF_THE_SCHEDULE, *_OF_THE_NOISE)},
        "timestep_sampling": train.noise_levels(),
        "loss_type": train.loss_type,
        "gradient_checkpointing": train.gradient_checkpointing,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "mixed_precision": _PRECISIONS[train.dtype],
        "fp8_base": model.quantize and model.qtype in ("float8", "fp8_scaled"),
        **of_network,
        **({} if comment is None else {"training_comment": comment}),
    }


def _written_folders(section: DiffusionSection) -> dict[str, str]:
    return {
        dataset.folder_path: section.as_written(
            dataset.folder_path, "datasets", index, "folder_path"
        )
        for index, dataset in enumerate(section.datasets)
        if dataset.folder_path
    }


def _datasets(plan: RunPlan, section: DiffusionSection) -> dict[str, Any]:
    """The folders; their names by the last part of the path as written; and the uses
    per epoch by bucket size."""
    written = _written_folders(section)
    folders: list[dict[str, Any]] = []
    dirs: dict[str, dict[str, int]] = {}
    uses = Counter[tuple[int, int]]()
    for number, folder in enumerate(plan.datasets, 1):
        name = (
            _last_part(written.get(folder.folder, folder.folder)) or f"dataset {number}"
        )
        references = {str(count): images for count, images in folder.references.items()}
        sizes = [
            [bucket.width, bucket.height, bucket.images] for bucket in folder.buckets
        ]
        folders.append(
            {
                "name": name,
                "num_repeats": folder.repeats,
                "num_images": folder.images,
                "is_reg": folder.is_reg,
                "references": references,
                "buckets": sizes,
            }
        )
        unique = name
        copies = 2
        while unique in dirs:  # a second folder with the same name gets a number
            unique = f"{name} ({copies})"
            copies = copies + 1
        dirs[unique] = {"n_repeats": folder.repeats, "img_count": folder.images}
        for bucket in folder.buckets:
            uses[bucket.width, bucket.height] += bucket.images * folder.repeats
    buckets = [{"resolution": list(size), "count": uses[size]} for size in sorted(uses)]
    return {
        "num_train_items": plan.samples_per_epoch,
        "num_reg_images": sum(
            folder.samples for folder in plan.datasets if folder.is_reg
        ),
        "num_batches_per_epoch": plan.micro_batches_per_epoch,
        "num_epochs": ceil(plan.epochs),
        "datasets": folders,
        "dataset_dirs": dirs,
        "bucket_info": {
            "buckets": {str(number): bucket for number, bucket in enumerate(buckets)}
        },
    }


MOST_TAGS = 100


def _words(
    section: DiffusionSection, folders: Sequence[FolderInfo], name: str
) -> dict[str, dict[str, int]]:
    """The trigger words, with the number of images that have each in a caption; then
    the most frequent tags, where captions are lists of tags. No sentence, and no tag of
    one image alone: a file is given away.

    All words are in one entry, because ComfyUI-Lora-Manager reads the first entry and
    no other; A1111 adds all of them up. The captions of a stream are not known here.
    """
    triggers = {
        dataset.trigger_word: section.as_written(
            dataset.trigger_word, "datasets", index, "trigger_word"
        )
        for index, dataset in enumerate(section.datasets)
        if dataset.trigger_word
    }
    triggers[section.trigger_word] = section.as_written(
        section.trigger_word, "trigger_word"
    )
    texts: dict[str, tuple[str, ...]] = {}
    lists: dict[str, str] = {}
    trained = [folder for folder in folders if not folder.is_reg]
    for folder in trained:
        dataset = section.datasets[folder.dataset]
        default = section.as_written(
            dataset.default_caption or "", "datasets", folder.dataset, "default_caption"
        )
        for sample in folder.samples:
            texts[sample.image] = sample.texts
            is_default = sample.caption == trained_caption("", dataset, sample.rules)
            text = default if is_default else sample.caption
            names = (*triggers, sample.rules.prefix)
            lists[sample.image] = without_names(text, names).lstrip(". ")
    words = {
        written: sum(any(word in text for text in each) for each in texts.values())
        for word, written in triggers.items()
        if word
    }
    tags = tags_of([*lists.values()])
    words |= dict(sorted(tags, key=lambda tag: (-tag[1], tag[0]))[:MOST_TAGS])
    written = _written_folders(section)
    if len(trained) == 1:
        name = _last_part(written.get(trained[0].folder, trained[0].folder)) or name
    return {name: words} if words else {}


def _resolution(section: DiffusionSection, plan: RunPlan | None) -> tuple[int, int]:
    """The largest size of the datasets; the largest bucket where all images are much
    smaller, as none is enlarged."""
    largest = max(
        (size for dataset in section.datasets for size in dataset.resolution),
        key=area_of,
    )
    buckets = [
        (bucket.width, bucket.height)
        for folder in (plan.datasets if plan else ())
        for bucket in folder.buckets
    ]
    trained = max(buckets, key=prod, default=sides_of(largest))
    return trained if 2 * prod(trained) < area_of(largest) else sides_of(largest)


def _modelspec(
    section: DiffusionSection, meta: Mapping[str, Any], name: str, plan: RunPlan | None
) -> dict[str, Any]:
    """The standard's `date` is left out (see above), and `prediction_type`, which has
    no value for flow matching."""
    architecture, implementation = family_for(section.model).modelspec
    network = section.network
    train = section.train
    width, height = _resolution(section, plan)
    trigger = section.as_written(section.trigger_word, "trigger_word")
    bounded = train.min_timestep > 0 or train.max_timestep < 1000
    if not network.trains_model:
        architecture = f"{architecture}/{network.type}"
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture,
        "implementation": implementation,
        "title": meta.get("title", section.as_written(name, "name")),
        "resolution": f"{width}x{height}",
    }
    if bounded:
        spec["timestep_range"] = f"{train.min_timestep:g},{train.max_timestep:g}"
    if trigger:
        spec["trigger_phrase"] = trigger
    for key in _OF_THE_USER:
        if key in meta:
            value = meta[key]
            is_list = isinstance(value, list)
            spec[key] = ", ".join(map(str, value)) if is_list else value
    return spec


def _base_model(section: DiffusionSection) -> str:
    """The model's public name; where it came from a variable, the unexpanded text."""
    model = section.model
    written = section.as_written(model.name_or_path, "model", "name_or_path")
    if written == model.name_or_path or model.file_note:  # of a file its model is named
        return model.public_name()
    return _last_part(written) if model.is_path() else written


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]

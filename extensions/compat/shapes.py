"""Keys of other programs that are not merely another name: what a function makes of
them in our own keys.

`SHAPES` has the function of each section (`names.PLACES`). It gets the keys with a
value of a section, and returns them with ours for those that are `shaped`; names that
are `is` in the table stay, and are renamed afterwards.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from extensions.compat.names import options, rows_of
from extensions.compat.nodes import at
from toolkit.config.reading.base import Entries
from toolkit.config.reading.field_types import gather_slots
from toolkit.config.reading.located import ConfigNode, Diagnostics, show
from toolkit.config.reading.normalise import listed, merge_aliases, place_in
from toolkit.config.sections.model import REPACKED, ModelConfig
from toolkit.config.sections.network import NetworkKwargs
from toolkit.config.sections.train import SCHEDULE_SPELLINGS
from toolkit.errors import UserError, did_you_mean
from toolkit.models import families
from toolkit.optim.optimizer_args import NO_LITERAL
from toolkit.optim.schedules import SCHEDULES, parameters

# ------------------------------------------------------------ the process


def _training(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`log_dir` goes to `logging`, `optimizer` and `training` to `train`, the seed out
    of `train`."""
    if "log_dir" in entries:
        place_in(entries, "logging", "logging_dir", entries.pop("log_dir"), diagnostics)
    if "optimizer" in entries:
        place_in(entries, "train", "optimizer", entries.pop("optimizer"), diagnostics)
    training = entries.pop("training", None)
    if training is not None and isinstance(training.value, dict):
        for key, child in training.value.items():
            place_in(entries, "train", key, child, diagnostics)
    elif training is not None:
        diagnostics.error(training, "is not a mapping of keys and values.")
    train = entries.get("train")
    if train is None or not isinstance(train.value, dict):
        return entries
    rest = dict(train.value)
    if "datasets" in section.model_fields:
        _text_of_all(rest.pop(CACHED[-1], None), entries)
    seed = rest.pop("seed", None)
    if seed is not None and not seed.is_blank:
        entries["training_seed"] = merge_aliases(
            entries.get("training_seed"), seed, diagnostics
        )
    return entries | {"train": replace(train, value=rest)}


def _text_of_all(switch: ConfigNode | None, entries: Entries) -> None:
    """`cache_text_embeddings` of `train` counts for each dataset without its own."""
    datasets = entries.get("datasets")
    if (
        switch is None
        or switch.is_blank
        or not isinstance(getattr(datasets, "value", None), list)
    ):
        return
    assert datasets is not None
    items = [
        replace(item, value={CACHED[-1]: switch} | item.value)
        if isinstance(item.value, dict) and "cache" not in item.value
        else item
        for item in datasets.value
    ]
    entries["datasets"] = replace(datasets, value=items)


def _move_from_model(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """ai-toolkit's keys of compiling, its assistant and the LoRA of its samples go from
    `model` to their sections."""
    model = entries.get("model")
    if model is None or not isinstance(model.value, dict):
        return entries
    rest = dict(model.value)
    switches = [rest.pop(key) for key in ("compile", "block_compile") if key in rest]
    switch = next(
        (node for node in switches if node.value is not False),
        switches[0] if switches else None,
    )
    moved = {key: rest.pop(old, None) for old, key in _FROM_MODEL.items()}
    entries["model"] = replace(model, value=rest)
    train = entries.get("train")
    given = train.child("compile") if train else None
    if switch and train and given and isinstance(given.value, dict):
        enabled = merge_aliases(given.value.get("enabled"), switch, diagnostics)
        given = replace(given, value={**given.value, "enabled": enabled})
        entries["train"] = replace(train, value={**train.value, "compile": given})
    else:
        moved["train", "compile"] = switch
    for (place, key), node in moved.items():
        if node is not None:
            place_in(entries, place, key, node, diagnostics)
    return entries


# ------------------------------------------------------------ datasets, validation


def _images(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`control_path_1..10` become one list."""
    gather_slots(entries, "control_path", diagnostics)
    return entries


def _dataset(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """As `_images`; ai-toolkit's three switches become `cache`."""
    entries = _images(section, entries, diagnostics)
    given = {key: entries.pop(key) for key in CACHED if key in entries}
    on = dict[str, bool]()
    for key, node in given.items():
        try:
            on[key] = _SWITCH.validate_python(node.value)
        except ValidationError:
            diagnostics.error(node, f"{show(node)} is not true or false.")
    if not on:
        return entries
    streams = "url" in entries
    shuffles = "shuffle_tokens" in entries and entries["shuffle_tokens"].value
    latents = on.get("cache_latents_to_disk", not streams)
    text = on.get("cache_text_embeddings", not streams and shuffles in (None, False))
    kept: bool | str = latents and (streams or on.get("cache_latents", True))
    if kept != text:
        kept = "latents" if kept else "text"
    node = list(given.values())[-1]
    entries["cache"] = merge_aliases(
        entries.get("cache"),
        replace(node, value=kept, text=str(kept).lower()),
        diagnostics,
    )
    return entries


CACHED = ("cache_latents", "cache_latents_to_disk", "cache_text_embeddings")
"""ai-toolkit's switches of a dataset; the last is also one of `train`, for all."""

_SWITCH = TypeAdapter(bool)


# ------------------------------------------------------------ model

_FROM_MODEL = {
    "compile_mode": ("train", "compile_mode"),
    "compile_dynamic": ("train", "compile_dynamic"),
    "compile_fullgraph": ("train", "compile_fullgraph"),
    "cache_size_limit": ("train", "compile_cache_size_limit"),
    "assistant_lora_path": ("train", "assistant"),
    "inference_lora_path": ("sample", "lora"),
}
"""ai-toolkit's keys of `model` -> section and key here."""


def _reshape_model(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`base_weights` and `base_weights_multiplier` become `base_loras`.

    musubi-tuner's switches become `quantize`, `quantize_te` and their types;
    `extras_name_or_path` is where all but the transformer is.
    """
    _with_extras(entries, diagnostics)
    _switched(entries, diagnostics)
    _swapped(section, entries, diagnostics)
    weights = entries.pop("base_weights", None)
    multipliers = entries.pop("base_weights_multiplier", None)
    if weights is None or weights.value == []:
        if multipliers is not None and multipliers.data() not in (1, [1], []):
            diagnostics.warn(multipliers, "has no effect without base_weights.")
    elif "base_loras" in entries and entries["base_loras"].value:
        diagnostics.error(
            weights, "'base_loras' is given as well. Remove one of them.", at_key=True
        )
    else:
        entries["base_loras"] = _paired(
            listed(weights), multipliers and listed(multipliers), diagnostics
        )
    return entries


def _swapped(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> None:
    """ai-toolkit's share of the layers that wait in main memory as a number of blocks,
    unless that is given."""
    share = entries.pop("layer_offloading_transformer_percent", None)
    switches = [entries.pop(key, None) for key in ("layer_offloading", "auto_memory")]
    for node in switches:
        if node is not None and not isinstance(node.value, bool):
            diagnostics.error(node, f"{show(node)} is not true or false.")
    switch = next(
        (node for node in switches if node is not None and node.value is True), None
    )
    if (
        switch is None
        or "blocks_to_swap" in entries
        or "blocks_to_swap" not in section.model_fields
    ):
        return
    part = 1.0 if share is None else share.value
    if (
        isinstance(part, bool)
        or not isinstance(part, int | float)
        or not 0 <= part <= 1
    ):
        diagnostics.error(
            share or switch,
            f"{show(share or switch)} is not a share. Write a number from 0 to 1.",
        )
        return
    blocks = _blocks(entries)
    count = min(round(blocks * part), blocks - 1)
    if count < 3:
        return  # two swapped blocks have room on the device: no memory is saved
    entries["blocks_to_swap"] = at(share or switch, count)
    diagnostics.warn(
        switch,
        f"is 'blocks_to_swap: {count}' of {blocks} blocks, which wait in main memory.",
    )


def _blocks(entries: Entries) -> int:
    """Blocks of the model's transformer: of its own folder, else of the published
    one."""
    given = {
        key: entries[key].value for key in ("name_or_path", "arch") if key in entries
    }
    try:
        model = ModelConfig.model_validate({"name_or_path": "", **given})
        return families.family_for(model).block_count(model.files_folder())
    except (ValidationError, UserError):  # other rules say so
        return families.published_families()[0].block_count(Path())


def _with_extras(entries: Entries, diagnostics: Diagnostics) -> None:
    name = entries.get("name_or_path")
    extras = entries.pop("extras_name_or_path", None)
    path = str(name.value) if name is not None else ""
    if extras is None:
        return
    if name and path.lower() in REPACKED:
        entries["name_or_path"] = extras
        diagnostics.warn(
            name,
            f"{path!r} holds the weights for ComfyUI: those of {extras.value} are used.",
        )
    elif name and path.lower().endswith(".safetensors"):
        entries["transformer_path"] = merge_aliases(
            entries.get("transformer_path"), name, diagnostics
        )
        entries["name_or_path"] = extras
    elif extras.value != path:
        diagnostics.error(
            extras,
            f"{show(extras)}: all parts are those of name_or_path, unless that is a file.",
        )


def _paired(
    paths: ConfigNode, multipliers: ConfigNode | None, diagnostics: Diagnostics
) -> ConfigNode:
    """musubi-tuner's two lists as one; files beyond the last multiplier have 1, as in
    musubi-tuner."""
    factors = list(multipliers.value) if multipliers else []
    if multipliers is not None and len(factors) > len(paths.value):
        diagnostics.error(
            multipliers,
            f"{len(factors)} multipliers for {len(paths.value)} of base_weights. Give one for each file.",
        )
    factors += [None] * (len(paths.value) - len(factors))
    entries = [
        replace(
            path, value={"path": path, **({"multiplier": factor} if factor else {})}
        )
        for path, factor in zip(paths.value, factors, strict=False)
    ]
    return replace(paths, value=entries)


def _switched(entries: Entries, diagnostics: Diagnostics) -> None:
    """`fp8_base`, `fp8_scaled` and `fp8_vl` as what they stand for. Alone, `fp8_base`
    is float8 with scales."""
    given = {
        key: entries.pop(key, None) for key in ("fp8_base", "fp8_scaled", "fp8_vl")
    }
    for key, node in list(given.items()):
        if node is not None and not isinstance(node.value, bool):
            diagnostics.error(node, "write true or false.")
            given[key] = None
    base, scaled, text = (
        node if node is not None and node.value else None for node in given.values()
    )
    if scaled and given["fp8_base"] is not None and not base:
        message = "'fp8_scaled: true' and 'fp8_base: false' contradict each other. Leave one of them out."
        diagnostics.error(scaled, message, at_key=True)
    for node, switch, kind, qtype in (
        (scaled or base, "quantize", "qtype", "fp8_scaled" if scaled else "float8"),
        (text, "quantize_te", "qtype_te", "float8"),
    ):
        if node is not None:
            entries[switch] = merge_aliases(
                entries.get(switch), replace(node, value=True), diagnostics
            )
            entries[kind] = merge_aliases(
                entries.get(kind), replace(node, value=qtype), diagnostics
            )


# ------------------------------------------------------------ network

_MODULES = {
    "networks.lora_qwen_image": "lora",
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
    "lycoris.kohya": "lycoris",
}

_IN_KWARGS = ("lokr_full_rank", "factor")
"""Keys of `network` that ai-toolkit's jobs for LyCORIS have in `network_kwargs`."""

_IDLE_ARGUMENTS = ("verbose", "conv_dim", "conv_alpha")
"""Keys of `network_args` that have no effect in musubi-tuner."""


def _reshape_network(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`_IN_KWARGS` come out of `network_kwargs`.

    musubi-tuner's `network_module` becomes the type, its `network_args` the keys they
    name.
    """
    _from_module(entries, diagnostics)
    _from_arguments(section, entries, diagnostics)
    kwargs = entries.get("network_kwargs")
    if kwargs is not None and isinstance(kwargs.value, dict):
        rest = {
            key: child for key, child in kwargs.value.items() if key not in _IN_KWARGS
        }
        for key in kwargs.value.keys() - rest.keys():
            if not kwargs.value[key].is_blank:
                entries[key] = merge_aliases(
                    entries.get(key), kwargs.value[key], diagnostics
                )
        entries["network_kwargs"] = replace(kwargs, value=rest)
    return entries


def _from_module(entries: Entries, diagnostics: Diagnostics) -> None:
    module = entries.pop("network_module", None)
    if module is None:
        return
    kind = _MODULES.get(str(module.value).strip().removeprefix("musubi_tuner."))
    if kind is None:
        diagnostics.error(
            module,
            f"{show(module)} is unknown. {did_you_mean(str(module.value), _MODULES)}",
        )
    else:
        entries["type"] = merge_aliases(
            entries.get("type"), replace(module, value=kind), diagnostics
        )


def _from_arguments(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> None:
    arguments = entries.pop("network_args", None)
    aliases = {
        key: row.field
        for key, row in rows_of(section).items()
        if row.how == "renamed_to"
    }
    known = {name: name for name in section.model_fields} | aliases
    if arguments is None:
        return
    for key, node in read_pairs(arguments, diagnostics).value.items():
        if key in _IDLE_ARGUMENTS:
            diagnostics.warn(node, f"{key!r} has no effect: {options()[key][1].says}.")
        elif key in known:
            entries[known[key]] = merge_aliases(
                entries.get(known[key]), node, diagnostics
            )
        elif key in NetworkKwargs.model_fields:
            argument = replace(node, value={key: node})
            entries["network_kwargs"] = merged(
                entries.get("network_kwargs"), argument, diagnostics
            )
        else:
            diagnostics.error(
                node, f"{key!r} is unknown. {did_you_mean(key, known, list_all=False)}"
            )


# ------------------------------------------------------------ train

_OF_COMPILE = {
    "compile_backend": "backend",
    "compile_mode": "mode",
    "compile_dynamic": "dynamic",
    "compile_fullgraph": "fullgraph",
    "compile_cache_size_limit": "cache_size_limit",
}
"""musubi-tuner's names -> keys of `compile`."""


def _arguments(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`optimizer_args` become `optimizer_params`; those of the schedule, and its options,
    likewise."""
    kind = entries.pop("lr_scheduler_type", None)
    if kind is not None:
        diagnostics.error(
            kind, f"{show(kind)}: {rows_of(section)['lr_scheduler_type'].says}."
        )
        for key in ("lr_scheduler_args", "lr_scheduler_params"):  # of that class
            entries.pop(key, None)
    for key in ("optimizer", "lr_scheduler"):
        if f"{key}_args" in entries:
            arguments = read_pairs(entries.pop(f"{key}_args"), diagnostics)
            entries[f"{key}_params"] = merged(
                entries.get(f"{key}_params"), arguments, diagnostics
            )
    _of_schedule(entries, diagnostics)
    return entries


OF_SCHEDULE = {
    "lr_scheduler_num_cycles": ("num_cycles", 1),
    "lr_scheduler_power": ("power", 1),
    "lr_scheduler_min_lr_ratio": ("min_lr_ratio", None),
    "lr_scheduler_timescale": ("timescale", 0),
}
"""Options of musubi-tuner -> the name in `lr_scheduler_params`, and the value that asks
for nothing."""


def _of_schedule(entries: Entries, diagnostics: Diagnostics) -> None:
    """Options of musubi-tuner go to the parameters of the schedule, which may not use
    them."""
    named = entries.get("lr_scheduler")
    written = "constant" if named is None else str(named.value).strip()
    name = SCHEDULE_SPELLINGS.get(written.lower(), written)
    name = name if name in SCHEDULES else written.lower()
    given: Entries = {}
    for key, (param, idle) in OF_SCHEDULE.items():
        node = entries.pop(key, None)
        value = node and (
            _literal(node.value) if isinstance(node.value, str) else node.value
        )
        if node is None or value == idle:
            continue
        if name in SCHEDULES and param not in parameters(name):
            diagnostics.warn(node, f"has no effect: lr_scheduler {name} ignores it.")
        else:
            given[param] = replace(node, value=value)
    if given:
        params = replace(next(iter(given.values())), value=given)
        entries["lr_scheduler_params"] = merged(
            entries.get("lr_scheduler_params"), params, diagnostics
        )


def _memory_and_compile(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """musubi-tuner's flat keys of `gradient_checkpointing` and of the section
    `compile`."""
    _offloaded(entries, diagnostics)
    for old, new in _OF_COMPILE.items():
        flat = entries.pop(old, None)
        if flat is not None:
            node = entries.get("compile", replace(flat, value={}))
            inside = node.value if isinstance(node.value, dict) else {"enabled": node}
            inside = {**inside, new: merge_aliases(inside.get(new), flat, diagnostics)}
            entries["compile"] = replace(node, value=inside)
    return entries


def _offloaded(entries: Entries, diagnostics: Diagnostics) -> None:
    """musubi-tuner's switch beside `gradient_checkpointing: true` as the level it
    stands for."""
    node = entries.pop("gradient_checkpointing_cpu_offload", None)
    if node is None or node.value is False:
        return
    given = entries.get("gradient_checkpointing")
    if node.value is not True:
        diagnostics.error(node, "write true or false.")
    elif given is not None and given.value is not True:
        entries["gradient_checkpointing"] = merge_aliases(
            given, replace(node, value="full_offload"), diagnostics
        )
    else:
        entries["gradient_checkpointing"] = replace(node, value="full_offload")


# ------------------------------------------------------------ sample, save, logging


def _sample(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`sample_prompts` are `prompts`."""
    theirs = entries.pop("sample_prompts", None)
    if theirs is None:
        return entries
    ours = entries.pop("prompts", None)
    if ours is None:
        entries["prompts"] = theirs
    else:
        diagnostics.error(
            ours, "'sample_prompts' is given as well. Remove one of them.", at_key=True
        )
    return entries


def _save(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """Tells that `save_last_n_steps` counts files where it looks like a distance in
    steps, as musubi-tuner's is."""
    last = entries.get("save_last_n_steps")
    if last is not None and isinstance(last.value, int) and last.value >= 100:
        diagnostics.warn(
            last,
            f"{last.value} files are kept: it is their number, not a distance in steps.",
        )
    return entries


def _logging(
    section: type[BaseModel], entries: Entries, diagnostics: Diagnostics
) -> Entries:
    """`use_wandb` becomes `log_with`."""
    use = entries.pop("use_wandb", None)
    if use is None:
        return entries
    wanted = {"true": True, "false": False}.get(str(use.value).lower())
    given = entries.get("log_with")
    named = [str(name.value).lower() for name in listed(given).value] if given else []
    if wanted is None:
        diagnostics.error(use, f"{show(use)} is neither true nor false.")
    elif given is None or (given.from_defaults and not use.from_defaults):
        folder = entries.get("logging_dir")
        has_folder = folder is not None and folder.value not in (0, False)
        names = {True: "all" if has_folder else "wandb", False: "auto"}
        entries["log_with"] = replace(use, value=names[wanted])
    elif (
        wanted != any(name in ("wandb", "all") for name in named)
        and use.from_defaults == given.from_defaults
    ):
        diagnostics.error(
            use,
            f"{show(use)} contradicts 'log_with: {', '.join(named)}'. Keep log_with.",
            at_key=True,
        )
    return entries


# ------------------------------------------------------------ texts `name=value`

_BETWEEN = re.compile(r"\s+(?=[A-Za-z_]\w*\s*=)")


def read_pairs(node: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """`["a=1", "b=[2, 3]"]`, or the same in one text, as a mapping; numbers and lists
    of texts are read."""
    if isinstance(node.value, dict):
        return node
    items = node.value
    if not isinstance(items, list):
        texts = _BETWEEN.split(str(items).strip())
        items = [replace(node, value=text) for text in texts]
    pairs = {}
    for item in items:
        key, equals, value = str(item.value).partition("=")
        if not equals or isinstance(item.value, dict | list):
            diagnostics.error(item, f"{show(item)} is not of the form name=value.")
            continue
        name = key.strip()
        if value.strip().startswith("[") and not _is_literal(value.strip()):
            remedy = "In a shell, put the whole of name=value in double quotes."
            diagnostics.error(
                item,
                f"{show(item)} holds a list whose texts are not in quotes. {remedy}",
            )
            continue
        pairs[name] = _value(value.strip(), replace(item, path=(*item.path, name)))
    return replace(node, value=pairs)


def _value(text: str, item: ConfigNode) -> ConfigNode:
    value = _literal(text)
    if isinstance(value, list):
        value = [replace(item, value=part, text=str(part)) for part in value]
    return replace(item, value=value, text=text)


def _literal(text: str) -> Any:
    """A number or a list of texts where the text spells one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.startswith("[") and _is_literal(text):
        parts = ast.literal_eval(text)
        if all(isinstance(part, str) for part in parts):
            return parts
    return text


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except NO_LITERAL:
        return False
    return True


def merged(
    given: ConfigNode | None, more: ConfigNode, diagnostics: Diagnostics
) -> ConfigNode:
    """One mapping of two; a name that both have with unlike values is an error."""
    if given is None or not isinstance(given.value, dict):
        return given or more
    both = {
        key: merge_aliases(given.value.get(key), child, diagnostics)
        for key, child in more.value.items()
    }
    return replace(given, value={**given.value, **both})


SHAPES: dict[str, Callable[[type[BaseModel], Entries, Diagnostics], Entries]] = {
    "TrainingSection": _training,
    "ModelSection": _move_from_model,
    "DatasetConfig": _dataset,
    "ValidationConfig": _images,
    "ModelConfig": _reshape_model,
    "NetworkConfig": _reshape_network,
    "OptimizerConfig": _arguments,
    "TrainConfig": _memory_and_compile,
    "SampleConfig": _sample,
    "SaveConfig": _save,
    "LoggingConfig": _logging,
}
"""Class of a section -> what makes our keys of those of other programs."""

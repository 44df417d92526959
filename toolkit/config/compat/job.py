"""A training process as other programs write it: keys that belong into one of its sections here, or out of one."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.base import Entries, ForeignNames, refuse
from toolkit.config.compat.model import TO_TRAIN
from toolkit.config.located import Diagnostics
from toolkit.config.normalise import merge_aliases, place_in

_FROM_TRAIN = {"seed": "training_seed", "validation": "validation", "stop_when": "stop_when"}
"""Keys that are also taken inside `train` -> the process's own key."""


def _log_dir(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`log_dir` goes to `logging`."""
    if "log_dir" in entries:
        place_in(entries, "logging", "logging_dir", entries.pop("log_dir"), diagnostics)
    return entries


def _training(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`optimizer` and `training` go to `train`, and keys of `train` that are the process's own to the process."""
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
    for key, field in _FROM_TRAIN.items():
        if field not in section.model_fields:
            continue
        node = rest.pop(key, None)
        if node is not None and not node.is_blank:
            entries[field] = merge_aliases(entries.get(field), node, diagnostics)
    entries["train"] = replace(train, value=rest)
    return entries


def _move_compile(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """ai-toolkit's keys of compiling go from `model` to `train`."""
    model = entries.get("model")
    if model is None or not isinstance(model.value, dict):
        return entries
    rest = dict(model.value)
    switches = [rest.pop(key) for key in ("compile", "block_compile") if key in rest]
    switch = next((node for node in switches if node.value is not False), switches[0] if switches else None)
    moved = {new: rest.pop(old, None) for old, new in TO_TRAIN.items()}
    entries["model"] = replace(model, value=rest)
    train = entries.get("train")
    given = train.child("compile") if train is not None and isinstance(train.value, dict) else None
    if switch is not None and train is not None and given is not None and isinstance(given.value, dict):
        given = replace(
            given, value={**given.value, "enabled": merge_aliases(given.value.get("enabled"), switch, diagnostics)}
        )
        entries["train"] = replace(train, value={**train.value, "compile": given})
    else:
        moved["compile"] = switch
    for key, node in moved.items():
        if node is not None:
            place_in(entries, "train", key, node, diagnostics)
    return entries


RUN = ForeignNames(
    shapes={"log_dir": "logging.logging_dir"},
    no_effect={
        **dict.fromkeys(("performance_log_every", "torch_profiler"), "metrics.jsonl has the times of every step"),
        "sqlite_db_path": "metrics.jsonl and events.jsonl are in the run's folder",
    },
    reshapes=(_log_dir,),
)

TRAINING = ForeignNames(
    shapes={
        "optimizer": "train.optimizer, train.lr and train.optimizer_params, as {name, lr, ...}",
        "training": "train, as {steps, epochs}",
    },
    reshapes=(_training,),
)

EVALUATION = ForeignNames(aliases={"stop_condition": "stop_when"})

MODEL_AND_NETWORK = ForeignNames(
    unsupported=refuse("guidance embedding decorator adapter slider"), reshapes=(_move_compile,)
)

"""A training process as other programs write it: keys that belong into one of its sections here, or out of one."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.compat.foreign import Entries, ForeignNames, refuse
from toolkit.config.compat.model import TO_TRAIN
from toolkit.config.normalise import place_in, prefer
from toolkit.config.report import Report

_FROM_TRAIN = {"seed": "training_seed", "validation": "validation", "stop_when": "stop_when"}
"""Keys that are also taken inside `train` -> the process's own key."""


def _reshape(section: type[BaseModel], entries: Entries, report: Report) -> Entries:
    """`optimizer`, `training` and keys of `train` that are the process's own go where they belong."""
    for key, to in (("optimizer", ("train", "optimizer")), ("log_dir", ("logging", "logging_dir"))):
        if key in entries:
            place_in(entries, *to, entries.pop(key), report)
    training = entries.pop("training", None)
    if training is not None and isinstance(training.value, dict):
        for key, child in training.value.items():
            place_in(entries, "train", key, child, report)
    elif training is not None:
        report.mistake(training, "is not a mapping of keys and values.")
    _move_compile(entries, report)
    train = entries.get("train")
    if train is None or not isinstance(train.value, dict):
        return entries
    rest = dict(train.value)
    for key, field in _FROM_TRAIN.items():
        node = rest.pop(key, None)
        if node is not None and not node.is_blank:
            entries[field] = prefer(entries.get(field), node, report)
    entries["train"] = replace(train, value=rest)
    return entries


def _move_compile(entries: Entries, report: Report) -> None:
    """ai-toolkit's keys of compiling go from `model` to `train`."""
    model = entries.get("model")
    if model is None or not isinstance(model.value, dict):
        return
    rest = dict(model.value)
    switches = [rest.pop(key) for key in ("compile", "block_compile") if key in rest]
    switch = next((node for node in switches if node.value is not False), None)
    moved = {new: rest.pop(old, None) for old, new in TO_TRAIN.items()}
    entries["model"] = replace(model, value=rest)
    train = entries.get("train")
    given = train.child("compile") if train is not None and isinstance(train.value, dict) else None
    if switch is not None and given is not None and isinstance(given.value, dict):
        given = replace(given, value={**given.value, "enabled": prefer(given.value.get("enabled"), switch, report)})
        entries["train"] = replace(train, value={**train.value, "compile": given})
    else:
        moved["compile"] = switch
    for key, node in moved.items():
        if node is not None:
            place_in(entries, "train", key, node, report)


JOB = ForeignNames(
    aliases={"stop_condition": "stop_when"},
    shapes={
        "optimizer": "train.optimizer, train.lr and train.optimizer_params, as {name, lr, ...}",
        "training": "train, as {steps, epochs}",
        "log_dir": "logging.logging_dir",
    },
    no_effect={
        **dict.fromkeys(("performance_log_every", "torch_profiler"), "metrics.jsonl has the times of every step"),
        "sqlite_db_path": "the web page reads the run's folder",
    },
    unsupported=refuse("guidance embedding decorator adapter slider"),
    reshape=_reshape,
)

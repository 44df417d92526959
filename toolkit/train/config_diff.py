"""The changes of a job since its checkpoint was written, and whether a resume allows
them.

Pure; imports no torch. Keys are dotted paths of the typed section, as in
`datasets[0].folder_path`. Its section says what a change of each key means
(`StrictModel.on_resume`).

Called by `resumption`, and by `jobs.process.trainer`, which compares the ranks of a
run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.base import ALL_OTHERS, ChangeKind, StrictModel
from toolkit.config.reading.normalise import item_annotation, section_model


@dataclass(frozen=True)
class ConfigChange:
    """One key with its old and new value.

    >>> print(ConfigChange("train.lr", 0.0001, 0.0002, "changes the result"))
    train.lr: 0.0001 -> 0.0002
    """

    key: str
    old: Any
    new: Any
    kind: ChangeKind

    @property
    def has_left(self) -> bool:
        """Whether this version of the program has no such key."""
        return _place(self.key) in LEFT

    def __str__(self) -> str:
        new = "no such key" if self.has_left else repr(self.new)
        return f"{self.key}: {self.old!r} -> {new}"


REVISION = 3
"""Recorded with every checkpoint; raised when the same job computes something else.
Other states are refused."""


ANY: Any = object()

LEFT: Mapping[str, Any] = {
    "datasets[].cache_latents": ANY,
    "datasets[].cache_latents_to_disk": ANY,
    "datasets[].cache_text_embeddings": ANY,
    "datasets[].caption_from_name": False,
    "datasets[].flip_y": False,
    "datasets[].layers_path": None,
    "datasets[].loss_multiplier": 1.0,
    "datasets[].path_map": ANY,
    "datasets[].repeats_from_names": ANY,
    "datasets[].skip_unreadable": ANY,
    "first_sample": ANY,
    "model.int8_matmul": ANY,
    "network.network_kwargs.rs_lora": False,
    "network.network_kwargs.train_on_input": False,
    "train.cache_text_embeddings": ANY,
    "train.ema_config.power_averages": ANY,
    "train.ema_config.use_num_updates": True,
    "train.huber_c": 0.1,
    "train.huber_scale": 1.0,
    "train.huber_schedule": "constant",
    "train.linear_timesteps2": False,
    "train.lr_groups": [],
    "train.lr_scheduler_min_lr_ratio": None,
    "train.lr_scheduler_num_cycles": 1,
    "train.lr_scheduler_power": 1.0,
    "train.lr_scheduler_timescale": 0,
    "train.memory_account": ANY,
    "train.noise_levels_per_sample": 1,
    "train.reg_weight": 1.0,
    "train.step_limit": 0,
}
"""Keys that are recorded and are gone -> the value without which nothing changes; ANY
where nothing depends on it, or their section warns of it."""


def _has_left(key: str, value: Any) -> bool:
    """Whether a recorded key is gone, and the same is computed without it."""
    place = f"{_place(key)}."
    names = (name for name in LEFT if place.startswith(f"{name}."))
    return any(LEFT[name] in (ANY, value) for name in names)


def _place(key: str) -> str:
    """A key without the numbers of entries, such as `datasets[].flip_x`; those of
    `optimizers` are those of `train`."""
    return re.sub(r"\[\d+\]", "[]", re.sub(r"^optimizers\.[^.]+", "train", key))


def diff_configs(
    section: type[BaseModel],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> list[ConfigChange]:
    """Every key whose value differs, sorted.

    section: its class. old, new: the section as plain data (`model_dump(mode="json")`).
    given: the part of `new` that the job sets itself. A key that `old` lacks, because
    the program did not have it yet, counts only where the job sets it.
    """
    before = dict(flatten_config(old))
    after = dict(flatten_config(new))
    before = {key: old for key, old in before.items() if not _has_left(key, old)}
    if given is not None:
        known = before.keys() | dict(flatten_config(given)).keys()
        after = {key: value for key, value in after.items() if key in known}
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old_value = before.get(key)
        new_value = after.get(key)
        if old_value != new_value:
            kind = _kind(section, key, new)
            changes.append(ConfigChange(key, old_value, new_value, kind))
    return changes


def _kind(section: type[BaseModel] | None, key: str, values: Any) -> ChangeKind:
    """The rule of the innermost section on the path of the key that has one."""
    kind: ChangeKind = "changes the result"
    for part in key.split("."):
        if section is None:
            break
        name = part.partition("[")[0]
        rules = section.on_resume if issubclass(section, StrictModel) else {}
        rule = rules.get(name, rules.get(ALL_OTHERS, kind))
        kind = rule(values or {}) if callable(rule) else rule
        values = values.get(name) if isinstance(values, Mapping) else None
        if index := part.removeprefix(name).strip("[]"):
            values = (
                values[int(index)]
                if isinstance(values, list) and int(index) < len(values)
                else None
            )
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        section = section_model(
            item_annotation(annotation) if "[" in part else annotation
        )
    return kind


def flatten_config(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of plain data with their values.

    Lists are entered only where they have sections in them. An empty section is a
    value; a tuple becomes a list.

    >>> job = {"train": {"lr": 0.5, "betas": (0.9, 0.99)}, "datasets": [{"repeats": 2}]}
    >>> for key, value in flatten_config(job):
    ...     print(key, value)
    train.lr 0.5
    train.betas [0.9, 0.99]
    datasets[0].repeats 2
    """
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from flatten_config(child, f"{path}.{key}" if path else str(key))
    elif _has_sections(value):
        for index, child in enumerate(value):
            yield from flatten_config(child, f"{path}[{index}]")
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _has_sections(value: Any) -> bool:
    """Whether a value is a list that has sections in it."""
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(child, Mapping) for child in value)

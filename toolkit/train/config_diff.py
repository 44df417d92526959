"""What changed in the job or the program since a checkpoint was written, and whether a resume allows it.

Pure; imports no torch. Keys are dotted paths of the typed section, as in `datasets[0].folder_path`. Its section says
what a change of each key means (`StrictModel.on_resume`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from toolkit.config.base import ALL_OTHERS, ChangeKind, StrictModel
from toolkit.config.normalise import item_annotation, section_model


@dataclass(frozen=True)
class ConfigChange:
    """One key with its old and new value."""

    key: str
    old: Any
    new: Any
    kind: ChangeKind
    of_program: bool = False
    """Whether the program computes it differently, not the job."""

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


REVISION = 3
"""Recorded with every checkpoint; raised when the same job computes something else. `corrections` says what."""


def corrections(revision: int, section: Mapping[str, Any], has_references: bool = False) -> list[ConfigChange]:
    """What this program computes differently for a section (plain data) than the one that recorded `revision`.

    has_references: whether any image has control images.
    """
    train, losses = section["train"], (section.get("autoencoder") or section).get("losses") or {}
    schedule = train.get("lr_scheduler_params", {})
    found: list[tuple[str, str, str]] = []
    if revision < 2:
        if has_references and "network" in section:  # a text encoder that sees images is of a diffusion trainer
            what = "image positions in the text encoder"
            found.append((what, "one-dimensional, which the model was not made with", "three-dimensional"))
        if train.get("timestep_type") == "weighted":
            what = "loss weights of timestep_type weighted"
            found.append((what, "52 of the 1000 published ones, interpolated", "all 1000"))
        if train.get("linear_timesteps") or train.get("linear_timesteps2"):
            what = "noise levels of linear_timesteps"
            found.append((what, "drawn by timestep_type", "drawn evenly, as in ai-toolkit"))
        if train.get("lr_scheduler") == "linear" and "end_factor" in schedule and "start_factor" not in schedule:
            what = "lr_scheduler linear with end_factor alone"
            found.append((what, "from the full rate", "from a third of it, as torch's LinearLR"))
        if "T_0" in schedule:
            what = "lr_scheduler_params.T_0"
            found.append((what, "restarts after so many steps", "has no effect, as in ai-toolkit"))
    if revision < 3 and losses.get("contrast"):
        what = "losses.contrast of images with a nearly constant channel"
        now = "as a ratio to a standard deviation of 0.1; other images as before"
        found.append((what, "as a ratio to almost nothing", now))
    return [ConfigChange(what, old, new, "changes the result", of_program=True) for what, old, new in found]


FORMER_VALUES = {"losses.l1": 0.0}
"""End of a key -> what a job computed before there was such a key, where its default is something else."""


MODELS_OWN = {"sample.guidance_scale": 4.0, "sample.sample_steps": 20}
"""End of a key -> what was recorded before its default became the model's own, None: the same, of the models there
were."""


REMOVED = ("train.ema_config.power_averages",)
"""Keys that are recorded and are gone, without which the same is computed."""


def diff_configs(
    section: type[BaseModel], old: Mapping[str, Any], new: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> list[ConfigChange]:
    """Every key whose value differs, sorted.

    section: its class. old, new: the section as plain data (`model_dump(mode="json")`). given: the part of `new` that
    the job sets itself. A key that `old` lacks, because the program did not have it yet, counts only where the job sets
    it, or where its default changes what was computed (`FORMER_VALUES`).
    """
    before, after = dict(flatten_config(old)), dict(flatten_config(new))
    former = {key: value for key in after for end, value in FORMER_VALUES.items() if f".{key}".endswith(f".{end}")}
    before = former | {key: value for key, value in before.items() if key not in REMOVED}
    for end, own in MODELS_OWN.items():
        same = (key for key, value in before.items() if key.endswith(end) and value == own)
        before |= {key: None for key in same if after.get(key, own) is None}
    if given is not None:
        explicit = dict(flatten_config(given))
        after = {key: value for key, value in after.items() if key in before or key in explicit}
    return [
        ConfigChange(key, before.get(key), after.get(key), _kind(section, key, new))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


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
            values = values[int(index)] if isinstance(values, list) and int(index) < len(values) else None
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        section = section_model(item_annotation(annotation) if "[" in part else annotation)
    return kind


def flatten_config(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of plain data with their values."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from flatten_config(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(child, Mapping) for child in value):
        for index, child in enumerate(value):
            yield from flatten_config(child, f"{path}[{index}]")
    else:
        yield path, list(value) if isinstance(value, tuple) else value

"""What to change so that a job takes less memory, with the estimated saving. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import gcd, prod
from typing import Any

from extensions.from_scratch.autoencoder_config import WIDTHS
from extensions.from_scratch.vae_config import VaeTrainerConfig
from extensions.from_scratch.vae_memory_plan import Work, plan_memory
from toolkit.config.dataset import area_of
from toolkit.memory.estimate import Machine, MemoryEstimate
from toolkit.memory.oom_hints import (
    MIN_SAVING,
    MemorySaving,
    advice_line,
    applied,
    smaller_resolution,
)

LEAST_WIDTH = 8
"""Channels below which no smaller autoencoder is suggested."""


def suggestions(section: VaeTrainerConfig) -> Iterator[MemorySaving]:
    """What a section may still change, what alters the result last."""
    train, losses, gan = section.train, section.losses, section.discriminator
    if train.batch_size > 1:
        accumulation = train.batch_size * train.gradient_accumulation
        words = f"train.batch_size: 1 with gradient_accumulation: {accumulation}"
        values = (("train", "batch_size", 1), ("train", "gradient_accumulation", accumulation))
        yield MemorySaving(words, values)
    if train.dtype == "float32":
        yield MemorySaving("train.dtype: bf16", (("train", "dtype", "bfloat16"),))
    if train.ema_config.use_ema:
        ema = train.ema_config.model_copy(update={"use_ema": False})
        yield MemorySaving("train.ema_config.use_ema: false", (("train", "ema_config", ema),))
    if losses.lpips:
        yield MemorySaving("losses.lpips: 0", (("losses", "lpips", 0.0),))
    largest = max((size for dataset in section.datasets for size in dataset.resolution), key=area_of)
    if smaller := smaller_resolution(largest):
        area = area_of(smaller) / area_of(largest)
        yield MemorySaving(f"datasets[].resolution: {smaller}", area=area)
    if section.model.uses_spade():
        yield MemorySaving("model.spade: false", (("model", "spade", False),))
    if gan:
        words = "without the section discriminator"
        yield MemorySaving(words, (("", "discriminator", None),))
    if not section.model.name_or_path and (change := _smaller_autoencoder(section)):
        yield change


def _smaller_autoencoder(section: VaeTrainerConfig) -> MemorySaving | None:
    """Half of the channels."""
    model, given = section.model, {}
    for key in WIDTHS[model.class_name]:
        if key not in model.config:
            return None
        value = model.config[key]
        given[key] = [width // 2 for width in value] if isinstance(value, list | tuple) else value // 2
    widths = [width for value in given.values() for width in (value if isinstance(value, list) else [value])]
    if min(widths) < LEAST_WIDTH:
        return None
    if groups := _groups(model.config, widths):
        given["norm_num_groups"] = groups
    words = ", ".join(f"{key}: {value}" for key, value in given.items())
    return MemorySaving(f"model.config: {{{words}}}", (("model", "config", model.config | given),))


def _groups(config: dict[str, Any], widths: Sequence[int]) -> int | None:
    """`norm_num_groups` for these widths, where it has to be another one."""
    groups = config.get("norm_num_groups")
    fitting = gcd(*widths, groups) if groups else None
    return fitting if fitting != groups else None


def memory_advice(section: VaeTrainerConfig, machine: Machine) -> str:
    """One sentence of the changes that save memory each by itself, the largest saving first."""
    work = Work.of_settings(section)
    peak = plan_memory(section, work, machine).peak_bytes
    found = [(peak - _peak_with(section, work, machine, [change]), change.text) for change in suggestions(section)]
    named = [text for saved, text in sorted(found, reverse=True) if saved > MIN_SAVING * peak]
    return f"To save memory, in order of effect: {'; '.join(named)}." if named else ""


def advice(section: VaeTrainerConfig, work: Work, machine: Machine, plan: MemoryEstimate) -> str | None:
    """As `advice_line`."""
    return advice_line(plan, machine, suggestions(section), partial(_peak_with, section, work, machine))


def _peak_with(section: VaeTrainerConfig, work: Work, machine: Machine, chosen: Sequence[MemorySaving]) -> int:
    """The peak in bytes with these changes."""
    changed = applied(section, chosen)
    images = min(work.images, Work.of_settings(changed).images)
    less = replace(work, images=images, pixels=work.pixels * prod(change.area for change in chosen))
    return plan_memory(changed, less, machine).peak_bytes

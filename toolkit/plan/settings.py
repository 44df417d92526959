"""The lines of a plan that name the settings of the training, its samples and its captions. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten

from toolkit.config.sections import DiffusionSection
from toolkit.config.train import TrainConfig
from toolkit.models.interface import ModelFacts

MOST_PROMPTS = 3
"""Prompts that the line of the samples quotes."""


def settings_lines(section: DiffusionSection, family: ModelFacts) -> Iterator[str]:
    """Optimizer and schedule, noise levels, caption dropout, samples."""
    yield _optimizer(section.train)
    yield f"noise levels: {section.train.timestep_type}"
    yield from _dropout(section)
    yield _samples(section, family)


def _optimizer(train: TrainConfig) -> str:
    params = ", ".join(f"{name} {value}" for name, value in train.optimizer_params.items())
    schedule = [train.lr_scheduler + _in_brackets(train.lr_scheduler_params)]
    if warmup := train.lr_warmup_steps:
        schedule.append(f"warm-up {warmup:.0%} of the steps" if warmup < 1 else f"warm-up {warmup:,.0f} steps")
    groups = [f"{group.label()} {group.rate(train.lr):g}" for group in train.lr_groups]
    rates = f"learning rate {train.lr:g}" + (f" ({', '.join(groups)})" if groups else "")
    clipping = f"clipping {train.max_grad_norm:g}" if train.max_grad_norm else "no clipping"
    return f"optimizer: {train.optimizer}{f' ({params})' if params else ''}, {rates}, {', '.join(schedule)}; {clipping}"


def _in_brackets(params: dict[str, object]) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in params.items())
    return f" ({listed})" if listed else ""


def _dropout(section: DiffusionSection) -> Iterator[str]:
    """One rate for all datasets, or each with its place."""
    rates = {dataset.place: dataset.caption_dropout_rate for dataset in section.datasets}
    if not any(rates.values()):
        return
    if len(set(rates.values())) == 1:
        yield f"caption dropout: {100 * next(iter(rates.values())):g} % of the uses train without caption"
    else:
        yield "caption dropout: " + ", ".join(
            f"{100 * rate:g} % of the uses of {place}" for place, rate in rates.items()
        )


def _samples(section: DiffusionSection, family: ModelFacts) -> str:
    pictures = section.sample_pictures()
    if section.train.disable_sampling or not pictures or section.sample is None:
        return "samples: none"
    steps, epochs = section.sample.interval()
    every = [f"every {steps:,} steps"] if steps else [f"every {epochs:,} epochs"] if epochs else []
    when = ["before step 1"] * section.draws_first() + every + ["at the end"]
    first = pictures[0]
    how = f"{first.sample_steps or family.sample_steps} steps at guidance {_guidance(first.guidance_scale, family):g}"
    quoted = ", ".join(repr(shorten(picture.prompt, 40, placeholder=" ...")) for picture in pictures[:MOST_PROMPTS])
    more = f" and {len(pictures) - MOST_PROMPTS} more" if len(pictures) > MOST_PROMPTS else ""
    return f"samples: {', '.join(when)}; {len(pictures)} of {how}: {quoted}{more}"


def _guidance(given: float | None, family: ModelFacts) -> float:
    return family.guidance if given is None else given

"""What 0, an empty value and null mean, for every key where it is decided.

Each entry of ZERO is read by the loader; where 0 is a value, the section is asked what
it then does. Deeper down, that clipping, dropping out or waiting is then really off is
tested where it is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from docs.config_page import distinct_sections
from extensions.sd_trainer.config import SdTrainerConfig
from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.foreign import foreign_keys
from toolkit.data.streams.counts import optimizer_steps
from toolkit.optim.schedules import build_schedule, in_steps


class Zero(NamedTuple):
    """A job with 0 at a key, and what comes of it."""

    lines: str
    error: str = ""
    """Beginning of the one error that is found."""

    warning: str = ""
    """End of the one warning; without one there is none."""

    means: Callable[[SdTrainerConfig], Any] = lambda section: True
    """Whether the section does what 0 means."""


def _rate(section: SdTrainerConfig, step: int, steps: int = 10) -> float:
    train = section.train
    return build_schedule(
        train.lr_scheduler, steps, train.lr_warmup_steps, {}, decay=train.lr_decay_steps
    )(step)


def _holds(key: str, value: Any = 0) -> Callable[[SdTrainerConfig], bool]:
    return lambda section: attrgetter(key)(section) == value


ZERO: dict[str, Zero] = {
    "train.steps": Zero(
        "train: {steps: 0}",
        error="train.steps: 0 optimizer steps. Set steps or epochs to a value a",
    ),
    "train.steps, with epochs": Zero(
        "train: {steps: 0, epochs: 2}", means=lambda s: steps_of(s) == 20
    ),
    "train.epochs": Zero(
        "train: {epochs: 0, steps: 7}", means=lambda s: steps_of(s) == 7
    ),
    "training_seed": Zero("training_seed: 0", means=_holds("training_seed")),
    "train.seed": Zero("train: {seed: 0}", means=_holds("training_seed")),
    "gradient_accumulation": Zero(
        "train: {gradient_accumulation: 0}",
        error="train.gradient_accumulation: 0 is out of range: must be >= 1.",
    ),
    "gradient_accumulation_steps": Zero(
        "train: {gradient_accumulation_steps: 0}",
        error="train.gradient_accumulation_steps: 0 is out of range: must",
    ),
    "batch_size": Zero(
        "train: {batch_size: 0}",
        error="train.batch_size: 0 is out of range: must be >= 1.",
    ),
    "network.linear": Zero(
        "network: {linear: 0}", error="network.linear: 0 is out of range: must be >= 1."
    ),
    "network_dim": Zero(
        "network: {network_dim: 0}",
        error="network.network_dim: 0 is out of range: must be >= 1.",
    ),
    "num_workers": Zero(
        "datasets: [{folder_path: photos, num_workers: 0}]",
        means=lambda s: s.datasets[0].num_workers == 0,
    ),
    "max_grad_norm": Zero(
        "train: {max_grad_norm: 0}", means=_holds("train.max_grad_norm")
    ),
    "lr_warmup_steps": Zero(
        "train: {lr_warmup_steps: 0, lr_scheduler: linear}",
        means=lambda s: _rate(s, 0) == 1,
    ),
    "lr_warmup_steps below 1": Zero(
        "train: {lr_warmup_steps: 0.1, lr_scheduler: constant_with_warmup}",
        means=lambda s: (
            in_steps(s.train.lr_warmup_steps, 1600) == 160
            and _rate(s, 0) == 0
            and _rate(s, 1) == 1
        ),
    ),
    "lr_decay_steps": Zero(
        "train: {lr_decay_steps: 0, lr_scheduler: warmup_stable_decay}",
        means=lambda s: _rate(s, 9) == 1,
    ),
    "lr_decay_steps below 1": Zero(
        "train: {lr_decay_steps: 0.2, lr_scheduler: linear}",
        means=lambda s: (_rate(s, 8), _rate(s, 9), _rate(s, 10)) == (1, 0.5, 0),
    ),
    "dropout": Zero("network: {dropout: 0}", means=_holds("network.dropout")),
    "rank_dropout": Zero(
        "network: {rank_dropout: 0}", means=_holds("network.rank_dropout")
    ),
    "module_dropout": Zero(
        "network: {module_dropout: 0}", means=_holds("network.module_dropout")
    ),
    "scale_weight_norms": Zero(
        "network: {scale_weight_norms: 0}", means=_holds("network.scale_weight_norms")
    ),
    "caption_dropout_rate": Zero(
        "datasets: [{folder_path: photos, caption_dropout_rate: 0}]",
        means=lambda s: s.datasets[0].caption_dropout_rate == 0,
    ),
    "blocks_to_swap": Zero(
        "model: {name_or_path: ./model, blocks_to_swap: 0}",
        means=_holds("model.blocks_to_swap"),
    ),
    "logit_mean": Zero("train: {logit_mean: 0}", means=_holds("train.logit_mean")),
    "logit_std": Zero(
        "train: {logit_std: 0}",
        error="train.logit_std: 0 is out of range: must be > 0.",
    ),
    "ddp_timeout": Zero("train: {ddp_timeout: 0}", means=_holds("train.ddp_timeout")),
    "logging_dir": Zero(
        "logging: {logging_dir: 0}", means=lambda s: s.logging.trackers() == ()
    ),
}
"""Rows of the table "Zero, empty, null"; the share below 1 and who overrides whom stand
in it too."""


def steps_of(section: SdTrainerConfig) -> int:
    """Optimizer steps of a run with 10 micro-batches per epoch."""
    return optimizer_steps(
        section.train.steps,
        section.train.epochs,
        10,
        section.train.gradient_accumulation,
    )


@needs_foreign_names
@pytest.mark.parametrize("name", ZERO)
def test_zero_means_what_the_table_says(load, faults, name: str) -> None:
    case = ZERO[name]
    if case.error:
        (found,) = faults(case.lines)
        assert found.startswith(case.error)
        return
    job = load(trainer(case.lines))
    assert [warning.endswith(case.warning) for warning in job.warnings] == [
        True
    ] * bool(case.warning)
    assert case.means(job.processes[0].section)


# ------------------------------------------------------------ null and empty

NEEDED: dict[str, dict[str, Any]] = {
    "datasets[]": {"folder_path": "photos"},
    "datasets[].resolution[]": {"width": 64, "height": 64},
    "model": {"name_or_path": "./model"},
    "model.base_loras[]": {"path": "a.safetensors"},
    "train.assistant": {"path": "a.safetensors"},
    "sample.lora": {"path": "a.safetensors"},
    "sample.samples[]": {"prompt": "a"},
    "validation": {"folder_path": "photos"},
    "stop_when": {"below": 1},
}
"""Section -> the keys without which it is none."""

NO_IMAGES = "names no images. Give 'folder_path', or 'url' for a stream of shards."

BLANK = "has no value, and counts as not given: "

SECTIONS = dict(distinct_sections({"sd_trainer": SdTrainerConfig}))
# the keys of an entry are those of an extension
del SECTIONS["callbacks[]"]


def names_of(section: type[StrictModel]) -> set[str]:
    """Every name that is known in a section."""
    return {*section.model_fields, *foreign_keys().rows(section)}


def job_with(path: str, keys: dict[str, Any]) -> str:
    """A job whose section at `path` (`sample.samples[]`) holds these keys."""
    value = keys
    for part in reversed(path.split(".") if path else ()):
        key = part.removesuffix("[]")
        value = {key: [value] if part != key else value}
        if key in ("model", "validation"):
            value[key] = NEEDED[key] | value[key]
        if {"columns", "resolution"} & value.keys():
            value["folder_path"] = "photos"
        if "webdataset" in value:
            value["url"] = "0.tar"
    return trainer(*(f"{key}: {json.dumps(inner)}" for key, inner in value.items()))


@pytest.mark.parametrize("path", SECTIONS)
def test_empty_and_null_are_not_given_for_every_key_of_every_section(
    load, path: str
) -> None:
    Path("a.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")  # no tensors
    Path("kept.txt").write_text("a dog")
    needed, section = NEEDED.get(path, {}), SECTIONS[path]
    others = {"type", "name", "datasets", "model"}
    optional = names_of(section) - {*needed, *section.may_be_empty, *others}
    keys = job_with(path, needed | dict.fromkeys(sorted(optional), "@"))
    plain = load(job_with(path, needed))
    expected = [line for line in plain.warnings if "has no keys" not in line]
    forms = ("null", "~", '"${NOTHING:-}"') if path in ("", "train") else ()
    for blank in ("", "''", *forms):
        given = load(keys.replace('"@"', blank))
        assert given.processes[0].section == plain.processes[0].section, blank
        told = [line for line in given.warnings if BLANK in line]
        assert [each for each in given.warnings if each not in told] == expected, blank
        if blank == "''":  # an empty text in the place of another default
            assert "the default is none" not in "".join(told)
        else:
            assert bool(told) == (blank == "" and bool(optional)), (
                f"{blank}: of what is written out the default is meant"
            )


def test_blanks_where_they_mean_something_else_than_a_default(section, faults) -> None:
    keys = (
        "sample_every",
        "sample_every_n_epochs",
        "seed",
        "neg",
        "guidance_scale",
        "flow_shift",
        "prompts",
    )
    plain = section("sample: {walk_seed: false}").sample
    assert plain.interval() == (250, 0)
    for blank in ("", "null", "''"):
        lines = (f"  {key}: {blank}" for key in keys)
        assert section("sample:", *lines, "  walk_seed: false").sample == plain, blank
        assert section(f"resume: {blank}").resume == "auto", blank
        logs = "logging:", f"  log_with: {blank}"
        assert section(*logs).logging.trackers() == (), blank
        found = section(*logs, "  logging_dir: runs").logging.trackers()
        assert found == ("tensorboard",), blank
        assert faults(
            f"model: {{name_or_path: {blank}}}", f"datasets: [{{folder_path: {blank}}}]"
        ) == ["model.name_or_path: needs a value.", f"datasets[0]: {NO_IMAGES}"], blank


@needs_foreign_names
def test_no_base_loras(section) -> None:
    for key in ("base_loras", "base_weights"):
        for value in ("", "null", "''", "[]"):
            lines = "model:", "  name_or_path: ./model", f"  {key}: {value}"
            assert section(*lines).model.base_loras == (), (key, value)


def test_a_key_of_wandb_comes_from_the_environment_and_is_kept_nowhere(
    load, monkeypatch
) -> None:
    monkeypatch.setitem(os.environ, "WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(
        "toolkit.config.sections.output._is_installed", lambda package: True
    )
    job = load(trainer("logging: {log_with: wandb, wandb_api_key: ''}"))
    assert job.processes[0].section.logging.wandb_api_key == "" and job.warnings == ()
    given = load(trainer(f"logging: {{log_with: wandb, wandb_api_key: {'abcd' * 10}}}"))
    assert given.processes[0].section.logging.wandb_api_key == "abcd" * 10
    assert "abcd" * 10 not in given.unexpanded_text + repr(given.processes[0].section)
    assert "wandb_api_key" not in given.processes[0].section.logging.model_dump()

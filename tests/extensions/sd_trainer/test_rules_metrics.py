"""Warnings about keys without effect, and errors about metrics that are not measured."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.findings import errors, warnings
from toolkit.config.process import Diagnostic


def measured(
    validation: dict | None = None, stop: dict | None = None, scale_weight_norms: float = 0, **train
) -> SdTrainerConfig:
    return SdTrainerConfig(
        type="sd_trainer",
        datasets=[{"folder_path": "photos/"}],
        model={"name_or_path": "a"},
        validation=None if validation is None else {"every": 0, **taken_from(validation)},
        stop_when=None if stop is None else {"metric": "loss", "below": 1.0, "smooth": 20, **stop},
        train={"steps": 1000, **train},
        network={"scale_weight_norms": scale_weight_norms},
    )


FOLLOWS = ("train", "lr_scheduler_params")


def taken_from(validation: dict) -> dict:
    return validation if "folder_path" in validation else {"fraction": 0.5, **validation}


def told(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    return [finding for finding in found if finding.key[0] in ("validation", "stop_when")]


@pytest.mark.parametrize(
    ("stop", "fault"),
    [
        ({"metric": "validation/loss"}, "needs the section 'validation'"),
        ({"metric": "validation/loss_t0.125"}, "needs the section 'validation'"),
        ({"metric": "max_norm/keys_scaled"}, "is not a metric of this run"),
        ({"metric": "los"}, "Did you mean 'loss'?"),
        ({"metric": "loss_recon"}, "Known names: grad_norm, loss, lr, t_mean."),
    ],
)
def test_a_number_that_is_never_measured_is_a_mistake(stop: dict, fault: str) -> None:
    [finding] = told(errors(measured(stop=stop)))
    assert finding.key == ("stop_when", "metric")
    assert fault in finding.message


@pytest.mark.parametrize(
    ("validation", "metric"),
    [(None, "loss"), (None, "grad_norm"), ({}, "validation/loss"), ({}, "validation/loss_t0.625")],
)
def test_what_is_measured_is_none(validation, metric: str) -> None:
    assert not told(errors(measured(validation, {"metric": metric})))
    assert not told(errors(measured(validation)))


def test_any_number_that_the_section_logs_may_end_the_run() -> None:
    numbers = measured({}, scale_weight_norms=1.0).logged_numbers()
    assert {"lr", "t_mean", "max_norm/keys_scaled", "validation/loss_t0.875"} <= set(numbers)
    for metric in numbers:
        assert not told(errors(measured({}, {"metric": metric}, scale_weight_norms=1.0)))


@pytest.mark.parametrize(
    ("validation", "metric", "fault"),
    [
        (None, "loss", None),
        ({}, "validation/loss", None),
        (None, "validation/loss", "needs the section 'validation'"),
        ({}, "grad_norm", "is not a metric of this run"),
    ],
)
def test_a_schedule_follows_the_loss_or_the_validation_loss(validation, metric: str, fault: str | None) -> None:
    follows = {"lr_scheduler": "plateau", "lr_scheduler_params": {"metric": metric}}
    findings = [finding for finding in errors(measured(validation, **follows)) if finding.key[1] == FOLLOWS[1]]
    assert [finding.key for finding in findings] == ([FOLLOWS] if fault else [])
    assert fault is None or fault in findings[0].message


@pytest.mark.parametrize(
    ("validation", "stop", "train", "key"),
    [
        ({}, {"metric": "validation/loss", "smooth": 2}, {}, ("stop_when", "smooth")),
        ({"every": 100}, {"metric": "validation/loss", "smooth": 12}, {}, ("stop_when", "smooth")),
        ({"every": 100}, {"metric": "validation/loss", "smooth": 11}, {}, None),
        ({"every": 100}, {"metric": "validation/loss", "smooth": 12}, {"epochs": 3}, None),
        ({"every_n_epochs": 1}, {"metric": "validation/loss"}, {}, None),
        ({}, {"metric": "loss"}, {}, None),
        (None, {"min_steps": 1000}, {}, ("stop_when", "min_steps")),
        (None, {"min_steps": 999}, {}, None),
        (None, {"min_steps": 1000}, {"epochs": 3}, None),
        ({"folder_path": "./photos"}, None, {}, ("validation", "folder_path")),
        ({"folder_path": "others"}, None, {}, None),
    ],
)
def test_what_cannot_happen_is_a_warning(validation, stop, train: dict, key) -> None:
    assert [finding.key for finding in told(warnings(measured(validation, stop, **train)))] == ([key] if key else [])


@pytest.mark.parametrize(
    ("ema", "told"),
    [
        ({"use_ema": True, "ema_decay": 1, "use_num_updates": False}, True),
        ({"use_ema": True, "ema_decay": 1}, False),  # the warm-up lets it move
        ({"use_ema": False, "ema_decay": 1, "use_num_updates": False}, False),
    ],
)
def test_an_average_that_never_moves_is_told(ema: dict, told: bool) -> None:
    found = [note for note in warnings(measured(ema_config=ema)) if note.key == ("train", "ema_config", "ema_decay")]
    assert [note.message.startswith("1 never moves") for note in found] == [True] * told


@pytest.mark.parametrize(("asked", "dtype", "told"), [("fp16", "bf16", 1), ("bf16", "bf16", 0), ("no", "fp32", 0)])
def test_what_accelerate_is_asked_for_is_not_ignored_silently(
    monkeypatch: pytest.MonkeyPatch, asked: str, dtype: str, told: int
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    found = [note.message for note in warnings(measured(dtype=dtype)) if note.key == ("train", "dtype")]
    assert len(found) == told and all("--mixed_precision (float16)" in message for message in found)

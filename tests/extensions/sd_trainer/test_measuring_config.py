"""Mistakes and warnings about `validation` and `stop_when`."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.measuring_config import check_measuring, note_measuring


def section(
    validation: dict | None = None, stop: dict | None = None, scale_weight_norms: float = 0, **train
) -> SimpleNamespace:
    defaults = {"every": 0, "every_n_epochs": 0, "folder_path": None, "timesteps": 4}
    given = {"metric": "loss", "below": 1.0, "smooth": 20, "min_steps": 0}
    found = SimpleNamespace(
        validation=None if validation is None else SimpleNamespace(**defaults | validation),
        stop_when=None if stop is None else SimpleNamespace(**given | stop),
        train=SimpleNamespace(
            **{"steps": 1000, "epochs": 0, "dtype": "float32", "lr_scheduler": "constant", "lr_scheduler_params": {}}
            | train
        ),
        network=SimpleNamespace(scale_weight_norms=scale_weight_norms),
        datasets=[SimpleNamespace(folder_path="photos/")],
    )
    found.logged_numbers = partial(SdTrainerConfig.logged_numbers, found)
    return found


@pytest.mark.parametrize(
    ("stop", "fault"),
    [
        ({"metric": "validation/loss"}, "needs the section 'validation'"),
        ({"metric": "validation/loss_t0.125"}, "needs the section 'validation'"),
        ({"metric": "max_norm/keys_scaled"}, "is no number that is measured"),
        ({"metric": "los"}, "Did you mean 'loss'?"),
        ({"metric": "loss_recon"}, "Known names: grad_norm, loss, lr, t_mean."),
    ],
)
def test_a_number_that_is_never_measured_is_a_mistake(stop: dict, fault: str) -> None:
    [finding] = check_measuring(section(stop=stop))
    assert finding.key == ("stop_when", "metric")
    assert fault in finding.message


@pytest.mark.parametrize(
    ("validation", "metric"),
    [(None, "loss"), (None, "grad_norm"), ({}, "validation/loss"), ({}, "validation/loss_t0.625")],
)
def test_what_is_measured_is_none(validation, metric: str) -> None:
    assert not list(check_measuring(section(validation, {"metric": metric})))
    assert not list(check_measuring(section(validation)))


def test_any_number_that_the_section_logs_may_end_the_run() -> None:
    limited = section({}, scale_weight_norms=1.0)
    assert {"lr", "t_mean", "max_norm/keys_scaled", "validation/loss_t0.875"} <= set(limited.logged_numbers())
    for metric in limited.logged_numbers():
        assert not list(check_measuring(section({}, {"metric": metric}, scale_weight_norms=1.0)))


@pytest.mark.parametrize(
    ("validation", "metric", "fault"),
    [
        (None, "loss", None),
        ({}, "validation/loss", None),
        (None, "validation/loss", "needs the section 'validation'"),
        ({}, "grad_norm", "is no number that is measured"),
    ],
)
def test_a_schedule_follows_the_loss_or_the_validation_loss(validation, metric: str, fault: str | None) -> None:
    follows = {"lr_scheduler": "plateau", "lr_scheduler_params": {"metric": metric}}
    findings = list(check_measuring(section(validation, **follows)))
    assert [finding.key for finding in findings] == ([("train", "lr_scheduler_params")] if fault else [])
    assert fault is None or fault in findings[0].message
    assert not list(check_measuring(section(validation, **follows | {"lr_scheduler": "cosine"})))


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
    assert [finding.key for finding in note_measuring(section(validation, stop, **train))] == ([key] if key else [])

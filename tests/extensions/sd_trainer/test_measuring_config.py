"""Mistakes and warnings about `validation` and `stop_when`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from extensions.sd_trainer.measuring_config import check_measuring, note_measuring


def section(validation: dict | None = None, stop: dict | None = None, **train) -> SimpleNamespace:
    defaults = {"every": 0, "every_n_epochs": 0, "folder_path": None}
    given = {"metric": "loss", "below": 1.0, "smooth": 20, "min_steps": 0}
    return SimpleNamespace(
        validation=None if validation is None else SimpleNamespace(**defaults | validation),
        stop_when=None if stop is None else SimpleNamespace(**given | stop),
        train=SimpleNamespace(**{"steps": 1000, "epochs": 0} | train),
        datasets=[SimpleNamespace(folder_path="photos/")],
    )


@pytest.mark.parametrize(
    ("stop", "fault"),
    [
        ({"metric": "validation/loss"}, "needs the section 'validation'"),
        ({"metric": "los"}, "Did you mean 'loss'?"),
        ({"metric": "loss_recon"}, "Known names: grad_norm, loss, validation/loss."),
    ],
)
def test_a_number_that_is_never_measured_is_a_mistake(stop: dict, fault: str) -> None:
    [finding] = check_measuring(section(stop=stop))
    assert finding.key == ("stop_when", "metric")
    assert fault in finding.message


@pytest.mark.parametrize(
    ("validation", "metric"), [(None, "loss"), (None, "grad_norm"), ({}, "validation/loss"), ({}, "loss")]
)
def test_what_is_measured_is_none(validation, metric: str) -> None:
    assert not list(check_measuring(section(validation, {"metric": metric})))
    assert not list(check_measuring(section(validation)))


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

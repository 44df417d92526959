"""When a job saves and how many files it keeps, by what of the two it gives."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import trainer


@pytest.mark.parametrize(
    ("keys", "steps", "epochs"),
    [
        ("", 250, 0),
        ("save_every: 0", 0, 0),
        ("save_every_n_steps: 100", 100, 0),
        ("save_every_n_epochs: 2", 0, 2),  # the default of save_every is nothing that was asked for
        ("save_every_n_epochs: 0", 0, 0),
        ("save_every: 0, save_every_n_epochs: 2", 0, 2),
        ("save_every: 250, save_every_n_epochs: 2", 250, 0),  # steps override epochs
        ("save_every: 100, save_every_n_epochs: 0", 100, 0),
        ("save_every: null, save_every_n_epochs: 3", 0, 3),
    ],
)
def test_steps_above_zero_decide_where_they_are_given(section, keys: str, steps: int, epochs: int) -> None:
    assert section(f"save: {{{keys}}}").save.interval() == (steps, epochs)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("", 5),
        ("max_step_saves_to_keep: 0", 0),
        ("save_last_n_steps: 3", 3),
        ("save_every_n_epochs: 1", 5),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2", 2),
        ("save_every_n_epochs: 1, save_last_n_epochs: 0", 0),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 2),
        ("save_every: 10, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 9),
    ],
)
def test_as_many_files_stay_as_the_deciding_interval_says(section, keys: str, kept: int) -> None:
    assert section(f"save: {{{keys}}}").save.files_to_keep() == kept


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            "save_every: 50, save_every_n_epochs: 2",
            "save_every_n_epochs: has no effect: 'save_every: 50' takes precedence. Remove one of them.",
        ),
        ("save_last_n_epochs: 2", "save_last_n_epochs: has no effect: files are not saved by epoch."),
        ("save_last_n_steps: 1000", "save_last_n_steps: 1000 files are kept: it is their number, not a distance"),
    ],
)
def test_keys_that_do_nothing_or_look_misunderstood_are_told(load, keys: str, warning: str) -> None:
    (line,) = load(trainer(f"save: {{{keys}}}")).warnings
    assert line.split("process[0].save.")[1].startswith(warning)


@pytest.mark.parametrize(
    "keys", ["", "save_every_n_epochs: 2, save_last_n_epochs: 2", "save_every: 5, no_metadata: true"]
)
def test_jobs_without_contradiction_are_silent(load, keys: str) -> None:
    assert load(trainer(f"save: {{{keys}}}")).warnings == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("save_every_n_epochs: -1", "save_every_n_epochs: -1 is out of range: must be >= 0."),
        ("save_last_n_epochs: -1", "save_last_n_epochs: -1 is out of range: must be >= 0."),
        ("save_every_n_epochs: 0.5", "save_every_n_epochs: 0.5"),
        ("no_metadata: 3", "no_metadata: 3"),
        ("push_to_hub: true", "push_to_hub: needs a repository: set hf_repo_id"),
        ("save_last_n_steps: 3, max_step_saves_to_keep: 4", "save_last_n_steps: 'save_last_n_steps' and 'max_step_sav"),
    ],
)
def test_mistakes_of_a_save_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"save: {{{keys}}}")
    assert found.startswith(f"save.{message}")

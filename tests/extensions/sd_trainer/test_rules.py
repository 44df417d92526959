"""What the keys about samples and saves say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.config import load_job
from toolkit.errors import ConfigErrors

ONE = {"prompts": ["a"]}


@pytest.fixture
def load(write_job, trainer, make_pictures, tmp_path: Path):
    """Loads a job with these sections; the model is not looked at."""
    photos = make_pictures(tmp_path / "photos", "a")

    def load(**sections):
        return load_job(write_job(trainer(photos, **sections)), lambda _: SdTrainerConfig)

    return load


@pytest.mark.parametrize(
    ("sections", "first"),
    [
        ({"sample": ONE}, True),
        ({"sample": {**ONE, "sample_at_first": True}}, True),
        ({"sample": {**ONE, "sample_at_first": False}}, False),
        ({"sample": ONE, "train": {"skip_first_sample": True}}, False),
        ({"sample": ONE, "train": {"force_first_sample": True}}, True),
        ({"sample": ONE, "first_sample": ONE}, True),
        ({"sample": {**ONE, "sample_at_first": False}, "train": {"skip_first_sample": True}}, False),
        ({"sample": {**ONE, "sample_at_first": True}, "train": {"skip_first_sample": False}}, True),
    ],
)
def test_each_key_says_by_itself_whether_a_first_set_is_drawn(load, sections: dict, first: bool) -> None:
    job = load(**sections)
    assert job.processes[0].section.draws_first() is first
    assert job.warnings == ()


SKIP = {"skip_first_sample": True}
AT_FIRST, NOT_AT_FIRST = {**ONE, "sample_at_first": True}, {**ONE, "sample_at_first": False}


@pytest.mark.parametrize(
    ("sections", "key", "names"),
    [
        ({"sample": AT_FIRST, "train": SKIP}, "sample.sample_at_first", ["sample_at_first: true", "skip_first"]),
        ({"sample": NOT_AT_FIRST, "first_sample": ONE}, "first_sample", ["'first_sample'", "sample_at_first: false"]),
        ({"sample": ONE, "first_sample": ONE, "train": SKIP}, "first_sample", ["'skip_first_sample: true'"]),
        (
            {"sample": ONE, "train": {**SKIP, "force_first_sample": True}},
            "train.force_first_sample",
            ["force_first_sample: true", "skip_first_sample: true"],
        ),
        (
            {"sample": NOT_AT_FIRST, "train": {"skip_first_sample": False}},
            "train.skip_first_sample",
            ["skip_first_sample: false", "sample_at_first: false"],
        ),
        (
            {"sample": ONE, "train": {"force_first_sample": True, "disable_sampling": True}},
            "train.force_first_sample",
            ["disable_sampling: true"],
        ),
    ],
)
def test_keys_that_contradict_each_other_are_both_named(load, sections: dict, key: str, names: list[str]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(**sections)
    (line,) = str(caught.value).splitlines()
    assert f"process[0].{key}: " in line
    assert all(name in line for name in [*names, "contradict each other. Remove"])


def test_a_first_set_without_prompts_is_a_mistake(load) -> None:
    with pytest.raises(ConfigErrors, match=r"first_sample: has no prompts, and inherits none"):
        load(sample=ONE, first_sample={"width": 64})


def test_references_of_the_first_set_must_be_there(load) -> None:
    with pytest.raises(ConfigErrors, match=r"first_sample\.samples\[0\]\.ctrl_img: 'no\.png' does not exist"):
        load(sample=ONE, first_sample={"samples": [{"prompt": "a", "ctrl_img": "no.png"}]})


@pytest.mark.parametrize(
    ("sections", "warning"),
    [
        ({"first_sample": {**ONE, "sample_every": 5}}, "first_sample.sample_every: has no effect: these images are"),
        ({"train": {"force_first_sample": True}}, "train.force_first_sample: has no effect without a 'sample' section"),
        (
            {"sample": {**ONE, "sample_every": 5, "sample_every_n_epochs": 1}},
            "sample.sample_every: has no effect: 'sample_every_n_epochs: 1' takes precedence.",
        ),
        ({"save": {"save_last_n_epochs": 1}}, "save.save_last_n_epochs: has no effect"),
    ],
)
def test_what_does_nothing_is_noted(load, sections: dict, warning: str) -> None:
    (line,) = load(**sections).warnings
    assert f"process[0].{warning}" in line

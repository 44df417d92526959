"""The section of `type: cache`."""

from __future__ import annotations

import pytest

from extensions.tools.cache.config import CacheConfig
from toolkit.config import JobContext, load_job
from toolkit.errors import ConfigErrors


@pytest.fixture
def load(write_job, trainer, make_pictures, tmp_path):
    """The checked section of a `cache` process with these changes."""
    folder = make_pictures(tmp_path / "data", "a")

    def load_with(**changes) -> CacheConfig:
        section = {key: value for key, value in (trainer(folder) | {"type": "cache"} | changes).items() if value}
        return load_job(write_job(section), lambda uid: CacheConfig).processes[0].section

    return load_with


def test_it_takes_a_training_section_as_it_is(load) -> None:
    assert load().dtype == "float32"


def test_dtype_may_stand_in_the_process_itself(load) -> None:
    assert load(train=None).dtype == "bfloat16"
    assert load(train=None, dtype="fp32").dtype == "float32"


def test_a_misspelt_key_is_refused(load) -> None:
    with pytest.raises(ConfigErrors, match="Did you mean 'datasets'"):
        load(dataset=["a"])


def test_it_is_still_there_while_its_folder_is(load, tmp_path) -> None:
    section = load(training_folder=str(tmp_path / "runs"))
    assert not section.outputs_exist(JobContext("job"))
    (tmp_path / "runs" / "_cache").mkdir(parents=True)
    assert section.outputs_exist(JobContext("job"))

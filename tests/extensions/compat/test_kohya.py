"""A dataset file of kohya-ss/sd-scripts, as a job."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions.compat import kohya
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

EXAMPLE = """\
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

# This is a DreamBooth-style dataset
[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'hoge'
  class_tokens = 'hoge girl'

  [[datasets.subsets]]
  image_dir = 'fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'human'
  keep_tokens = 1

# This is a fine-tuning dataset
[[datasets]]
resolution = [768, 768]
batch_size = 4
enable_bucket = true

  [[datasets.subsets]]
  image_dir = 'piyo'
  metadata_file = 'piyo_md.json'
"""
"""Of its documentation, with other folders and one batch size."""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    for folder in ("hoge", "fuga", "reg", "piyo"):
        shutil.copytree(ROOT / "config" / "examples" / "pairs" / "after", folder)
    Path("piyo_md.json").write_text(json.dumps({"piyo/coffee.jpg": {"caption": "a cup"}}))

    def load_text(text: str = EXAMPLE) -> Any:
        Path("data.toml").write_text(text)
        return load_job("data.toml", discover().find_config)

    return load_text


def test_the_example_of_its_documentation(load: Callable[..., Any]) -> None:
    config = load()
    section = config.processes[0].section
    assert section.model.name_or_path == kohya.MODEL and section.train.batch_size == 4
    assert any("names no model" in note for note in config.notes)
    hoge, fuga, reg, piyo = section.datasets
    assert [each.folder_path for each in section.datasets] == ["hoge", "fuga", "reg", "piyo"]
    assert [each.keep_tokens for each in section.datasets] == [2, 3, 1, 1]
    assert [each.default_caption for each in (hoge, fuga, reg)] == ["hoge girl", "fuga boy", "human"]
    assert (reg.is_reg, hoge.is_reg, hoge.num_repeats, hoge.caption_ext) == (True, False, 1, (".txt",))
    assert str(hoge.resolution[0]) == "{width: 512, height: 512}" and piyo.resolution == (768,)
    assert piyo.captions_file == "piyo_md.json" and all(each.shuffle_tokens for each in section.datasets)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("batch_size = 4\nenable", "batch_size = 2\nenable", "datasets[1].batch_size: 2, and 4 in another dataset"),
        ("keep_tokens = 3", "keep_token = 3", "unknown key of sd-scripts's datasets. Did you mean 'keep_tokens'?"),
        ("keep_tokens = 3", "random_crop = true", "true is not supported: images are cut at their middle here"),
        ("keep_tokens = 2", "validation_split = 0.1", "0.1 is not supported: put the images held out into a folder"),
        ("keep_tokens = 2", "keep_tokens_separator = '|||'", "'|||' is not supported with shuffle_caption"),
        ("resolution = 512", "resolution = 'big'", "'big' is not a size."),
        ("image_dir = 'hoge'", "num_repeats = 2", "image_dir: is required: the folder of the images."),
        ("image_dir = 'hoge'", "image_dir = 'gone'", "'gone' does not exist"),
    ],
)
def test_mistakes(load: Callable[..., Any], old: str, new: str, fault: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        load(EXAMPLE.replace(old, new))
    assert fault in str(error.value)


@pytest.mark.slow  # every key with every value
def test_odd_values_are_errors_of_the_config(load: Callable[..., Any]) -> None:
    keys = [*kohya._Reader.rows, *sorted(kohya.BY_HAND), "general", "datasets"]
    for value in ("''", "'x'", "0", "-1", "1e30", "nan", "true", "[]", "[[1, 'a'], {}]", "{a = 1}"):
        for key in keys:
            with contextlib.suppress(ConfigErrors):
                load(f"{EXAMPLE}  {key} = {value}\n")
            with contextlib.suppress(ConfigErrors):
                load(f"{key} = {value}\n[[datasets]]\n[[datasets.subsets]]\n")

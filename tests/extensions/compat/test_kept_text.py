"""What is kept beside a run's results of a file that was written for another
program."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from toolkit.config import load_job
from toolkit.extension import discover

GUIDE = """# mine
data: {data_path: images, webdataset_token: hf_abcdefghijklmnopqrstuv}
training:
  train_vae: true
  lr: 1e-5
  output_path: "out/one"  # here
"""


def kept(text: str, **options) -> str:
    """What is kept of a file of FluxFlow's shape."""
    return load_job(
        _written(text, options.pop("file", "c.yaml")), discover().find_config, **options
    ).unexpanded_text


def _written(text: str, file: str) -> str:
    Path("images").mkdir(exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")
    return file


def test_a_file_of_fluxflows_shape_is_kept_as_it_is_without_its_token(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert kept(GUIDE) == GUIDE.replace("hf_abcdefghijklmnopqrstuv", "<redacted>")


def test_a_name_for_a_file_of_fluxflows_shape_changes_its_folder(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = kept(GUIDE, name="two")
    again = yaml.safe_load(text)
    assert (
        again["output"] == {"output_path": "out/two"}
        and "output_path" not in again["training"]
    )
    assert load_job(_written(text, "again.yaml"), discover().find_config).name == "two"


def test_a_file_of_fluxflows_shape_may_be_json(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load(GUIDE)
    text = kept(json.dumps(data), file="c.json")
    assert yaml.safe_load(text)["data"]["webdataset_token"] == "<redacted>"
    assert load_job(_written(text, "again.yaml"), discover().find_config).name == "one"

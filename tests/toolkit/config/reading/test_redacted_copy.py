"""The text that is kept beside a run's results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from toolkit.config import load_job
from toolkit.extension import discover

JOB = """\
# a comment stays
job: extension
config:
  name: "old" # so does this
  process:
    - type: drop_in
      x: ${X}
"""


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('  name: "old" # so does this', '  name: "new" # so does this'),
        ("  name: old", '  name: "new"'),
        ("  name:", '  name: "new"'),
        ("  name: >-\n    old", '  name: "new"'),
        ("  meta_name: 1", None),
    ],
)
def test_the_new_name_takes_the_place_of_the_old(load, mistakes, written: str, kept: str | None) -> None:
    text = JOB.replace('  name: "old" # so does this', written)
    if kept is None:
        assert len(mistakes(text, name="new", env={"X": "1"})) == 1
    else:
        saved = load(text, name="new", env={"X": "1"}).unexpanded_text
        assert saved == JOB.replace('  name: "old" # so does this', kept)


def test_a_name_is_put_in_where_there_was_none(load) -> None:
    text = JOB.replace('  name: "old" # so does this\n', "")
    saved = load(text, name="new", env={"X": "1"}).unexpanded_text
    assert saved == JOB.replace('"old" # so does this', '"new"')
    flow = "{job: extension, config: {process: [{type: drop_in}]}}"
    assert load(load(flow, name="new").unexpanded_text).name == "new"


def test_an_aliased_name_is_replaced_there_only(load) -> None:
    text = "meta: {x: &n old}\njob: extension\nconfig: {name: *n, process: [{type: drop_in}]}\n"
    again = load(load(text, name="new").unexpanded_text)
    assert (again.name, again.meta) == ("new", {"x": "old"})


def test_json_is_kept_as_yaml_that_reads_the_same(load) -> None:
    text = '{"job": "extension", // c\n"config": {"name": "a", "process": [{"type": "drop_in", "api_key": "s3",'
    text += ' "a": "1e-4", "b": "on", "c": 1e-5, "d": "${X}", "e": null, "f": "0o7", "g": "l1\\nl2"}]}}'
    job = load(text, file="job.json", env={"X": "1"})
    assert "s3" not in job.unexpanded_text
    again = load(job.unexpanded_text, env={"X": "1"})
    assert again.processes[0].raw == job.processes[0].raw | {"api_key": "<redacted>", "d": 1}
    assert job.processes[0].raw["d"] == "1"


def test_secrets_are_redacted_and_the_text_still_loads(load) -> None:
    text = JOB + "      hf_token: hunter2\n      api_key: |\n        line one\n        line two\n"
    text += "      my_secret: [a1b2, c3d4]\n      last: 1\n"
    job = load(text, env={"X": "1"})
    assert job.processes[0].raw["hf_token"] == "hunter2"
    for secret in ("hunter2", "line one", "line two", "a1b2", "c3d4"):
        assert secret not in job.unexpanded_text
    again = load(job.unexpanded_text, env={"X": "1"}).processes[0].raw
    assert (again["last"], again["api_key"], again["x"]) == (1, "<redacted>", 1)


GUIDE = """# mine
data: {data_path: images, webdataset_token: hf_abcdefghijklmnopqrstuv}
training:
  train_vae: true
  lr: 1e-5
  output_path: "out/one"  # here
"""


def kept(text: str, **options) -> str:
    """What is kept of a file of FluxFlow's shape."""
    return load_job(_written(text, options.pop("file", "c.yaml")), discover().find_config, **options).unexpanded_text


def _written(text: str, file: str) -> str:
    Path("images").mkdir(exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")
    return file


def test_a_file_of_fluxflows_shape_is_kept_as_it_is_without_its_token(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kept(GUIDE) == GUIDE.replace("hf_abcdefghijklmnopqrstuv", "<redacted>")


def test_a_name_for_a_file_of_fluxflows_shape_changes_its_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = kept(GUIDE, name="two")
    again = yaml.safe_load(text)
    assert again["output"] == {"output_path": "out/two"} and "output_path" not in again["training"]
    assert load_job(_written(text, "again.yaml"), discover().find_config).name == "two"


def test_a_file_of_fluxflows_shape_may_be_json(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load(GUIDE)
    text = kept(json.dumps(data), file="c.json")
    assert yaml.safe_load(text)["data"]["webdataset_token"] == "<redacted>"
    assert load_job(_written(text, "again.yaml"), discover().find_config).name == "one"

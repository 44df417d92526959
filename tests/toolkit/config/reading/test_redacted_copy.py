"""The text that is kept beside a run's results."""

from __future__ import annotations

import pytest

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
        ('  name: "old" # so does this', "  name: new # so does this"),
        ("  name: old", "  name: new"),
        ("  name:", "  name: new"),
        ("  name: >-\n    old", "  name: new"),
        ("  meta_name: 1", None),
    ],
)
def test_the_new_name_takes_the_place_of_the_old(
    load, mistakes, written: str, kept: str | None
) -> None:
    text = JOB.replace('  name: "old" # so does this', written)
    if kept is None:
        assert len(mistakes(text, name="new", env={"X": "1"})) == 1
    else:
        saved = load(text, name="new", env={"X": "1"}).unexpanded_text
        assert saved == JOB.replace('  name: "old" # so does this', kept)


def test_a_name_is_put_in_where_there_was_none(load) -> None:
    text = JOB.replace('  name: "old" # so does this\n', "")
    saved = load(text, name="new", env={"X": "1"}).unexpanded_text
    assert saved == JOB.replace('"old" # so does this', "new")
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
    assert again.processes[0].raw == job.processes[0].raw | {
        "api_key": "<redacted>",
        "d": 1,
    }
    assert job.processes[0].raw["d"] == "1"


def test_secrets_are_redacted_and_the_text_still_loads(load) -> None:
    text = (
        JOB
        + "      hf_token: hunter2\n      api_key: |\n        line one\n        line two\n"
    )
    text += "      my_secret: [a1b2, c3d4]\n      last: 1\n"
    job = load(text, env={"X": "1"})
    assert job.processes[0].raw["hf_token"] == "hunter2"
    for secret in ("hunter2", "line one", "line two", "a1b2", "c3d4"):
        assert secret not in job.unexpanded_text
    again = load(job.unexpanded_text, env={"X": "1"}).processes[0].raw
    assert (again["last"], again["api_key"], again["x"]) == (1, "<redacted>", 1)

"""`--json`: each file with its errors, the end of a run, the extensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.as_json import faults
from run import main
from toolkit.errors import Interrupted, ReportedExit, RunError, UserError


@pytest.mark.parametrize(
    ("text", "file", "line", "key", "message", "remedy"),
    [
        (
            "my job.yaml:3:5: process[0].train.lr: 'x' is not a number. Write 1.",
            "my job.yaml", 3, "process[0].train.lr", "'x' is not a number.", "Write 1.",
        ),
        ("--set train.lr: process[0].train.lr: is bad.", "--set train.lr", None,
         "process[0].train.lr", "is bad.", None),
        ("my job.yaml: this will not start: no room", "my job.yaml", None, None, "this will not start: no room", None),
        ("a/b.toml:2:1: is empty.", "a/b.toml", 2, None, "is empty.", None),
        ("-n: 'a/b' is no name. Leave out '/'.", "-n", None, None, "'a/b' is no name.", "Leave out '/'."),
        ("it has no place", "my job.yaml", None, None, "it has no place", None),
        ("two lines.\n  the second", "my job.yaml", None, None, "two lines.\n  the second", None),
    ],
)  # fmt: skip
def test_a_line_of_an_error_is_taken_apart(
    text: str, file: str, line: int | None, key: str, message: str, remedy: str
) -> None:
    (fault,) = faults(UserError(text), "my job.yaml")
    assert fault["file"] == file and fault["line"] == line and fault["key"] == key
    assert (fault["message"], fault["remedy"]) == (message, remedy)


def test_other_ends_have_one_error_or_none() -> None:
    assert faults(None, "a") == faults(Interrupted(130), "a") == []
    (fault,) = faults(RunError("one: is gone.\nTwo"), "a")
    assert fault["message"].startswith("one: is gone.")
    ranks = ReportedExit(1)
    ranks.__cause__ = ValueError()
    assert faults(ranks, "a")[0]["message"] == "ValueError"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, object]:
    code = main(list(words))
    return code, json.loads(capsys.readouterr().out)


def test_a_dry_run_of_several_files_has_the_errors_of_each(
    write_job: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    good = write_job({"type": "example", "folder_path": str(tmp_path)}, name="good")
    bad = write_job({"type": "example", "folder_paht": "x"}, name="bad")
    code, found = printed(
        capsys, str(bad), "nosuch.yaml", str(good), "--dry-run", "--json"
    )
    assert code == 2
    assert [entry["file"] for entry in found] == [str(bad), "nosuch.yaml", str(good)]
    assert [len(entry["errors"]) for entry in found] == [2, 1, 0]
    unknown = found[0]["errors"][-1]
    assert (unknown["file"], unknown["line"]) == (str(bad), 1)
    assert unknown["message"] == "unknown key." and "folder_path" in unknown["remedy"]
    assert "processes" not in found[0] and found[2]["job"] == "good"
    code, one = printed(capsys, str(bad), "--dry-run", "--json")
    assert code == 2 and one == found[0]
    assert printed(capsys, "nosuch.yaml", "--dry-run", "--json")[1] == found[1]


def test_the_extensions_are_listed(capsys) -> None:
    code, found = printed(capsys, "--list-extensions", "--json")
    assert code == 0 and {"extensions", "without_types", "broken"} == found.keys()
    assert "example" in [entry["type"] for entry in found["extensions"]]


@pytest.mark.slow
def test_a_run_ends_with_a_line_of_json(
    run_py: Callable, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    images = make_pictures(tmp_path / "images", "a")
    good = write_job(trainer(images, train={"steps": 1}), name="good")
    bad = write_job(trainer(images, train={"steps": "x"}), name="bad")
    done = run_py(bad, good, "--recover", "--json")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    refused, ended = map(json.loads, lines)
    assert done.returncode == refused["exit_code"] == 2
    assert refused["file"] == str(bad) and refused["errors"][0]["message"]
    assert (ended["file"], ended["job"], ended["exit_code"]) == (str(good), "good", 0)
    assert ended["folders"] == ["output/good"] and ended["errors"] == []
    assert ended["files"] == ["output/good/good.safetensors"]

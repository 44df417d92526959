"""A job that was broken off goes on with the process that was not finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jobs import JobOptions
from toolkit.errors import UserError
from toolkit.files.run_files import JOB_STATE

STEP = """
from pathlib import Path

from toolkit.extension import Extension


class Step(Extension):
    uid = "step"
    name = "step"

    @classmethod
    def get_process(cls):
        from .process import StepProcess
        return StepProcess


class Folder(Extension):
    uid = "folder"
    name = "folder"

    @classmethod
    def get_process(cls):
        from .process import FolderProcess
        return FolderProcess


class Model(Extension):
    uid = "model"
    name = "model"

    @classmethod
    def get_process(cls):
        from .process import StepProcess
        return StepProcess

    @classmethod
    def get_config(cls):
        from .process import ModelConfig
        return ModelConfig


AI_TOOLKIT_EXTENSIONS = [Step, Folder, Model]
"""

PROCESS = """
from pathlib import Path

from jobs.process import BaseExtensionProcess, BaseTrainProcess
from toolkit.config.reading.process import ProcessConfig


class ModelConfig(ProcessConfig):
    path: str

    def outputs(self, job):
        return frozenset({Path(self.path)})

    def inputs_digest(self, job):
        return Path("input.txt").read_text() if Path("input.txt").exists() else ""


class StepProcess(BaseExtensionProcess):
    def run(self):
        with open("ran.txt", "a") as file:
            file.write(f"{self.process_id} ")
        if Path(f"break_{self.process_id}").exists():
            raise ValueError("broken off")
        if path := self.get_conf("path"):
            Path(path).mkdir(exist_ok=True)
        if Path("break_late").exists():
            raise ValueError("broken off")


class FolderProcess(BaseTrainProcess):
    def run(self):
        super().run()
        with open("ran.txt", "a") as file:
            file.write(f"{self.process_id} ")
"""

STEPS = ({"type": "step"}, {"type": "step", "name": "second"}, {"type": "step"})


@pytest.fixture
def start(
    build_job, write_extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[int]]:
    """Runs a job of these processes as one start of the program would; which of them
    ran."""
    monkeypatch.chdir(tmp_path)
    write_extension("step", STEP, process=PROCESS)

    def start(
        *sections: dict,
        restart: bool = False,
        restart_from: str | None = None,
        **job: object,
    ) -> list[int]:
        ran = tmp_path / "ran.txt"
        ran.unlink(missing_ok=True)
        job = build_job(*sections, **job)
        job.options = JobOptions(restart=restart, restart_from=restart_from)
        with suppress(ValueError):
            job.run()
        return [int(index) for index in ran.read_text().split()] if ran.exists() else []

    return start


def test_the_finished_ones_are_skipped_and_named(
    start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "break_2").touch()
    assert start(*STEPS) == [0, 1, 2]
    (tmp_path / "break_2").unlink()
    capsys.readouterr()
    assert start(*STEPS) == [2]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("process 1 of 3, step: finished before")
    assert second.startswith("process 2 of 3, second: finished before")
    assert start(*STEPS) == []
    assert start(*STEPS, restart=True) == [0, 1, 2]


def test_from_a_named_one_on_all_run_again_even_after_a_kill(
    start, tmp_path: Path
) -> None:
    assert start(*STEPS) == [0, 1, 2]
    (tmp_path / "break_1").touch()
    assert start(*STEPS, restart_from="second") == [1]
    (tmp_path / "break_1").unlink()
    assert start(*STEPS) == [1, 2]
    assert start(*STEPS, restart_from="[2]") == [2]
    with pytest.raises(
        UserError,
        match=r"--restart-from: the job has no process 'secnd'. Did you mean 'second'\?",
    ):
        start(*STEPS, restart_from="secnd")


def test_a_changed_one_runs_again_and_so_does_what_comes_after_it(
    start, tmp_path: Path
) -> None:
    assert start(*STEPS) == [0, 1, 2]
    changed = (
        {"type": "step"},
        {"type": "step", "name": "second", "lr": 1},
        {"type": "step"},
    )
    (tmp_path / "break_1").touch()
    assert start(*changed) == [1]
    # it is not finished, whatever was recorded of it before
    assert start(*changed) == [1]
    (tmp_path / "break_1").unlink()
    assert start(*changed) == [1, 2]
    assert start(*changed) == []


def test_a_variable_with_another_value_is_a_change_and_a_secret_is_none(
    start, monkeypatch
) -> None:
    steps = (
        {"type": "step", "lr": "${RATE}", "hf_token": "${MY_TOKEN}"},
        {"type": "step"},
    )
    monkeypatch.setenv("RATE", "1")
    for token in ("secret-number-one", "secret-number-two"):
        monkeypatch.setenv("MY_TOKEN", token)
        ran = start(*steps)
    assert ran == []
    monkeypatch.setenv("RATE", "2")
    assert start(*steps) == [0, 1]
    text = Path("output", "job", JOB_STATE).read_text()
    assert "secret" not in text


def test_what_was_removed_is_made_again(start, tmp_path: Path) -> None:
    steps = (
        {"type": "model", "path": str(tmp_path / "model")},
        {"type": "folder"},
        {"type": "step"},
    )
    assert start(*steps) == [0, 1, 2]
    assert start(*steps) == []
    (tmp_path / "model").rmdir()
    assert start(*steps) == [0, 1, 2]
    (tmp_path / "output" / "job").rename(tmp_path / "elsewhere")
    assert start(*steps) == [0, 1, 2]


def test_one_that_reads_something_else_now_runs_again(start, tmp_path: Path) -> None:
    """What it read when it began counts."""
    steps = ({"type": "model", "path": str(tmp_path / "model")}, {"type": "step"})
    source = tmp_path / "input.txt"
    source.write_text("one")
    assert start(*steps) == [0, 1]
    assert start(*steps) == []
    source.write_text("two")
    assert start(*steps) == [0, 1]
    assert start(*steps) == []


def test_one_that_broke_off_while_it_ran_again_is_not_finished(
    start, tmp_path: Path
) -> None:
    """Its old record matches, and a part of what it makes is there."""
    steps = ({"type": "model", "path": str(tmp_path / "model")}, {"type": "step"})
    assert start(*steps) == [0, 1]
    (tmp_path / "model").rmdir()
    (tmp_path / "break_late").touch()
    assert start(*steps) == [0]
    (tmp_path / "break_late").unlink()
    assert start(*steps) == [0, 1]


def test_a_drop_in_with_a_folder_of_run_files_runs_when_the_folder_is_gone(
    start, tmp_path: Path
) -> None:
    steps = (
        {"type": "step"},
        {"type": "folder", "name": "run", "training_folder": "runs"},
    )
    assert start(*steps) == [0, 1]
    assert json.loads((tmp_path / "runs" / "job" / JOB_STATE).read_text())[
        "finished"
    ].keys() == {"[0] step", "run"}
    assert start(*steps) == []
    (tmp_path / "runs" / "job" / "run").rename(tmp_path / "gone")
    assert start(*steps) == [1]


def test_jobs_of_another_name_know_nothing_of_each_other(start) -> None:
    assert start(*STEPS) == [0, 1, 2]
    assert start(*STEPS, name="other") == [0, 1, 2]


def test_a_job_of_one_process_keeps_no_record(start, tmp_path: Path) -> None:
    for _ in range(2):
        assert start({"type": "step"}) == [0]
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 100_000, "[]", '{"finished": 3}', '{"finished": {"[0] step": 1}}'],
)
def test_a_damaged_record_records_nothing(start, tmp_path: Path, content: str) -> None:
    assert start(*STEPS) == [0, 1, 2]
    (tmp_path / "output" / "job" / JOB_STATE).write_text(content)
    assert start(*STEPS) == [0, 1, 2]


def test_a_record_that_cannot_be_written_is_a_warning(
    start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output").write_text("a file where the folder should be")
    assert start(*STEPS) == [0, 1, 2]
    assert "cannot be written" in capsys.readouterr().err

"""The folder a trainer owns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ExtensionJob
from jobs.process import BaseTrainProcess

INIT = """
    from toolkit.extension import Extension
    from toolkit.config.process import ProcessConfig

    class Checked(ProcessConfig):
        training_folder: str = "checked_output"
        training_seed: int = 7
        own_folder: str | None = None
        def run_folder(self, job):
            from pathlib import Path
            return Path(self.own_folder) if self.own_folder else None

    class Plain(Extension):
        uid = "plain"
        @classmethod
        def get_process(cls):
            from jobs.process import BaseTrainProcess
            return BaseTrainProcess

    class WithConfig(Plain):
        uid = "checked"
        @classmethod
        def get_config(cls): return Checked

    AI_TOOLKIT_EXTENSIONS = [Plain, WithConfig]
"""


@pytest.fixture
def build(
    build_job: Callable[..., ExtensionJob],
    write_extension: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., BaseTrainProcess]:
    monkeypatch.chdir(tmp_path)
    write_extension("trainers", INIT)
    return lambda **section: build_job(section).process[0]


def test_the_folder_is_named_by_job_and_process(build) -> None:
    assert build(type="plain", training_folder="out").save_root == Path("out/job")
    assert build(type="plain", training_folder="out", name="second").save_root == Path("out/job/second")
    assert build(type="plain").save_root == Path("output/job")


def test_a_checked_section_knows_its_defaults_and_its_folder(build) -> None:
    process = build(type="checked")
    assert (process.save_root, process.training_seed) == (Path("checked_output/job"), 7)
    assert build(type="checked", own_folder="mine").save_root == Path("mine")


def test_the_seed_is_none_when_none_is_given(build) -> None:
    assert build(type="plain").training_seed is None
    assert build(type="plain", training_seed=5).training_seed == 5


def test_nothing_is_written_before_run_and_the_job_is_kept_unexpanded(
    build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "secret")
    process = build(type="plain", training_folder="out", word="${WORD}")
    assert process.get_conf("word") == "secret"
    assert not (tmp_path / "out").exists()
    process.run()
    assert [file.name for file in process.save_root.iterdir()] == ["config.yaml"]
    saved = (process.save_root / "config.yaml").read_text(encoding="utf-8")
    assert "${WORD}" in saved
    assert "secret" not in saved


def test_print(build, capsys: pytest.CaptureFixture[str]) -> None:
    build(type="plain").print("a", 1)
    assert capsys.readouterr().out == "a 1\n"

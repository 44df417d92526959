"""The time that compiling took is known to the next plan, as long as the compiled
programs are cached; that of a step and of a sample image, as long as the cache of the
training folder is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.memory.kept_times import (
    RunTimes,
    compile_seconds,
    remember_compile_seconds,
    remember_run_times,
    run_times,
)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches"))
    return tmp_path / "caches"


def test_the_last_time_on_a_gpu_is_known(caches: Path) -> None:
    assert compile_seconds("NVIDIA H100") is None
    for gpu, seconds in (
        ("NVIDIA H100", 46.71),
        ("NVIDIA L4", 80),
        ("NVIDIA H100", 11.04),
        ("", 5),
    ):
        remember_compile_seconds(gpu, seconds)
    assert (
        compile_seconds("NVIDIA H100"),
        compile_seconds("NVIDIA L4"),
        compile_seconds(""),
    ) == (11.0, 80.0, None)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"G": "long"}', '{"G": -1}', "[" * 100_000]
)
def test_a_damaged_file_is_replaced(caches: Path, text: str) -> None:
    caches.mkdir()
    (caches / "atelier_compile_times.json").write_text(text)
    assert compile_seconds("G") is None
    remember_compile_seconds("G", 3)
    assert compile_seconds("G") == 3


def test_a_folder_that_cannot_be_written_to_ends_no_run(
    caches: Path, said: list[str]
) -> None:
    caches.write_text("a file")
    remember_compile_seconds("G", 3)
    assert len(said) == 1 and "is not kept for the next plan" in said[0]


def test_it_lies_with_the_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from toolkit.memory import kept_times

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert str(kept_times._compile_file().parent) == default_cache_dir()


def test_the_last_time_of_a_run_is_known(tmp_path: Path) -> None:
    folder = str(tmp_path / "output")
    assert run_times(folder, "a job") is None
    for key, times in (
        ("a job", RunTimes(1.5, 20)),
        ("another", RunTimes(3)),
        ("a job", RunTimes(1.23456)),
    ):
        remember_run_times(folder, key, times)
    assert run_times(folder, "a job") == RunTimes(1.235, 0)
    assert run_times(folder, "another") == RunTimes(3, 0)


@pytest.mark.parametrize(
    "entry",
    [5, {}, {"step_s": "long"}, {"step_s": -1}, {"step_s": None, "picture_s": 2}],
)
def test_an_entry_of_a_run_that_says_nothing_is_none(
    tmp_path: Path, entry: object
) -> None:
    file = tmp_path / "_cache" / "run_times.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"a job": entry}))
    assert run_times(str(tmp_path), "a job") is None


def test_no_run_fails_because_its_time_cannot_be_kept(
    tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "_cache").write_text("a file")
    remember_run_times(str(tmp_path), "a job", RunTimes(1))
    assert (
        len(said) == 1 and "the time of a step is not kept for the next plan" in said[0]
    )

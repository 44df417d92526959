"""The time that compiling took is known to the next plan, as long as the compiled programs are cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.memory.flops import StepWork
from toolkit.memory.kept_times import compile_seconds, remember_compile_seconds


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches"))
    return tmp_path / "caches"


def test_the_last_time_on_a_gpu_is_known(caches: Path) -> None:
    assert compile_seconds("NVIDIA H100") is None
    for gpu, seconds in (("NVIDIA H100", 46.71), ("NVIDIA L4", 80), ("NVIDIA H100", 11.04), ("", 5)):
        remember_compile_seconds(gpu, seconds)
    assert (compile_seconds("NVIDIA H100"), compile_seconds("NVIDIA L4"), compile_seconds("")) == (11.0, 80.0, None)


@pytest.mark.parametrize("text", ["", "[1]", '{"G": "long"}', '{"G": -1}', "[" * 100_000])
def test_a_damaged_file_is_replaced(caches: Path, text: str) -> None:
    caches.mkdir()
    (caches / "atelier_compile_times.json").write_text(text)
    assert compile_seconds("G") is None
    remember_compile_seconds("G", 3)
    assert compile_seconds("G") == 3


def test_a_folder_that_cannot_be_written_to_ends_no_run(caches: Path, said: list[str]) -> None:
    caches.write_text("a file")
    remember_compile_seconds("G", 3)
    assert len(said) == 1 and "is not kept for the next plan" in said[0]


def test_it_lies_with_the_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from toolkit.memory import compile_times

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert str(compile_times._file().parent) == default_cache_dir()


def test_a_short_run_compiles_where_its_programs_are_cached() -> None:
    work = StepWork(flops=100e12, kernels=20_000)
    saved = 100 * (work.seconds("NVIDIA H100", compiled=False) - work.seconds("NVIDIA H100"))
    assert not work.against_compiling("NVIDIA H100", 100, saved - 1)
    assert f"it takes about {saved + 1:.0f} s" in work.against_compiling("NVIDIA H100", 100, saved + 1)

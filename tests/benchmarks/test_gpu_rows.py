"""The rows of the script for a GPU, small and on a CPU."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_rows
from benchmarks.gpu_rows import ROWS, Asked, measure
from tests.conftest import ROOT, child_environment
from tests.parts import needs_stand_in
from tests.processes import python

QUICK: dict[str, Any] = {"size": "XS", "device": "cpu"}


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., Asked]:
    """How a row is measured here, in this process."""
    return lambda row, **own: Asked(row, tmp_path, **QUICK | own)


@pytest.mark.slow
def test_the_plain_loop_does_the_work_of_the_program(
    asked: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of each step is that of diffusers and peft."""
    one = replace(ROWS["plain loop"], captions=1)
    monkeypatch.setitem(gpu_rows.ROWS, "plain loop", one)
    ours, plain = (
        measure(asked(row, dtype="fp32", backend="eager"))
        for row in ("eager", "plain loop")
    )
    for found in (ours, plain):
        assert found["status"] == "measured" and found["level"] == "full"
        assert len(found["s_each"]) == 2
        assert min(found["s_each"]) <= found["s"] <= max(found["s_each"])
        assert len(found["losses"]) == 3 and found["peak_gb"] is None
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_out_of_memory_is_a_result_and_any_other_failure_is_not(
    asked: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise failures.pop()

    monkeypatch.setattr(gpu_rows, "_plain", fail)
    failures: list[Exception] = [
        RuntimeError("CUDA error"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"),
    ]
    assert measure(asked("plain loop")) == {
        "row": "plain loop",
        "status": "out of memory",
        "reason": "CUDA out of memory.",
        "what": ROWS["plain loop"].what,
    }
    with pytest.raises(RuntimeError, match="CUDA error"):
        measure(asked("plain loop"))


def test_a_job_the_program_refuses_is_a_result_with_its_reason(
    asked: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        gpu_rows.ROWS, "eager", gpu_rows.Row("refused", train={"no_such_key": 1})
    )
    result = measure(asked("eager"))
    assert result["status"] == "refused"
    assert "no_such_key" in result["reason"] and "/tmp" not in result["reason"]


@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].plain])
def test_every_row_is_a_job_the_program_takes(
    name: str, asked: Callable[..., Asked], tmp_path: Path
) -> None:
    """At a size with enough blocks to swap; only what a GPU needs is left to be seen
    there."""
    row, size = ROWS[name], gpu_rows.DRAWN_SIZES["S"]
    gpu_rows.write_folder(tmp_path / "model", size, row.family)
    path = tmp_path / "job.json"
    section = gpu_rows.job_section(row, size, asked(name))
    path.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": "bench", "process": [section]}}
        )
    )
    config = gpu_rows.load_job(path, lambda _: gpu_rows.SdTrainerConfig)
    given = config.processes[0].section
    assert given.model.blocks_to_swap == int(4 * row.swapped)
    assert given.train.checkpointing_level() == row.train.get(
        "gradient_checkpointing", "auto"
    )
    assert (
        given.train.compile.enabled
        == row.train.get("compile", {"enabled": "auto"})["enabled"]
    )
    assert len(given.datasets[0].control_path) == row.references


@pytest.mark.slow
def test_a_row_that_is_cut_off_leaves_what_it_knew(
    asked: Callable[..., Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> None:
        raise RuntimeError("it was asked to fail")

    monkeypatch.setattr(gpu_rows, "finish", fail)  # after the first step
    partial = tmp_path / "known.json"
    row = asked("eager", partial=partial)
    with pytest.raises(RuntimeError, match="asked to fail"):
        measure(row)
    known = json.loads(partial.read_text())
    assert (known["row"], known["status"], known["s"]) == ("eager", "cut off", None)
    assert known["reason"] == "the first step was not done" and known["ready_s"] > 0
    monkeypatch.undo()
    measure(row)
    known = json.loads(partial.read_text())
    assert (
        known["reason"] == "after step 3"
        and known["s"] > 0
        and len(known["s_each"]) == 2
    )


ON_CUDA = """
import json, time

import bitsandbytes  # looks for CUDA's own library where there is a device
import torch
from tests.stand_in_cuda import built, install

install(built())

class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.at = time.perf_counter()
    def synchronize(self): pass
    def query(self): return True
    def elapsed_time(self, end): return 1e3 * (end.at - self.at)

torch.cuda.Event, torch.cuda.max_memory_reserved = Event, torch.cuda.max_memory_allocated
torch.cuda.set_per_process_memory_fraction = lambda *_: None
from pathlib import Path
from benchmarks.gpu_rows import Asked, measure
for name in ("6 GB", "plain loop"):
    folder = Path(name)
    folder.mkdir()
    given = Asked(name, folder.resolve(), "XS", "cuda:0", "fp32", partial=Path(f"{name}.json"))
    print(json.dumps(measure(given)))
"""
"""Rows on the stand-in for CUDA, which records no events."""


@pytest.mark.slow
@needs_stand_in
def test_rows_on_a_device_that_counts_its_memory(tmp_path: Path) -> None:
    said = python(
        ON_CUDA, cwd=tmp_path, env=child_environment({"PYTHONPATH": str(ROOT)})
    )
    ours, plain = json_lines(said)
    for result in (ours, plain):
        assert 0 < result["training_gb"] <= result["peak_gb"] and result["s"] > 0
        known = json.loads((tmp_path / f"{result['row']}.json").read_text())
        assert known["training_gb"] == pytest.approx(result["training_gb"], rel=1e-3)
    # the plan rounds a tiny model up
    assert ours["planned_training_gb"] > ours["training_gb"]

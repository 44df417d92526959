import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_gpu, gpu_rows, kernel_rates
from benchmarks.gpu_rows import CACHE, KERNELS, ROWS
from tests.conftest import ROOT, child_environment
from tests.stand_in_cuda import COMPILER

QUICK = (
    "--size", "XS", "--device", "cpu", "--warm-up", "1", "--steps", "2", "--accumulation", "2", "--calls", "1",
    "--samples", "1",
)  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows are measured here, where importing is done already; their names as they
    come."""
    names = []

    def run(name: str, asked: Any, seconds: float) -> dict[str, Any]:
        names.append(name)
        asked = bench_gpu.arguments([*bench_gpu.command_of(name, asked)[2:]])
        return bench_gpu.run_row(asked)

    monkeypatch.setattr(bench_gpu, "run_child", run)
    return names


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_rows_are_measured_once_and_reported_with_their_share_of_the_peak(
    in_this_process: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_rates, "SQUARE", 64)
    one = replace(ROWS["plain loop"], captions=1)
    monkeypatch.setitem(gpu_rows.ROWS, "plain loop", one)
    given = [
        *QUICK,
        "--dtype",
        "fp32",
        "--results",
        str(tmp_path / "gpu.jsonl"),
        "--rows",
        KERNELS,
        "eager",
        "plain loop",
        CACHE,
    ]
    bench_gpu.main(given)
    kernels, ours, plain, cache, last = json_lines(capsys.readouterr().out)
    assert "bf16 forward 32x64x64" in kernels["kernels"]
    assert [one["status"] for one in (ours, plain)] == ["measured"] * 2
    assert ours["level"] == plain["level"] == "full"
    assert len(ours["s_each"]) == 2 and min(ours["s_each"]) <= ours["s"] <= max(
        ours["s_each"]
    )
    # The same work: the loss of each step is that of diffusers and peft.
    losses = {
        line["row"]: line.get("losses")
        for line in json_lines((tmp_path / "gpu.jsonl").read_text())
    }
    assert len(losses["eager"]) == len(losses["plain loop"]) == 3
    assert losses["eager"] == pytest.approx(losses["plain loop"], rel=1e-5)
    assert 0 < ours["mfu"] < ours["hfu"]
    assert ours["mfu"] == pytest.approx(
        100 * ours["model_tflop"] / ours["s"] / ours["peak_tflops"], rel=1e-3
    )
    assert ours["peak_gb"] is None
    assert cache["samples_per_s"] > 0
    assert last["states"] == dict.fromkeys(
        [KERNELS, "eager", "plain loop", CACHE], "measured"
    )

    in_this_process.clear()
    bench_gpu.main(given)
    assert in_this_process == []
    assert json_lines(capsys.readouterr().out)[1] == ours
    bench_gpu.main([*given, "--accumulation", "1", "--minutes", "1e-9"])
    assert in_this_process == []
    said = capsys.readouterr().out
    assert "no time left" in said
    assert [line["status"] for line in json_lines(said)[:-1]] == ["not measured"] * 4


def test_without_a_gpu_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        bench_gpu.main(["--results", str(tmp_path / "gpu.jsonl")])
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_is_a_result_and_any_other_failure_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = bench_gpu.arguments([*QUICK, "--row", "plain loop"])

    def fail(*_: object) -> str:
        raise failures.pop()

    monkeypatch.setattr(gpu_rows, "_plain", fail)
    failures: list[Exception] = [
        RuntimeError("CUDA error"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"),
    ]
    assert bench_gpu.run_row(asked) == {
        "row": "plain loop",
        "status": "out of memory",
        "reason": "CUDA out of memory.",
        "what": ROWS["plain loop"].what,
    }
    with pytest.raises(RuntimeError, match="CUDA error"):
        bench_gpu.run_row(asked)


def test_a_job_the_program_refuses_is_a_result_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        gpu_rows.ROWS, "eager", gpu_rows.Row("refused", train={"no_such_key": 1})
    )
    result = bench_gpu.run_row(bench_gpu.arguments([*QUICK, "--row", "eager"]))
    assert result["status"] == "refused"
    assert "no_such_key" in result["reason"] and "/tmp" not in result["reason"]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            """print('{"row": "1", "status": "measured"}'); print("bye")""",
            {"status": "measured"},
        ),
        (
            "import sys; print('torch says'); sys.exit('no such kernel')",
            {"reason": "exit status 1: no such kernel"},
        ),
        (
            "import os; os.kill(os.getpid(), 9)",
            {"reason": "exit status -9: it said nothing"},
        ),
    ],
    ids=["measured", "failed", "killed"],
)
def test_a_row_has_a_process_of_its_own(
    program: str, expected: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        bench_gpu, "command_of", lambda name, asked: [sys.executable, "-c", program]
    )
    asked = bench_gpu.arguments(["--results", str(tmp_path / "gpu.jsonl")])
    (tmp_path / "gpu.log").write_text("{an earlier row}\n")
    assert bench_gpu.run_child("1", asked, 60).items() >= expected.items()


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_job_the_program_takes(name: str, tmp_path: Path) -> None:
    """At a size with enough blocks to swap; only what a GPU needs is left to be seen
    there."""
    row, size = ROWS[name], bench_gpu.DRAWN_SIZES["S"]
    if row.plain:
        pytest.skip("not the program")
    gpu_rows.write_folder(tmp_path / "model", size, row.family)
    asked = bench_gpu.arguments([*QUICK])
    path = tmp_path / "job.json"
    section = gpu_rows.job_section(row, size, tmp_path, asked)
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


DIFFERENT = ("full_offload", "int8, 24 GB")
"""The others differ from them in a level, in what is compiled, in what the test above
checks, or are measured in test_verify_gpu.py."""


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_row_can_be_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which takes seconds; the test below has it."""
    train = {**ROWS[name].train, "compile": {"enabled": False}}
    monkeypatch.setitem(gpu_rows.ROWS, name, replace(ROWS[name], train=train))
    given = [
        "--size",
        "XS",
        "--device",
        "cpu",
        "--warm-up",
        "0",
        "--steps",
        "1",
        "--accumulation",
        "1",
    ]
    result = bench_gpu.run_row(bench_gpu.arguments([*given, "--row", name]))
    assert result["status"] == "measured" and result["losses"][0] > 0
    assert 0 < result["ready_s"] < result["first_step_s"]


@pytest.mark.slow
def test_a_row_that_is_cut_off_leaves_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu_rows.FAIL, "1")
    partial = tmp_path / "known.json"
    asked = bench_gpu.arguments([*QUICK, "--row", "eager", "--partial", str(partial)])
    with pytest.raises(RuntimeError, match="asked to fail"):
        bench_gpu.run_row(asked)
    known = json.loads(partial.read_text())
    assert (known["row"], known["status"], known["s"]) == ("eager", "cut off", None)
    assert known["reason"] == "the first step was not done" and known["ready_s"] > 0
    monkeypatch.delenv(gpu_rows.FAIL)
    bench_gpu.run_row(asked)
    known = json.loads(partial.read_text())
    assert (
        known["reason"] == "after step 3"
        and known["s"] > 0
        and len(known["s_each"]) == 2
    )


ON_CUDA = """
import json, sys, time

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
from benchmarks import bench_gpu
for name in ("6 GB", "plain loop"):
    given = bench_gpu.arguments([*sys.argv[1:], "--row", name, "--partial", f"{name}.json"])
    print(json.dumps(bench_gpu.run_row(given)))
"""
"""Rows on the stand-in for CUDA, which records no events."""


@pytest.mark.slow
@pytest.mark.skipif(
    COMPILER is None,
    reason="compiles the device that stands in for CUDA, and finds no c++",
)
@pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="this PyTorch is built with CUDA"
)
def test_rows_on_a_device_that_counts_its_memory(tmp_path: Path) -> None:
    given = (*QUICK, "--device", "cuda:0", "--dtype", "fp32")
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-c", ON_CUDA, *given]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ours, plain = json_lines(run.stdout)
    for result in (ours, plain):
        assert 0 < result["training_gb"] <= result["peak_gb"] and result["s"] > 0
        known = json.loads((tmp_path / f"{result['row']}.json").read_text())
        assert known["training_gb"] == pytest.approx(result["training_gb"], rel=1e-3)
    # the plan rounds a tiny model up
    assert ours["planned_training_gb"] > ours["training_gb"]

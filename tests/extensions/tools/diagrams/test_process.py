"""`run.py diagrams` and `type: diagrams`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.running import run_job, run_tool


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("vae", "flow"):
        folder = tmp_path / "output" / "job" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(
            json.dumps({"name": name, "status": "finished"})
        )
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "epoch": 0, "loss": 1.0}) + "\n"
        )
    return tmp_path / "output" / "job"


@pytest.mark.slow
def test_a_command_draws_a_run_or_all_in_a_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_tool("diagrams", ["output/job/vae"])
    assert f"{Path('output/job/vae')}: 3 files in output/job/vae/graph" in said
    run_tool("diagrams", ["output/job", "--output", "together"])
    names = {path.name for path in (tmp_path / "together").iterdir()}
    assert {"training_losses_vae.png", "training_losses_flow.png"} <= names


@pytest.mark.slow
def test_a_folder_above_runs_gets_their_diagrams_too(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FluxFlow's guide says of `outputs/`: `outputs/graph/training_losses.png`."""
    monkeypatch.chdir(tmp_path)
    run_tool("diagrams", ["output/job"])
    own = (runs / "flow" / "graph" / "training_losses.png").read_bytes()
    assert (runs / "graph" / "training_losses_flow.png").read_bytes() == own
    assert (runs / "graph" / "training_summary_vae.txt").is_file()
    shutil.rmtree(runs / "vae"), shutil.rmtree(runs / "graph")
    run_tool("diagrams", ["output"])
    assert (tmp_path / "output" / "graph" / "training_losses.png").read_bytes() == own


@pytest.mark.slow
def test_a_job_draws_what_it_has_trained(
    write_job, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_job(write_job({"type": "diagrams", "run": "output/job/flow"}))
    assert (runs / "flow" / "graph" / "training_overview.png").is_file()


def test_a_folder_without_a_run_is_refused_and_an_ending_makes_a_config(
    run_py, runs: Path, tmp_path: Path
) -> None:
    refused = run_py("diagrams", "output/nothing")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "run: 'output/nothing' contains no run" in refused.stderr
    (tmp_path / "diagrams.yaml").write_text(
        "job: extension\nconfig: {name: a, process: [{type: nothing}]}\n"
    )
    assert "unknown process type 'nothing'" in run_py("diagrams.yaml").stderr

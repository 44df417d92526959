"""The program as a library, beside the files of another program that has the same
names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import atelier
from tests.conftest import ROOT, child_environment
from tests.processes import python


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with another program's `run.py`, `toolkit/` and so on."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "toolkit/__init__", "jobs/__init__", "extensions/__init__"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('{name} of another program')\n")
    return tmp_path


def said(code: str) -> str:
    """What Python prints for this code, in the working directory."""
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    return python(f"import atelier\n{code}", cwd=Path(), env=environment)


def test_a_job_is_refused_by_our_modules_and_a_second_one_may_follow(
    beside: Path,
) -> None:
    code = "for job in ('no.yaml', {}): print(atelier.train(job).exit_code)"
    assert said(code) == "2\n2\n"


def test_modules_of_the_other_program_that_are_imported_are_named(beside: Path) -> None:
    (beside / "toolkit" / "__init__.py").write_text("")
    code = (
        "import toolkit\ntry: atelier.runs()\nexcept ImportError as error: print(error)"
    )
    place = beside / "toolkit" / "__init__.py"
    assert said(code) == (
        f"'toolkit' is imported already, from {place}. Use atelier in a process of its own.\n"
    )


def test_runs_have_steps_losses_their_best_file_and_samples(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "output" / "maya"
    (folder / "samples").mkdir(parents=True)
    status = {"name": "maya", "status": "finished", "step": 3}
    (folder / "run.json").write_text(json.dumps(status))
    rows = [
        {"step": step, "loss": loss} for step, loss in ((1, 0.5), (2, 0.25), (3, 0.1))
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    for name in ("maya_000000002", "maya"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    found = atelier.runs(tmp_path / "output")
    assert found == atelier.runs(str(folder)) and len(found) == 1
    (run,) = found
    assert (run.folder, run.status, run.steps) == (folder, "finished", 3)
    assert run.losses == [(1, 0.5), (2, 0.25), (3, 0.1)] and run.samples == []
    assert run.best == folder / "maya.safetensors"
    (folder / "run.json").write_text(
        json.dumps({**status, "best": {"step": 2, "loss": 1}})
    )
    assert atelier.runs(folder)[0].best == folder / "maya_000000002.safetensors"
    assert atelier.runs(tmp_path / "nothing") == []


@pytest.mark.slow
def test_a_job_trains_from_any_folder_and_its_run_is_read(beside: Path) -> None:
    shutil.copytree(ROOT / "config" / "examples" / "photos" / "40_photo", "images")
    process = {
        "type": "sd_trainer",
        "device": "cpu",
        "model": {"name_or_path": str(ROOT / "config" / "examples" / "tiny_mascots")},
        "network": {"linear": 2},
        "datasets": [{"folder_path": "images", "resolution": 64}],
        "train": {"steps": 2},
        "sample": {"prompts": ["a cup"], "width": 64, "height": 64, "sample_steps": 1},
    }
    job = {"job": "extension", "config": {"name": "one", "process": [process]}}
    Path("job.json").write_text(json.dumps(job))
    code = (
        "done = atelier.train('job.json')\n"
        "[run] = atelier.runs()\n"
        "print('\\n', done.exit_code, run.folder == done.folder, run.steps,"
        " len(run.losses), run.best, len(run.samples))"
    )
    last = said(code).splitlines()[-1]
    assert last == " 0 True 2 2 output/one/one.safetensors 2"

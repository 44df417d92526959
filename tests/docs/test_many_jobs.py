"""docs/many_jobs.md: its block of Python, its workflow, its list for several
machines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, child_environment
from tests.docs.pages import blocks

JOB = """
job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      training_folder: output
      device: cpu
      network: {linear: 2}
      datasets: [{folder_path: PHOTOS, resolution: 64}]
      train: {steps: 1, disable_sampling: true}
      logging: {report: false}
      model: {name_or_path: MODEL}
"""


def write_job(folder: Path, name: str, model: Path, steps: int = 1) -> None:
    """A job in a folder, on photographs."""
    photos = ROOT / "config" / "examples" / "pairs" / "after"
    folder.mkdir(parents=True, exist_ok=True)
    text = JOB.replace("my_char", name).replace("steps: 1", f"steps: {steps}")
    (folder / f"{name}.yaml").write_text(
        text.replace("PHOTOS", str(photos)).replace("MODEL", str(model))
    )


@pytest.mark.slow
def test_the_workflow_of_ci_passes_and_fails_where_it_should(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Its steps as GitHub runs them, but for the installation."""
    write_job(tmp_path / "config", "my_char", tiny_model)
    (tmp_path / "config" / "examples").symlink_to(ROOT / "config" / "examples")
    (tmp_path / "bin").mkdir()
    for name, script in (("atelier", f"{ROOT}/run.py"), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        command.chmod(0o755)
    environment = child_environment(
        {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    )

    def code(step: str) -> int:
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
        return subprocess.run(shell, cwd=tmp_path, env=environment).returncode

    (workflow,) = blocks("docs/many_jobs.md", "yaml")
    steps = yaml.safe_load(workflow.text)["jobs"]["train"]["steps"]
    install, plan, train, check, learns = (s["run"] for s in steps if "run" in s)
    assert install == "pip install -r requirements.txt"
    assert code(learns) == 1, "nothing is trained yet"
    assert [code(step) for step in (plan, train, check, learns)] == [0] * 4
    assert code(plan.replace(" --dry-run", " --set train.lrr=1 --dry-run")) == 2


@pytest.mark.slow
def test_several_processes_empty_one_list_of_jobs(
    tiny_model: Path, tmp_path: Path, start_py: Callable
) -> None:
    names = ("a", "b", "c")
    for name in names:
        write_job(tmp_path / "night", name, tiny_model, steps=40)
    files = [f"night/{name}.yaml" for name in names]
    started = [start_py(*files, "-r", cwd=tmp_path) for _ in range(2)]
    codes = [child.wait(300) for child in started]
    assert min(codes) in (0, 1) and max(codes) <= 1, [one.outputs for one in started]
    printed = "".join(output for child in started for output in child.outputs)
    assert all((tmp_path / "output" / n / f"{n}.safetensors").is_file() for n in names)
    assert printed.count("\ntraining_seed ") == 3, "each was trained once"
    assert "is running in this folder" in printed or "nothing to do" in printed


@pytest.mark.slow
def test_the_block_of_python_trains(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path / "config", "my_char", tiny_model)
    (block,) = blocks("docs/many_jobs.md", "python")
    exec(compile(block.text, "many_jobs.md", "exec"), {})
    said = capsys.readouterr().out
    for rate in ("1e-4", "2e-4"):
        name = f"my_char_{rate}"
        assert f"0 output/{name} ['output/{name}/{name}.safetensors']" in said
        assert f"\noutput/{name} finished " in said

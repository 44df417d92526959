"""The files for many jobs of one GPU: what bash, Slurm, Kubernetes, SkyPilot and dstack
would read of them, and the scripts with a stand-in for Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.processes import output_of

MANY = ROOT / "docker" / "engines" / "many"

SBATCH = {
    "job-name", "array", "ntasks", "gpus", "cpus-per-task", "mem", "time", "signal", "requeue", "open-mode", "output",
}  # fmt: skip
"""Options of sbatch(1), Slurm 22.05."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "kubernetes_jobs": {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": str},
        "spec": {
            "completionMode": "Indexed",
            "completions": int,
            "parallelism": int,
            "backoffLimitPerIndex": int,
            "maxFailedIndexes": int,
            "podFailurePolicy": {"rules": list},
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": int,
                    "containers": list,
                    "volumes": list,
                }
            },
        },
    },
    "skypilot_job": {
        "name": str,
        "resources": {
            "accelerators": str,
            "use_spot": bool,
            "job_recovery": {"max_restarts_on_errors": int},
        },
        "envs": {"JOB": type(None)},
        "workdir": str,
        "file_mounts": {"/data": {"name": str, "mode": "MOUNT_CACHED"}},
        "setup": str,
        "run": str,
    },
    "dstack_job": {
        "type": "task",
        "image": str,
        "working_dir": str,
        "env": list,
        "commands": list,
        "volumes": list,
        "resources": {"gpu": {"memory": str, "count": int}},
        "spot_policy": "auto",
        "retry": {"on_events": list, "duration": str},
        "stop_duration": str,
        "max_duration": str,
    },
}
"""File -> its keys, with the value or the type that they need: of Kubernetes 1.33 (Job,
batch/v1: `podFailurePolicy` requires `restartPolicy: Never`, and
`backoffLimitPerIndex` an indexed job), SkyPilot 0.14.1 (task YAML), and dstack 0.20
(task)."""


def fits(value: Any, wanted: Any, at: str) -> None:
    """Whether a value has the keys of a schema and no other."""
    if isinstance(wanted, dict):
        assert isinstance(value, dict) and value.keys() == wanted.keys(), at
        for key, inner in wanted.items():
            fits(value[key], inner, f"{at}.{key}")
    elif isinstance(wanted, type):
        assert type(value) is wanted, at
    else:
        assert value == wanted, at


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_file_has_the_shape_that_the_engine_takes(name: str) -> None:
    text = (MANY / f"{name}.yaml").read_text(encoding="utf-8")
    fits(yaml.safe_load(text), SCHEMAS[name], name)


def test_a_pod_of_kubernetes_runs_the_line_of_its_index() -> None:
    spec = yaml.safe_load((MANY / "kubernetes_jobs.yaml").read_text())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    rules = {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"]}
    assert rules["FailIndex"]["onExitCodes"] == {"operator": "In", "values": [2]}
    shell, flag, command = container["command"]
    echoed = command.partition("exec ")[2].replace("bash", "echo", 1)
    environment = {"JOB_COMPLETION_INDEX": "6", **os.environ}
    assert output_of(shell, flag, echoed, env=environment).split()[1:] == [
        "jobs.txt",
        "7",
    ]


@pytest.mark.parametrize("name", ["one_of.sh", "slurm_array.sbatch"])
def test_bash_reads_the_script(name: str) -> None:
    subprocess.run(["bash", "-n", MANY / name], check=True)


def test_slurm_knows_the_options_of_the_array() -> None:
    text = (MANY / "slurm_array.sbatch").read_text(encoding="utf-8")
    head, _, rest = text.partition("set -u")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert options.keys() == SBATCH and "#SBATCH" not in rest
    assert len(re.findall("^#SBATCH", head, re.MULTILINE)) == len(options)
    assert re.fullmatch(r"1-\d+%\d+", options["array"])
    assert re.fullmatch(r"B:TERM@\d+", options["signal"]) and options["gpus"] == "1"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a list of jobs, with stand-ins for python and scontrol."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docker").symlink_to(ROOT / "docker")
    (tmp_path / "jobs.txt").write_text("a.yaml --name one\nb.yaml --set train.lr=1\n")
    tools = {
        "python": 'echo "$@"; if [ "$3" = --name ]; then exit 3; fi; trap "exit 75" TERM; echo x >ready; '
        "while :; do sleep 0.05; done",
        "scontrol": 'echo "$@" >asked',
    }
    (tmp_path / "bin").mkdir()
    for name, script in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    return tmp_path


def start(number: int, list_: str = "jobs.txt") -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", MANY / "slurm_array.sbatch", list_],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_task_runs_its_line_and_ends_with_its_code(engine: Path) -> None:
    assert start(1).wait() == 3
    words = (engine / "results" / "1.out").read_text().split()
    assert words[0].endswith("/run.py") and Path(words[0]).resolve() == ROOT / "run.py"
    assert words[1:] == ["a.yaml", "--name", "one", "--json"]
    absent = start(7)
    _, said = absent.communicate()
    assert absent.returncode == 2 and "jobs.txt has no job in line 7" in said


def test_a_task_that_is_stopped_saves_and_is_queued_again(engine: Path) -> None:
    task = start(2)
    while not (engine / "ready").exists():
        assert task.poll() is None
    task.send_signal(signal.SIGTERM)
    assert task.wait() == 75
    assert (engine / "asked").read_text().split() == ["requeue", "9_2"]

"""What a dry run says of the run's folder, time and disk, against what the run then does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.light_start import FORBID
from tests.running import run_job
from toolkit.config import load_job
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.log import shown
from toolkit.memory.flops import HOST_S, KERNELS_PER_BLOCK
from toolkit.plan import planning
from toolkit.train.lock import run_lock

Plan = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def job(write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A job on two images, with these changes of its section."""
    monkeypatch.chdir(tmp_path)
    data = make_pictures(tmp_path / "data", "a", "b")
    return lambda name="job", **changes: write_job(trainer(data, **changes), name=name)


@pytest.fixture
def plan() -> Plan:
    """The dry run of a job: its entry of the JSON, and its words."""
    table = discover()

    def plan(path: Path, **options: bool) -> tuple[dict[str, Any], str]:
        found = plan_job(load_job(path, table.find_config), **options)
        return found.to_json()["processes"][0], found.render()

    return plan


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a job; what it printed, or the error that it ended with."""

    def run(path: Path, **options: bool) -> str:
        capsys.readouterr()
        try:
            with shown():
                run_job(path, **options)
        except (UserError, RunError) as error:
            return str(error)
        return capsys.readouterr().out

    return run


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its time of writing, but for the lock, which every start takes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.lock"]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_on_a_known_gpu_the_first_dry_run_calculates_the_time(job, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"cuda:0": "NVIDIA L40S", "cuda:1": "NVIDIA GeForce GT 710"}
    monkeypatch.setattr(planning, "gpu_name", lambda device: here.get(device, ""))
    found, words = plan(job(device="cuda:0", train={"gradient_accumulation": 3}))
    time = found["time"]
    assert (time["steps"], time["calculated_for"]) == (2, "NVIDIA L40S")
    # Of two blocks, which compiling does not pay for.
    assert time["step_s"] == pytest.approx(3 * 2 * KERNELS_PER_BLOCK * HOST_S)
    assert "calculated for NVIDIA L40S; loading, compiling, encoding" in words
    published = {"model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"}}
    for others in ({"device": "cuda:1"}, {"device": "auto", **published}):  # its rate is not known; none is here
        found, words = plan(job(**others))
        assert found["time"]["calculated_for"] == "an H100" and "time: about " in words
    for device in ("cpu", "auto"):  # the tiny model is trained without a GPU
        found, words = plan(job(device=device))
        assert found["time"] is None and "time: the first steps will tell" in words


def test_the_time_of_a_step_is_not_kept_and_the_guide_does_not_promise_it(job, plan: Plan, run) -> None:
    run(job())
    assert "time: the first steps will tell" in plan(job(train={"steps": 3}))[1]
    guide = " ".join((ROOT / "docs" / "first_character.md").read_text(encoding="utf-8").split())
    assert "The time is calculated" in guide and "on a CPU `the first steps will tell`" in guide
    assert "earlier run" not in guide


def test_a_short_run_on_a_known_gpu_compiles_nothing_and_the_plan_says_why(
    job, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(planning, "gpu_name", lambda device: gpu)
    took: dict[str, float] = {}
    monkeypatch.setattr(planning, "compile_seconds", took.get)
    short = job(device="cuda:0", train={"steps": 240})
    line = r"train\.compile auto: the blocks are not compiled: it takes about 47 s, and 240 steps of [\d.]+ instead of "
    found = re.search(line + rf"[\d.]+ s \(calculated for {gpu}\) save (\d+) s", plan(short)[1])
    assert found is not None and 0 < int(found[1]) < 47
    for train in ({"steps": 9000}, {"steps": 240, "compile": {"enabled": True}}):
        assert "the blocks are not compiled" not in plan(job(device="cuda:0", train=train))[1]
    took[gpu] = int(found[1]) - 1  # cached programs, the last time
    assert "the blocks are not compiled" not in plan(short)[1]


def test_what_is_said_of_a_folder_is_what_the_run_does(job, plan: Plan, run, tmp_path: Path) -> None:
    """Beside what tests/jobs/process/test_image_trainer.py holds for all trainers."""
    folder = tmp_path / "output" / "job"
    run(job())
    before = contents(folder)
    for changes, options in (
        ({"train": {"lr": 0.02, "steps": 9}}, {}),
        ({"network": {"type": "lora", "linear": 8}}, {"allow_change": True}),
        ({"resume": 7}, {}),
    ):
        found, words = plan(job(**changes), **options)
        assert found["start"]["what"] == "refused"
        assert found["will_not_start"] == [found["start"]["reason"]] == [run(job(**changes), **options)]
        assert "warning: this will not start: " in words

    (tmp_path / "data" / "a.txt").write_text("another caption")
    assert plan(job())[0]["start"]["reason"] == run(job())
    assert "the dataset is another one: 1 edited" in run(job())
    assert plan(job(), allow_change=True)[0]["start"]["what"] == "complete"
    assert "a new run; the old one is moved aside" in plan(job(), restart=True)[1]
    assert contents(folder) == before


def test_a_folder_that_cannot_be_used_is_told_as_such(job, plan: Plan, run, tmp_path: Path) -> None:
    folder = tmp_path / "output" / "job"
    run(job())
    with run_lock(folder):
        assert "is running in this folder" in plan(job())[0]["start"]["reason"]
    document = folder / "state" / "step_000000002" / "state.json"
    document.write_bytes(b"[" * document.stat().st_size)  # as long as before: only the run reads all hashes
    assert "what it records cannot be used" in plan(job())[0]["start"]["reason"]
    document.unlink()
    assert "no valid checkpoint found" in plan(job())[0]["start"]["reason"]


@pytest.mark.parametrize(
    ("save", "files", "states"),
    [
        ({"save_every": 2}, 5 + 1, 3),  # 10 saves; while the third state is written the other two are there
        ({"save_every": 2, "max_step_saves_to_keep": 0, "max_states_to_keep": 0}, 10 + 1, 10),
        ({"save_every": 0}, 1, 1),
        ({"save_every": 8, "states": "at_end"}, 2 + 1, 1),
        ({"save_every": 8, "states": "never"}, 2 + 1, 0),
    ],
)
def test_the_disk_is_that_of_all_files_that_are_there_at_once(
    job, plan: Plan, save: dict, files: int, states: int
) -> None:
    weights = 2 * 4 * (8 * (64 + 64) + 2 * (64 + 6 * 64) + 4 * (64 + 256))
    found, _ = plan(job(train={"steps": 20}, save={"dtype": "float32", **save}))
    assert found["disk"]["needed_bytes"] == weights * (4 * files + 12 * states)


def test_a_large_model_without_a_gpu_is_told_and_so_is_its_download(
    job, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from toolkit.system import nvidia

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(nvidia, "read_facts", lambda: nvidia.NvidiaFacts("13.0", "570.1", 1))
    found, words = plan(job(device="auto", model={"name_or_path": "Qwen/Qwen-Image-Edit-2509"}))
    assert found["model"]["download"]["folder"] == str(tmp_path / "hub")
    assert f"download: 57.7 GB, to {tmp_path / 'hub'} (" in words
    assert "warning: this will not start: device: auto: " in words and "driver 570.1 is too old" in words
    assert "device: " not in " ".join(plan(job(device="auto"))[0]["will_not_start"]), "the tiny model may start"


def test_a_chosen_device_that_is_not_there_is_an_error_and_the_first_gpu_may_be_the_cpu(
    job, plan: Plan, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model; a dry run says both before the run does."""
    from toolkit.system import nvidia

    monkeypatch.setattr(nvidia, "read_facts", lambda: nvidia.NvidiaFacts(None, None, 0))
    for device in ("cuda", "cuda:1"):
        (reason,) = plan(job(device=device))[0]["will_not_start"]
        assert reason.startswith(f"device: {device}: no such device can be used here. Write 'device: auto'")
        assert run(job(device=device)).startswith(f"device: {device}: no such device can be used here")
    found, words = plan(job(device="cuda:0"))
    assert found["will_not_start"] == [] and "warning: device: cuda:0: no such device" in words
    assert "device: cuda:0 is not available" in run(job(device="cuda:0"))
    assert "no such device" not in plan(job(device="auto"))[1]


def test_all_of_it_needs_no_torch_no_network_and_no_file(job, run, run_py, tmp_path: Path) -> None:
    run(job())
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FORBID)
    path = job(train={"steps": 3})
    before = contents(tmp_path / "output")
    result = run_py(path, "--dry-run", env={"PYTHONPATH": str(site)})
    assert (result.returncode, result.stderr) == (0, "")
    assert "folder: output/job: resumes at step 2 of 3" in result.stdout
    assert contents(tmp_path / "output") == before

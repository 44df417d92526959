"""The extensions that docs/extensions.md shows, copied and run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment
from tests.processes import output_of
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.extension import discover
from toolkit.train.run import Callback, Encoded, Sampled, Saved

PAGE = (ROOT / "docs" / "extensions.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# extensions/(\S+)\n(.*?)```", PAGE, re.DOTALL))
"""Its files, by their paths in a folder of extensions."""


@pytest.fixture
def run(
    run_py: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs `run.py` with the extensions of the page; returns what it printed."""
    for name, text in FILES.items():
        path = tmp_path / "drop_ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))

    def run(*arguments: object) -> str:
        result = run_py(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    return run


@pytest.mark.slow
def test_the_trainer_with_a_loss_of_its_own_trains(
    run: Callable[..., str], write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    section = trainer(make_pictures(tmp_path / "photos", "a", "b"), train={"steps": 3})
    job = write_job({**section, "type": "held_prompt", "held_prompt": "a landscape"})
    assert "3 steps = 1.5 epochs" in run(job, "--dry-run", "-v")
    assert "held: a landscape\n" in run(job)
    lines = (
        (tmp_path / "output" / "job" / "metrics.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    first, *others = (json.loads(line)["loss/held"] for line in lines)
    assert first == 0 and min(others) > 0
    assert (tmp_path / "output" / "job" / "job.safetensors").is_file()


@pytest.mark.slow
def test_two_extensions_work_in_one_training_and_a_resume_keeps_the_callbacks(
    run: Callable[..., str], write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    def job(steps: int, to: str) -> Path:
        section = trainer(
            make_pictures(tmp_path / "photos", "a", "b"),
            train={"steps": steps},
            save={"save_every": 2},
            callbacks=[{"type": "copy_saves", "to": to}],
            logging={"log_with": ["csv_file"]},
        )
        return write_job({**section, "type": "held_prompt", "held_prompt": "a hill"})

    folder = tmp_path / "output" / "job"
    share = tmp_path / "share"
    run(job(3, str(share)))
    saved = {"job_000000002.safetensors", "job.safetensors"}
    assert {file.name for file in (share / "job").iterdir()} == saved
    curves = (folder / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert [row[0] for row in curves if ",loss/held," in row] == ["1", "2", "3"]
    again = (folder / "config.yaml").read_text(encoding="utf-8")
    assert '"callbacks": [{"type": "copy_saves"' in again
    # a file is in the way of the folder: the run ends well without its copies
    (tmp_path / "file").write_text("")
    printed = run(job(5, str(tmp_path / "file")))
    assert "resuming from" in printed and "step 5 of 5" in printed
    assert printed.count("the callback CopySaves failed") == 1


@pytest.mark.slow
def test_the_test_of_the_page_on_what_is_stable_passes(
    run: Callable[..., str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "stable.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```python\n# test_copy_saves.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "test_copy_saves.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join((str(ROOT), str(tmp_path / "drop_ins")))
    (line,) = re.findall(r"    requires = .*\n", page)
    init = tmp_path / "drop_ins" / "copy_saves" / "__init__.py"
    init.write_text(init.read_text().replace("    name =", f"{line}    name ="))
    assert discover([init.parent]).find("copy_saves", "callback")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    said = output_of(
        *command,
        "test_copy_saves.py",
        cwd=tmp_path,
        env=child_environment({"PYTHONPATH": path}),
    )
    assert "1 passed" in said, said


@pytest.mark.slow
def test_every_tool_that_takes_a_job_reads_the_trainer_by_its_own_class(
    run: Callable[..., str], run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    section = trainer(make_pictures(tmp_path / "photos", "a", "b"))
    job = write_job({**section, "type": "held_prompt", "held_prompt": "a landscape"})
    assert "cached 2 items" in run("cache", job)
    cache = tmp_path / "output" / "_cache"
    texts = {*(cache / "text").rglob("*.safetensors")}
    latents = {*(cache / "latents").rglob("*.safetensors")}
    assert (len(texts), len(latents)) == (3, 2)  # two captions, and the held prompt
    run(job)
    assert {*cache.rglob("*.safetensors")} == texts | latents
    folder = tmp_path / "output" / "job"
    for tool, *flags in (
        ("lint", job),
        ("import", job, "-o", tmp_path / "again.yaml"),
        ("queue", "add", job),
        ("report", folder),
        ("best", folder),
    ):
        result = run_py(tool, *flags)
        found = tool == "lint"  # something about these pictures
        assert result.returncode == found, (tool, result.stderr)
    assert "job (held_prompt)" in run(tmp_path / "again.yaml", "--dry-run")


def test_the_page_names_every_field_of_a_batch_and_of_the_events() -> None:
    """And every method."""
    methods = set(vars(Callback)) - {"coming", "section"}
    methods = {name for name in methods if not name.startswith("_")}
    fields = [
        field.name
        for cls in (LatentBatch, Encoded, Saved, Sampled)
        for field in dataclasses.fields(cls)
    ]
    for name in (*methods - {"essential", "included_in_step_time"}, *fields):
        assert re.search(rf"`{name}\b", PAGE), name


@pytest.mark.slow
def test_the_first_extension_runs_as_an_installed_package(
    run_py: Callable, write_job, tmp_path: Path
) -> None:
    (project,) = re.findall(r"```toml\n# pyproject.toml\n(.*?)```", PAGE, re.DOTALL)
    folder = tmp_path / "project"
    for name in ("my_extension/__init__.py", "my_extension/process.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[name], encoding="utf-8")
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(
        [*install, "--target", str(tmp_path / "site"), str(folder)], check=True
    )
    job = write_job({"type": "my_type", "folder_path": "photos", "rate": 0.5})
    result = run_py(job, env={"PYTHONPATH": str(tmp_path / "site")})
    assert (result.returncode, result.stderr) == (0, "")
    assert "job works on photos" in result.stdout


def test_the_first_extension_runs(run: Callable[..., str], write_job) -> None:
    assert "job works on photos" in run(
        write_job({"type": "my_type", "folder_path": "photos", "rate": 0.5})
    )

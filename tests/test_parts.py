"""Each part of `extensions/` can be left out: the program and the tests of its core, in
a copy without the part."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment

TOOLS = ("influence", "align", "best", "doctor", "ara", "prefer", "publish", "ui")
PARTS = {name: f"extensions/{name}" for name in ("from_scratch", "compat")} | {
    name: f"extensions/tools/{name}" for name in TOOLS
}
"""Part -> its folder; its tests lie in the folder of this name in tests/."""

pytestmark = pytest.mark.skipif(
    any(not (ROOT / folder).is_dir() for folder in PARTS.values()),
    reason="is about a program with all of its parts",
)

CORE = (
    "tests/toolkit",
    "tests/config",
    "tests/jobs",
    "tests/extensions/sd_trainer",
    "tests/test_run.py",
)

TELLING = (
    "tests/test_architecture.py",
    "tests/jobs/test_job.py",
    "tests/jobs/test_dry_run.py",
    "tests/toolkit/config",
    "tests/toolkit/test_extension.py",
    "tests/toolkit/test_registry.py",
    "tests/extensions/sd_trainer/test_config.py",
    "tests/extensions/sd_trainer/test_rules.py",
)
"""Tests of the core that are cheap and read much of it. The whole of it takes too long
to be run for each change."""


def copied_without(folder: Path, *parts: str) -> Path:
    """A copy of the program in a folder, without these parts and their tests. Its files
    are tracked in a repository of its own, since tests ask which are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    left_out = tuple(
        f"{root}{PARTS[part]}/" for part in parts for root in ("", "tests/")
    )
    for name in filter(None, listed.split("\0")):
        if not name.startswith(left_out) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    assert not any((folder / PARTS[part]).exists() for part in parts)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What a command of Python in this folder prints; it ends well and finds this
    folder's modules alone."""
    environment = child_environment({"PYTHONPATH": str(folder)})
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return result.stdout


@pytest.mark.slow
def test_the_core_passes_its_tests_without_any_part(tmp_path: Path) -> None:
    folder = copied_without(tmp_path / "program", *PARTS)
    assert (
        " passed"
        in run(
            folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TELLING
        ).splitlines()[-1]
    )
    assert (
        "/"
        in run(
            folder,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            *CORE,
        ).splitlines()[-1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_program_starts_without_a_part(part: str, tmp_path: Path) -> None:
    folder = copied_without(tmp_path / "program", part)
    listed = run(folder, "run.py", "--list-extensions")
    assert "sd_trainer" in listed and "broken" not in listed
    assert part not in [line.split()[0] for line in listed.splitlines()]
    assert f"\n  {part} " not in run(folder, "run.py", "--help")
    assert run(
        folder, "run.py", "config/examples/quickstart.yaml", "--dry-run"
    ).startswith("Job quickstart\n")

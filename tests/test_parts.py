"""Each part of `extensions/` can be left out: the program, and the tests of its core,
in a copy without any."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment
from tests.processes import output_of

FAMILIES = [path.parent.name for path in ROOT.glob("extensions/*/family.py")]
PARTS = ("from_scratch", "compat", "tools", *FAMILIES)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(
            not (ROOT / "extensions" / part / "__init__.py").is_file() for part in PARTS
        ),
        reason="is about a program with all of its parts",
    ),
]

CORE = (
    "tests/toolkit",
    "tests/config",
    "tests/jobs",
    "tests/extensions/sd_trainer",
    "tests/test_architecture.py",
    "tests/test_run.py",
)

TELLING = (
    "tests/test_architecture.py::test_every_registry_entry_loads",
    "tests/test_architecture.py::test_every_extension_gives_its_config_and_its_process",
    "tests/jobs/test_job.py",
    "tests/jobs/test_dry_run.py",
    "tests/jobs/process/test_texts_together.py",
    "tests/toolkit/config/reading/test_loader.py",
    "tests/toolkit/config/reading/test_normalise.py",
    "tests/toolkit/config/sections/test_model.py",
    "tests/toolkit/test_extension.py",
    "tests/toolkit/test_registry.py",
    "tests/extensions/sd_trainer/test_config.py",
    "tests/extensions/sd_trainer/test_rules.py",
)
"""Tests of the core that ask for names of parts, and a job that trains. The whole of it
takes too long to be run for each change."""

ONLY_TELLING = f"""
def pytest_collection_modifyitems(items):
    assert len(items) > 2000
    items[:] = [item for item in items if item.nodeid.startswith({TELLING!r})]
"""


def tracked() -> list[str]:
    return output_of("git", "ls-files", "-z").split("\0")[:-1]


def run(folder: Path, *arguments: str) -> str:
    """What a command of Python in this folder prints; it ends well and finds this
    folder's modules alone."""
    environment = child_environment({"PYTHONPATH": str(folder)})
    return output_of(sys.executable, *arguments, cwd=folder, env=environment)


def test_the_core_runs_and_passes_its_tests_without_any_part(tmp_path: Path) -> None:
    """As after a pull of the commit that moves the parts away: folders of compiled files
    stay."""
    folder = tmp_path / "program"
    parts = tuple(
        f"{root}extensions/{part}/" for part in PARTS for root in ("", "tests/")
    )
    for name in tracked():
        if not name.startswith(parts) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for part in PARTS:
        (folder / "extensions" / part / "__pycache__").mkdir(parents=True)
    for command in ("init --quiet", "add --all"):  # tests ask which files are tracked
        output_of("git", *command.split(), cwd=folder)
    (folder / "only_telling.py").write_text(ONLY_TELLING)
    assert "broken" not in run(folder, "run.py", "--list-extensions")
    plan = run(folder, "run.py", "config/examples/quickstart.yaml", "--dry-run")
    assert plan.startswith("quickstart (sd_trainer)")
    # the whole core is collected
    tests = run(
        folder,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "only_telling", *CORE),
    )
    assert " passed" in tests.splitlines()[-1]

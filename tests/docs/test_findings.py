"""The scripts in findings/: what each states, that the page lists it, and that
shellcheck passes. They are run by hand: each installs packages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docker.test_dockerfile import tool

FOLDER = Path(__file__).resolve().parents[2] / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
of_each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def comment(script: Path) -> str:
    """The comment at the head of a script."""
    lines = script.read_text(encoding="utf-8").splitlines()
    end = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[1:end])


def test_the_page_lists_each_script_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.sh\) \| \S", page, re.MULTILINE)
    assert SCRIPTS
    assert listed == [(script.stem, script.stem) for script in SCRIPTS]


@of_each
def test_a_script_states_versions_and_the_output_seen(script: Path) -> None:
    stated = re.search(r"^# Versions: (.*)$", comment(script), re.MULTILINE)
    assert stated, "no line '# Versions: ...'"
    versions = dict(re.findall(r"([\w-]+) (\d+(?:\.\d+)+)", stated[1]))
    installed = dict(
        re.findall(
            r"([\w-]+)(?:\[\w+\])?==([\d.]+)", script.read_text(encoding="utf-8")
        )
    )
    assert versions and versions.items() <= installed.items()
    assert re.search(r"^# Output seen.*:\n#   \S", comment(script), re.MULTILINE)


@of_each
def test_a_script_is_run_as_it_is_and_removes_what_it_made(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and os.access(script, os.X_OK)
    assert (
        'set -euo pipefail\nwork=$(mktemp -d)\ntrap \'rm -rf "${work}"\' EXIT\ncd "${work}"\n'
        in text
    )
    installs = re.findall(r"^venv/bin/pip install (.*)$", text, re.MULTILINE)
    assert installs[0] == "--quiet torch==2.13.0" or "torch " not in comment(script)
    assert "assert " in text, "no behaviour is checked"


@of_each
def test_shellcheck_passes(script: Path) -> None:
    checked = subprocess.run(
        [tool("shellcheck"), "-o", "all", str(script)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout

"""The scripts in benchmarks/findings/: what each states, that the page lists it, and
that shellcheck passes. They are run by hand: each installs packages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.docker.test_dockerfile import tool

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks/findings"
HEAD = FOLDER / "head.sh"
SCRIPTS = sorted({*FOLDER.glob("*.sh")} - {HEAD})
BEGIN = 'source "$(dirname "$0")/head.sh"\n'


def test_the_page_lists_each_script_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.sh\) \| \S", page, re.MULTILINE)
    assert SCRIPTS
    assert listed == [(script.stem, script.stem) for script in SCRIPTS]


def test_a_script_states_versions_and_output_and_checks_them() -> None:
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        head, begin, code = text.partition(BEGIN)
        assert head.startswith("#!/usr/bin/env bash\n") and begin, script
        assert os.access(script, os.X_OK), script
        stated = re.search(r"^# Versions: (.*)$", head, re.MULTILINE)
        assert stated, f"{script}: no line '# Versions: ...'"
        versions = dict(re.findall(r"([\w-]+) (\d+(?:\.\d+)+)", stated[1]))
        installed = dict(re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", code))
        assert versions and versions.items() <= installed.items(), script
        assert re.search(r"^# Output seen.*:\n#   \S", head, re.MULTILINE), script
        installs = re.findall(r"^venv/bin/pip install (.*)$", code, re.MULTILINE)
        assert installs[0] == "--quiet torch==2.13.0" or "torch " not in head, script
        assert "assert " in code, f"{script}: no behaviour is checked"


def test_shellcheck_passes() -> None:
    checked = subprocess.run(
        [tool("shellcheck"), "-xPSCRIPTDIR", "-o", "all", *SCRIPTS],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout

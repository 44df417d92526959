"""The commands that the program prints: they run where it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from toolkit import commands
from toolkit.commands import command, command_for_others


def test_they_are_relative_to_the_working_directory_and_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    monkeypatch.chdir(ROOT)
    assert command("report", "my run") == ".venv/bin/python run.py report 'my run'"
    assert command_for_others("report") == ".venv/bin/python run.py report"
    monkeypatch.chdir(tmp_path)
    assert command() == f"{ROOT}/.venv/bin/python {ROOT}/run.py"
    assert command_for_others("report") == "python run.py report"


def test_an_installation_has_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "IS_INSTALLED", True)
    monkeypatch.setattr(commands, "COMMAND", "atelier")
    assert command("new") == command_for_others("new") == "atelier new"


def test_what_import_prints_is_run_by_the_same_interpreter(
    run_py, write_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_py(
        "import",
        write_job({"type": "example", "name": "a", "folder_path": "."}),
        "--output",
        "ours.yaml",
    )
    assert (
        f"ours.yaml: written. Next: {command('ours.yaml', '--dry-run')}\n"
        in done.stdout
    ), done.stderr

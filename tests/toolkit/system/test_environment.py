"""What `run.py` says to a Python that cannot run the program, and that every line of it
can be pasted."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment
from toolkit.system.environment import why_not

OLD = "import runpy, sys; sys.version_info = (3, 10); runpy.run_path('run.py', run_name='__main__')"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The program in a folder with a space in its name, without an environment."""
    folder = tmp_path / "my trainer"
    for name in ("toolkit", "toolkit/system"):
        (folder / name).mkdir(parents=True)
        shutil.copy(ROOT / name / "__init__.py", folder / name)
    names = ("toolkit/system/environment.py", "toolkit/version.py", "toolkit/errors.py")
    for name in ("run.py", *names):
        shutil.copy(ROOT / name, folder / name)
    return folder


def said(folder: Path, *python: str | Path) -> list[str]:
    """What a start of a job in the folder prints, line by line."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME")}
    result = subprocess.run(
        [*map(str, python), "my job.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    return result.stderr.splitlines()


def test_without_packages_the_commands_that_make_an_environment_are_named(
    checkout: Path,
) -> None:
    first, *commands = said(checkout, sys.executable, "-S", "run.py")
    assert first.startswith("The Python package 'pydantic' is not installed for ")
    own, needed = checkout / ".venv/bin/python", checkout / "requirements.txt"
    assert [shlex.split(line) for line in commands] == [
        [sys.executable, "-m", "venv", "--clear", str(checkout / ".venv")],
        [str(own), "-m", "pip", "install", "-r", str(needed)],
        [str(own), "run.py", "my job.yaml"],
    ]


def test_in_an_environment_without_packages_they_are_installed_into_it(
    checkout: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    (line,) = said(checkout, empty / "bin/python", "run.py")
    assert line.endswith(
        f"Install what the program needs: uv pip install --python {empty}/bin/python "
        f"-r {shlex.quote(str(checkout / 'requirements.txt'))}"
    )


@pytest.mark.parametrize(
    ("python", "begin"),
    [
        ([sys.executable, "-c", OLD], "Python 3.10 is too old: Atelier needs 3.11, "),
        ([sys.executable, "-S", "run.py"], "The Python package 'pydantic' is "),
    ],
)
def test_the_environment_that_is_there_is_named(
    checkout: Path, python: list[str], begin: str
) -> None:
    own = checkout / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    (line,) = said(checkout, *python)
    assert line.startswith(begin)
    start = shlex.split(line.partition("its own environment: ")[2])
    assert start[0] == str(own) and start[-1] == "my job.yaml"


def test_here_nothing_is_missing() -> None:
    assert why_not((3, 11)) == why_not((3, 13)) == ""


def test_python_3_8_can_read_what_says_so() -> None:
    packages = ("toolkit/__init__.py", "toolkit/system/__init__.py")
    modules = ("toolkit/version.py", "toolkit/system/environment.py")
    for name in ("run.py", *packages, *modules):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert ast.parse(text, feature_version=(3, 8)).body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("toolkit.files.redact", "--version"),  # imported by run.py itself
        ("toolkit.config.reading.reference", "--print-schema"),
    ],
)
def test_a_compiled_copy_that_a_full_disk_has_cut_is_named_and_made_again(
    tmp_path: Path, module: str, command: str, run_py
) -> None:
    """And the command that is told makes the program start."""
    copies = tmp_path / "copies"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(copies)}

    def start() -> subprocess.CompletedProcess[str]:
        return run_py(*command.split(), env=environment)

    assert start().returncode == 0
    source = ROOT / f"{module.replace('.', '/')}.py"
    (copy,) = copies.rglob(f"{source.parent.name}/{source.stem}.*.pyc")
    os.truncate(copy, copy.stat().st_size // 2)
    told = start()
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"{copy}: this compiled copy")
    (line,) = told.stderr.splitlines()
    again = shlex.split(line.rpartition("Make it again: ")[2])
    subprocess.run(again, env=environment, check=True)
    assert start().returncode == 0


@pytest.mark.parametrize("module", ["toolkit.commands", "jobs.multi_run"])
def test_ctrl_c_while_the_program_is_imported_is_one_line(
    tmp_path: Path, module: str
) -> None:
    """The signal comes while `run.py` imports this module."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class AtImport:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, AtImport())\n"
    )
    stopped = subprocess.run(
        [sys.executable, ROOT / "run.py", "--version"],
        env=child_environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
    )
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert stopped.stderr == "Stopped.\n"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ([], "python3.11"),
        (["python3.12"], "python3.12"),
        (["python3.13"], "python3.13"),
    ],
)
def test_an_old_python_names_a_newer_one_of_this_machine(
    checkout: Path, tmp_path: Path, there: list[str], named: str
) -> None:
    """As Ubuntu 24.04, which has 3.12 alone."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in there:
        (bin_folder / name).symlink_to(sys.executable)
    old = [sys.executable, "-c", OLD, "my job.yaml"]
    result = subprocess.run(
        old, cwd=checkout, env={"PATH": str(bin_folder)}, capture_output=True, text=True
    )
    made = f"{named} -m venv --clear {shlex.quote(str(checkout / '.venv'))}"
    assert made in result.stderr, result.stderr

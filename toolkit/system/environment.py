"""Whether this Python can run the program: its version, and the packages that each
command imports first. `run.py` asks before it imports anything else.

Any Python 3.8 or newer can read this module, which imports no other before it knows the
version.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from toolkit.version import IS_INSTALLED

LEAST = (3, 11)
"""The first version of Python that runs the program."""

VERSIONS = "3.11, 3.12 or 3.13"
"""Those with which it is tested."""

IMPORTED_FIRST = ("pydantic", "yaml")

_ROOT = Path(__file__).resolve().parents[2]


def why_not(version: tuple[int, ...]) -> str:
    """Why a Python of this version, with the packages of this one, cannot run the
    program, and the remedy; empty where it can.

    >>> why_not((3, 10)).partition(". ")[0]
    'Python 3.10 is too old: Atelier needs 3.11, 3.12 or 3.13'
    """
    is_old = version < LEAST
    called = f"Python {version[0]}.{version[1]}"
    missing = [name for name in IMPORTED_FIRST if find_spec(name) is None]
    if is_old:
        lack = f"{called} is too old: Atelier needs {VERSIONS}"
    elif missing:
        lack = f"The Python package {missing[0]!r} is not installed for {sys.executable} ({called})"
    else:
        return ""
    return f"{lack}. {_remedy(is_old)}"


def _newer() -> str:
    """The name of a Python that can run the program, of this machine if it has one."""
    from shutil import which

    names = ["python3.11", "python3.12", "python3.13"]
    return next((name for name in names if which(name)), names[0])


def _remedy(is_old: bool) -> str:
    """The commands after which the program starts."""
    folder = _ROOT / ".venv"
    own = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    start = shlex.join([str(own), *sys.argv])
    needed = f"-r {shlex.quote(str(_ROOT / 'requirements.txt'))}"
    if IS_INSTALLED:
        needed = " ".join(IMPORTED_FIRST).replace("yaml", "PyYAML")
    if own.exists() and Path(sys.prefix).resolve() != folder.resolve():
        return f"Start it with its own environment: {start}"
    if not is_old and (IS_INSTALLED or sys.prefix != sys.base_prefix):
        from toolkit.errors import install_command

        return f"Install what the program needs: {install_command(needed)}"
    python = _newer() if is_old else shlex.quote(sys.executable)
    made = f"{python} -m venv --clear {shlex.quote(str(folder))}"
    install = f"{shlex.quote(str(own))} -m pip install {needed}"
    return (
        f"Make its environment, and start it there:\n  {made}\n  {install}\n  {start}"
    )

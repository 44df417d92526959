"""Commands of this program that it prints, ready to be pasted into a shell.

`command` quotes the arguments and begins with the interpreter that runs the program, or
with its name where it is installed. `command_for_others` is for pages that are passed
on, and contains no path of this machine.

`run.py`, `toolkit/plan/next_commands.py` and tools print these commands. Nothing is run
here.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from toolkit.files.writing import TOOLKIT_ROOT, short
from toolkit.version import COMMAND, IS_INSTALLED


def command(*arguments: object) -> str:
    """A command of this program: with the interpreter that runs it, paths relative
    where they are in the working directory."""
    words = (short(one) if isinstance(one, Path) else str(one) for one in arguments)
    return shlex.join([*program(), *words])


def command_for_others(*arguments: object) -> str:
    """The command for a page that is passed on: without a path of this machine."""
    words = program()
    if any(Path(word).is_absolute() for word in words):
        words = ("python", "run.py")
    return shlex.join([*words, *map(str, arguments)])


def program() -> tuple[str, ...]:
    """The words that start this program on a command line: the installed command, else
    the interpreter and `run.py`. Paths are relative to the working directory where
    possible."""
    if IS_INSTALLED:
        return (COMMAND,)
    python = Path(sys.executable)  # not resolved: of a virtual environment it is a link
    name = python.name if shutil.which(python.name) == str(python) else short(python)
    return name, short(TOOLKIT_ROOT / "run.py")

"""Whether this Python can run the program: its version, and the packages that each
command imports first, which `run.py` asks before it imports anything else; and what to
do where an import fails later, which `jobs.exit` asks.

Any Python 3.8 or newer can read this module, which imports no other before it knows the
version.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

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
    if version < LEAST:
        lack = f"Python {version[0]}.{version[1]} is too old: Atelier needs {VERSIONS}"
        return f"{lack}. {_remedy(True, *IMPORTED_FIRST)}"
    missing = [name for name in IMPORTED_FIRST if find_spec(name) is None]
    return lack_of(*missing) if missing else ""


def lack_of(*packages: str) -> str:
    """That the first of these packages is missing, and the remedy."""
    called = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    lack = f"The Python package {packages[0]!r} is not installed for {sys.executable} ({called})"
    return f"{lack}. {_remedy(False, *packages)}"


def _newer() -> str:
    """The name of a Python that can run the program, of this machine if it has one."""
    from shutil import which

    names = ["python3.11", "python3.12", "python3.13"]
    return next((name for name in names if which(name)), names[0])


def _remedy(is_old: bool, *packages: str) -> str:
    """The commands after which the program starts."""
    folder = _ROOT / ".venv"
    own = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    start = shlex.join([str(own), *sys.argv])
    listed = _ROOT / "requirements.txt"
    needed = f"-r {shlex.quote(str(listed))}"
    is_listed = not listed.is_file() or packages[0].lower() in listed.read_text("utf-8")
    if IS_INSTALLED or not is_listed:
        needed = " ".join(packages).replace("yaml", "PyYAML")
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


def damaged_copy(error: BaseException) -> str:
    """That Python's compiled copy of a module is damaged, as a full disk leaves it, and
    the command that makes it again; empty where the error is another one."""
    cause: BaseException | None = error
    while cause is not None:
        frames = [frame for frame, _ in walk_tb(cause.__traceback__)]
        if frames and frames[-1].f_code.co_name == "_compile_bytecode":
            names = frames[-2].f_locals  # of importlib's get_code
            folder = shlex.quote(str(Path(names["source_path"]).parent))
            again = f"{shlex.quote(sys.executable)} -m compileall -q -f {folder}"
            what = f"{names['bytecode_path']}: this compiled copy of a Python module is damaged"
            return f"{what} ({cause}), as a disk that was full leaves it. Make it again: {again}"
        cause = cause.__cause__ or cause.__context__
    return ""


def say_damage(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints `damaged_copy`, or the error as Python does; ends the process at Ctrl-C,
    which is not an error. For `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("Stopped.\n")
        sys.stderr.flush()
        os._exit(130)  # else Python would end by the signal
    said = damaged_copy(error)
    if said:
        sys.stderr.write(f"{said}\n")
    else:
        sys.__excepthook__(kind, error, trace)

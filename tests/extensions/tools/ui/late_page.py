"""A page in a process of its own whose writes come late: whoever looks before it has a
lock has looked too early.

Run as `python -m tests.extensions.tools.ui.late_page PORT FOLDER`. What it asks of
`run.py` is answered at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from extensions.tools.ui import commands
from extensions.tools.ui.queue import Queue

LATE_S = 0.08
"""Seconds by which each write comes late; a request takes less."""

LINTED = "linted.txt"
"""Gets a line for each check of a dataset."""


def late(write: Callable[..., Any]) -> Callable[..., Any]:
    def later(*given: Any, **named: Any) -> Any:
        time.sleep(LATE_S)
        return write(*given, **named)

    return later


def run_py(*arguments: str, **_: object) -> tuple[int, str, str]:
    """The plan of a job that owns the folder of its own name, or what lint finds in an
    empty dataset."""
    if arguments[0] == "lint":
        with open(LINTED, "a", encoding="utf-8") as file:
            file.write(f"{arguments[1]}\n")
        return 0, json.dumps({"findings": [], "images": 0}), ""
    path = Path(arguments[0])
    name = path.parent.name if path.stem == "config" else path.stem
    return (
        0,
        json.dumps(
            {
                "job": name,
                "processes": [],
                "folders": [str(Path("output", name).absolute())],
            }
        ),
        "",
    )


def main(port: int, folder: Path) -> None:
    """Serves the folders `output`, `datasets` and `jobs` of the given one until it is
    killed."""
    os.chdir(folder)
    commands.run_py = run_py  # before the views take it from there
    from extensions.tools.ui.app import make_app
    from extensions.tools.ui.state import Ui

    Queue.start_runner = lambda queue: None  # type: ignore[method-assign]  # nothing is to run
    for name in ("replace", "link", "rename"):
        setattr(os, name, late(getattr(os, name)))
    ui = Ui(
        Path("output").absolute(),
        Path("datasets").absolute(),
        Path("jobs").absolute(),
        "",
        0.0,
    )
    uvicorn.run(make_app(ui), host="127.0.0.1", port=port, log_level="error", ws="none")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

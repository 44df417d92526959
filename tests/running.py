"""Jobs and tools, run in the process of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import ExtensionJob
from toolkit.config import load_job
from toolkit.config.tool import load_tool
from toolkit.extension import discover


def run_job(path: Path | str) -> None:
    """Runs the job of a file."""
    extensions = discover()
    ExtensionJob(load_job(path, extensions.find_config), extensions).run()


def section_of(uid: str, flags: Sequence[object]) -> Any:
    """The checked section that a command makes. Raises as `load_tool`."""
    return load_tool(uid, discover().find_command(uid), [*map(str, flags)]).processes[0].section


def run_tool(uid: str, flags: Sequence[object]) -> Any:
    """Runs `run.py TOOL FLAGS`, and returns its section."""
    extensions = discover()
    config = load_tool(uid, extensions.find_command(uid), [*map(str, flags)])
    ExtensionJob(config, extensions).run()
    return config.processes[0].section

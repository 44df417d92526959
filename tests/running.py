"""Jobs and tools, run in the process of the tests."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import ExtensionJob, JobOptions
from toolkit.config import load_job
from toolkit.config.reading.tool import load_tool
from toolkit.extension import discover


def lines(path: Path) -> list[dict]:
    """The rows of a `.jsonl` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """That of each step of a run."""
    return [line["loss"] for line in lines(folder / "metrics.jsonl")]


def run_job(path: Path | str, **options: Any) -> None:
    """Runs the job of a file, as the command line does with these options."""
    extensions = discover()
    job = ExtensionJob(
        load_job(path, extensions.find_config), extensions, JobOptions(**options)
    )
    try:
        job.run()
    finally:
        job.cleanup()


def section_of(uid: str, flags: Sequence[object]) -> Any:
    """The checked section that a command makes. Raises as `load_tool`."""
    return (
        load_tool(uid, discover().find_command(uid), [*map(str, flags)])
        .processes[0]
        .section
    )


def run_tool(uid: str, flags: Sequence[object]) -> Any:
    """Runs `run.py TOOL FLAGS`, and returns its section."""
    extensions = discover()
    config = load_tool(uid, extensions.find_command(uid), [*map(str, flags)])
    ExtensionJob(config, extensions).run()
    return config.processes[0].section


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes meanwhile: a short write, as
    on a full disk. No compiled module is written: it would be left cut off."""
    limits, writes_none = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        sys.dont_write_bytecode,
    )
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = writes_none


def check_every(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The mean of `stop_when` is checked so often, for runs of few steps."""
    for module in ("resumption", "callbacks.early_stopping"):
        monkeypatch.setattr(f"toolkit.train.{module}.CHECK_EVERY", steps)

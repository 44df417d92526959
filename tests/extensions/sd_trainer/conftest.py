"""Starting a job without waiting for its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def start_py(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `run.py` in `tmp_path`; what still runs at the end of the test is killed."""
    started = []

    def start(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()

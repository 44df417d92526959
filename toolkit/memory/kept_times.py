"""How long things took on this machine the last time, for the plan of the next run.
Imports no torch.

What compiling took lies beside PyTorch's caches of compiled programs: a machine that
has lost these compiles from the beginning. What a step and a sample image took lies in
the cache of the training folder.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from toolkit.files.writing import CACHE_FOLDER, write_text

logger = logging.getLogger(__name__)


class RunTimes(NamedTuple):
    """What a run took."""

    step_s: float
    """Seconds of an optimizer step, the median."""

    picture_s: float = 0.0
    """Seconds of a sample image, the median; 0: there was none."""


def _compile_file() -> Path:
    """In inductor's folder. Source: torch/_inductor/runtime/cache_dir_utils.py,
    `cache_dir`."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        folder = str(Path(tempfile.gettempdir()) / f"torchinductor_{user}")
    return Path(folder) / "atelier_compile_times.json"


def _run_file(training_folder: str) -> Path:
    return Path(training_folder).expanduser() / CACHE_FOLDER / "run_times.json"


def compile_seconds(gpu: str) -> float | None:
    """What compiling took in the last run on a GPU of this name, in seconds; None where
    none is known."""
    return _seconds(_known(_compile_file).get(gpu))


def remember_compile_seconds(gpu: str, seconds: float) -> None:
    """Keeps it for the next plan. A folder that cannot be written to is reported in the
    log."""
    if gpu:
        _keep(_compile_file, gpu, round(seconds, 1), "compiling")


def run_times(training_folder: str, key: str) -> RunTimes | None:
    """What the last run of this key took (`toolkit.plan.run_time.times_key`); None
    where none is known."""
    entry = _known(lambda: _run_file(training_folder)).get(key)
    if not isinstance(entry, dict):
        return None
    step_s = _seconds(entry.get("step_s"))
    if not step_s:
        return None
    return RunTimes(step_s, _seconds(entry.get("picture_s")) or 0.0)


def remember_run_times(training_folder: str, key: str, times: RunTimes) -> None:
    """Keeps it for the next plan, as `remember_compile_seconds`."""
    entry = {name: float(f"{seconds:.4g}") for name, seconds in times._asdict().items()}
    _keep(lambda: _run_file(training_folder), key, entry, "a step")


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and value > 0:
        return float(value)
    return None


def _known(file: Callable[[], Path]) -> dict[str, object]:
    # getpass: a user without a name
    with suppress(OSError, ValueError, RecursionError, KeyError):
        known = json.loads(file().read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _keep(file: Callable[[], Path], key: str, value: object, what: str) -> None:
    try:
        path = file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_known(file) | {key: value}))
    except (OSError, KeyError) as error:
        logger.info(f"the time of {what} is not kept for the next plan: {error}")

"""How long compiling, a step and a sample image took in the last run on this machine,
for the plan of the next run. Imports no torch.

The time of compiling is kept next to PyTorch's caches of compiled programs, because a
machine that has lost these caches compiles again. The times of a step and of a sample
image are in the cache of the training folder. Nothing here measures: the callbacks
`toolkit.train.callbacks.times` and `compiling` pass the times on, and
`toolkit.plan.planning` reads them. A file that cannot be read counts as empty.
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
    """The times of a run.

    >>> RunTimes(step_s=7.5).picture_s
    0.0
    """

    step_s: float
    """Seconds of an optimizer step, the median."""

    picture_s: float = 0.0
    """Seconds of a sample image, the median; 0: the run made none."""


def _compile_file() -> Path:
    """The file in inductor's folder. Source: torch/_inductor/runtime/cache_dir_utils.py,
    `cache_dir`."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        folder = str(Path(tempfile.gettempdir()) / f"torchinductor_{user}")
    return Path(folder) / "atelier_compile_times.json"


def _run_file(training_folder: str) -> Path:
    return Path(training_folder).expanduser() / CACHE_FOLDER / "run_times.json"


def compile_seconds(gpu: str) -> float | None:
    """Seconds of compiling in the last run on a GPU of this name; None where they are
    not known."""
    return _seconds(_known(_compile_file).get(gpu))


def remember_compile_seconds(gpu: str, seconds: float) -> None:
    """Keeps the time of compiling for the next plan. A folder that cannot be written to
    is reported in the log."""
    if gpu:
        _keep(_compile_file, gpu, round(seconds, 1), "compiling")


def run_times(training_folder: str, key: str) -> RunTimes | None:
    """The times of the last run with this key (`toolkit.plan.run_time.times_key`); None
    where they are not known."""
    entry = _known(lambda: _run_file(training_folder)).get(key)
    if not isinstance(entry, dict):
        return None
    step_s = _seconds(entry.get("step_s"))
    if not step_s:
        return None
    return RunTimes(step_s, _seconds(entry.get("picture_s")) or 0.0)


def remember_run_times(training_folder: str, key: str, times: RunTimes) -> None:
    """Keeps the times of a run for the next plan, as `remember_compile_seconds` does."""
    entry = {name: float(f"{seconds:.4g}") for name, seconds in times._asdict().items()}
    _keep(lambda: _run_file(training_folder), key, entry, "a step")


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _known(file: Callable[[], Path]) -> dict[str, object]:
    # KeyError: getpass, where the user has no name
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

"""How long compiling the blocks took the last time on this machine. The file lies beside PyTorch's caches of compiled
programs: a machine that has lost these compiles from the beginning. Imports no torch: a plan asks for it."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from toolkit.files.writing import write_text

logger = logging.getLogger(__name__)


def _file() -> Path:
    """In inductor's folder. Source: torch/_inductor/runtime/cache_dir_utils.py, `cache_dir`."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        folder = str(Path(tempfile.gettempdir()) / f"torchinductor_{user}")
    return Path(folder) / "atelier_compile_times.json"


def compile_seconds(gpu: str) -> float | None:
    """What compiling took in the last run on a GPU of this name, in seconds; None where none is known."""
    seconds = _known().get(gpu)
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None


def _known() -> dict[str, object]:
    with suppress(OSError, ValueError, RecursionError, KeyError):  # getpass: a user without a name
        known = json.loads(_file().read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def remember_compile_seconds(gpu: str, seconds: float) -> None:
    """Keeps it for the next plan. A folder that cannot be written to is reported in the log."""
    if not gpu:
        return
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(_known() | {gpu: round(seconds, 1)}))
    except (OSError, KeyError) as error:
        logger.info(f"the time of compiling is not kept for the next plan: {error}")

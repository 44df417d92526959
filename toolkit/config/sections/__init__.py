"""What a job can say: one file per section (`train`, `network`, `datasets[]`, ...), and
`trainer.py`, which puts the sections of a process together."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """What was in the module `toolkit.config.sections`, which is `trainer` now:
    extensions import it from here."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.trainer"), name)

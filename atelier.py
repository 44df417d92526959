"""The package of an installed program: all its other modules lie beside this file.

A wheel has this file as `atelier/__init__.py`. The command `atelier` begins here, and
puts that folder first in the path: another program's `toolkit/` or `run.py` on
PYTHONPATH is not ours. In a checkout nothing uses it.
"""

from __future__ import annotations

import sys
from pathlib import Path


def console() -> None:
    """The command `atelier` of an installation."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from run import console as run

    run()

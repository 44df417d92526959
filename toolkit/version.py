"""The program's name and version, as they stand in the files it writes, and what its command is called."""

from pathlib import Path

NAME = "Atelier"
VERSION = "0.3.0"

IS_INSTALLED = Path(__file__).resolve().parents[1].name in ("site-packages", "dist-packages")
"""Whether it runs as a package; else from a checkout."""

COMMAND = "atelier" if IS_INSTALLED else "run.py"
"""As messages and the help name it."""

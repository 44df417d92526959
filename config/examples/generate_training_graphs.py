"""The script of FluxFlow's training guide: as `run.py diagrams`, with the same
arguments."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    program = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(program))
    sys.argv[1:1] = ["diagrams"]
    runpy.run_path(str(program / "run.py"), run_name="__main__")

"""`python -m tests.stand_in_cuda job.yaml`: run.py with a CUDA device that is none."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import bitsandbytes  # noqa: F401 - it looks for CUDA's own library where there is a device

from tests.stand_in_cuda import built, install

install(built())
sys.argv = [str(Path(__file__).parents[2] / "run.py"), *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")

"""The environments of the programs: each a virtual environment of pinned packages,
outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
CACHE = Path.home() / ".cache" / "atelier-interop"
MARK = "installed.txt"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """One virtual environment."""

    name: str
    version: str
    """Program and version that it is for, as the tables show it."""

    installs: tuple[tuple[str, ...], ...] = ()
    """Arguments of each call of pip, in turn; empty: the environment that this bench
    runs in."""

    def python(self, cache: Path) -> Path:
        """Its interpreter; installs the packages where they are not there yet.

        Raises RuntimeError with the last lines of pip where a package cannot be
        installed.
        """
        if not self.installs:
            return Path(sys.executable)
        folder = cache / self.name
        python = folder / "bin" / "python"
        wanted = "\n".join(" ".join(each) for each in self.installs)
        mark = folder / MARK
        if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
            return python
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        for arguments in self.installs:
            _run([str(python), "-m", "pip", "install", "--quiet", *arguments])
        mark.write_text(wanted, encoding="utf-8")
        return python


_PEFT = (
    "diffusers==0.42.1",
    "peft==0.21.2",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "safetensors==0.8.0",
)

ENVIRONMENTS: Mapping[str, Environment] = {
    "product": Environment("product", "diffusers 0.42.1, peft 0.21.2, LyCORIS 4.1.3"),
    "diffsynth": Environment(
        "diffsynth-2.1.12", "DiffSynth 2.1.12", ((TORCH,), ("diffsynth==2.1.12",))
    ),
    "diffsynth_training": Environment(
        "diffsynth-2.1.12-cpu",
        "DiffSynth 2.1.12",
        # Without its dependency torchvision, which may replace the pinned torch by a
        # CUDA build.
        (
            (TORCH,),
            ("--no-deps", "diffsynth==2.1.12"),
            (
                "peft==0.21.2",
                "accelerate==1.15.0",
                "transformers==5.24.0",
                "safetensors==0.8.0",
                "modelscope==1.40.2",
            ),
            (
                "einops==0.8.2",
                "imageio==2.38.1",
                "ftfy==6.3.1",
                "pandas==3.1.1",
                "numpy==2.4.6",
                "pillow==13.0.0",
            ),
            ("tqdm",),
        ),
    ),
    "simpletuner": Environment(
        "simpletuner-4.10.1",
        "SimpleTuner 4.10.1",
        # It asks for Python 3.12 and 60 packages; its LoRA functions need these alone
        # and run on 3.11.
        (
            (TORCH,),
            _PEFT,
            ("--no-deps", "--ignore-requires-python", "simpletuner==4.10.1"),
        ),
    ),
    "mflux": Environment(
        "mflux-0.24.0",
        "mflux 0.24.0 (MLX 0.32.4 on the CPU)",
        # On Linux it asks for MLX with CUDA; the CPU build of the same version computes
        # the same.
        (
            (TORCH,),
            (
                "mlx[cpu]==0.32.4",
                "numpy==2.4.6",
                "safetensors==0.8.0",
                "huggingface_hub==2.4.0",
                "transformers==5.23.0",
            ),
            (
                "tqdm",
                "pillow",
                "piexif",
                "toml",
                "platformdirs",
                "regex",
                "requests",
                "sentencepiece",
            ),
            ("--no-deps", "mflux==0.24.0"),
        ),
    ),
}


def run_program(python: Path, script: str, job: Path, way: str = "") -> None:
    """Runs a script of `programs/` on a job. Raises RuntimeError with its last lines
    where it ends with an error."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "INTEROP_WAY": way,
        "PYTHONPATH": "",
    }
    _run([str(python), str(PROGRAMS / script), str(job)], environment)


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1500:]}")

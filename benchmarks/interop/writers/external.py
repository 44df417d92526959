"""Files of programs with an environment of their own: a script writes them there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.interop.environments import ENVIRONMENTS, run_program
from benchmarks.interop.files import WrittenFile
from benchmarks.interop.jobs import job_of
from benchmarks.interop.models import TinyModel

SCRIPTS = {"simpletuner": "write_simpletuner.py", "diffsynth": "write_diffsynth.py"}
"""Environment -> script."""


def write(
    model: TinyModel, folder: Path, cache: Path, name: str
) -> Iterator[WrittenFile]:
    """The files of one program. Raises RuntimeError where it cannot be installed or its
    script fails."""
    environment = ENVIRONMENTS[name]
    layers = model.layers()
    job = job_of(
        model,
        folder,
        {"layers": layers, "targets": model.targets, "results": str(folder)},
    )
    run_program(environment.python(cache), SCRIPTS[name], job)
    for file in json.loads((folder / "files.json").read_text(encoding="utf-8")):
        meant = load_file(file["meant"])
        path = Path(file["path"])
        yield WrittenFile(
            f"{name}_{file['name']}",
            model.title,
            environment.version,
            file["what"],
            path,
            meant,
            tuple(layers),
        )

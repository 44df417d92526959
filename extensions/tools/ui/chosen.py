"""The LoRA file of a run that is recommended to the user.

`chosen_file` takes the file that `run.py best` recommends, or else the file that was
saved last. It reads metadata and tensor shapes only, and never measures anything: that
is the work of `run.py best`. The page of a run offers the file
(`extensions.tools.ui.views.run`), and the form for new images starts from it
(`extensions.tools.ui.views.after`). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from extensions.tools.shared.examples import MASCOTS
from extensions.tools.shared.run_job import BASE_MODEL, last_saved
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.safetensors_io import read_metadata, tensor_shapes
from toolkit.files.writing import read_object
from toolkit.train.run_reader import list_network_files

MEASURED = "best.json"
"""File that `run.py best` writes into the folder of a run."""

_OF_OTHER_KINDS = ("hada_", "lokr_", "dora_scale", "magnitude", "oft_", ".a1.", ".diff")
"""Parts of tensor names that a plain LoRA file does not have."""


Why = Literal["recommended", "last", "last_of_unknown"]
Programs = Literal["lora", "other", "small"]


@dataclass(frozen=True)
class Chosen:
    """One saved file of a run, and the reason why it was chosen.

    Example::

        chosen = chosen_file(Path("output/cat"))
        if chosen is not None and chosen.why == "recommended":
            print(f"use {chosen.name} of step {chosen.step}")
    """

    path: Path
    size: int
    """Bytes."""

    step: int | None
    why: Why
    """`recommended`: `run.py best` recommends it. `last`: it was saved last, because
    `best` was not run, or its file is gone. `last_of_unknown`: it was saved last, and
    `best` could not tell which file is better."""

    programs: Programs
    """Key of the text that says which programs load the file."""

    @property
    def name(self) -> str:
        """Name of the file in the folder of the run."""
        return redact_text(self.path.name)


def chosen_file(folder: Path) -> Chosen | None:
    """The file that `run.py best` recommends, or else the file that was saved last.

    Returns None if the run has not saved a file yet, or saves a model folder.
    """
    saved = {file.path.name: file for file in list_network_files(folder)}
    measured = read_object(folder / MEASURED)
    last = last_saved(folder)
    recommended = measured.get("recommended")
    is_measured = isinstance(recommended, str) and recommended in saved
    name = recommended if is_measured else last.name if last else ""
    file = saved.get(str(name))
    if file is None or not file.path.is_file():
        return None
    is_told = "recommended" not in measured or recommended is not None
    why: Why = (
        "recommended" if is_measured else "last" if is_told else "last_of_unknown"
    )
    return Chosen(file.path, file.size, file.step, why, _programs(file.path))


def _programs(path: Path) -> Programs:
    try:
        if read_metadata(path).get(BASE_MODEL) == MASCOTS:
            return "small"
        keys = tensor_shapes(path)
    except (UserError, OSError, ValueError):  # damaged, or of another format
        return "other"
    if any(part in key for key in keys for part in _OF_OTHER_KINDS):
        return "other"
    return "lora"

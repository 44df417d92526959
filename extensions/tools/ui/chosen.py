"""Which file of a run to use, and the sample that shows it: what the page of a run
begins with. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from extensions.tools.shared.examples import MASCOTS
from extensions.tools.shared.run_job import BASE_MODEL, last_saved
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.safetensors_io import read_metadata, tensor_shapes
from toolkit.files.writing import read_object
from toolkit.train.run_reader import list_network_files

MEASURED = "best.json"
"""What `run.py best` writes into the folder of a run."""

_OF_OTHER_KINDS = ("hada_", "lokr_", "dora_scale", "magnitude", "oft_", ".a1.", ".diff")
"""Parts of the keys of files that are more than a LoRA."""


Why = Literal["recommended", "last", "last_of_unknown"]
Programs = Literal["lora", "other", "small"]


@dataclass(frozen=True)
class Chosen:
    """One saved file of a run."""

    path: Path
    size: int
    """Bytes."""

    step: int | None
    why: Why
    """Because `best` recommends it, or because it was saved last; of unknown: `best`
    cannot tell."""

    programs: Programs
    """Which programs load it: the key of a text."""

    @property
    def name(self) -> str:
        """Its name in the folder of the run."""
        return redact_text(self.path.name)


def chosen_file(folder: Path) -> Chosen | None:
    """The file that `best` recommends, or the one that the run has saved last.

    None: the run has saved nothing yet, or a model folder, which is not one file.
    """
    saved = {file.path.name: file for file in list_network_files(folder)}
    measured = read_object(folder / MEASURED)
    last = last_saved(folder)
    recommended = measured.get("recommended")
    is_measured = isinstance(recommended, str) and recommended in saved
    if is_measured:
        name = recommended
    else:
        name = last.name if last else ""
    file = saved.get(str(name))
    if file is None or not file.path.is_file():
        return None
    is_told = not measured.get("files") or recommended is not None
    why: Why = (
        "recommended" if is_measured else "last" if is_told else "last_of_unknown"
    )
    return Chosen(file.path, file.size, file.step, why, _programs(file.path))


def _programs(path: Path) -> Programs:
    try:
        if read_metadata(path).get(BASE_MODEL) == MASCOTS:
            return "small"
        keys = tensor_shapes(path)
    except UserError:  # a damaged file, or none that is read here
        return "other"
    if any(part in key for key in keys for part in _OF_OTHER_KINDS):
        return "other"
    return "lora"


def chosen_sample(samples: dict[str, Any], step: int | None) -> dict[str, Any] | None:
    """The first sample of the set that is nearest to a step: its `file`, `step`,
    `index`, and `prompt`.

    samples: as `sample_table` gives them. step: None means the last set. None: the run
    has no sample that can be seen.
    """
    steps = samples["steps"]
    nearest = sorted(
        steps, key=lambda each: (abs(each - step) if step is not None else -each, -each)
    )
    for each in nearest:
        at = steps.index(each)
        for row in samples["rows"]:
            if row["files"][at]:
                return {
                    "file": row["files"][at],
                    "step": each,
                    "index": row["index"],
                    "prompt": row["prompt"],
                }
    return None

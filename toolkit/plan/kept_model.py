"""The kept model of a plan (`model.keep_quantized`): its size, and room on the disk.

`kept_outlook` reads the cache of the `training_folder` and compares names only; the
start of a run compares the contents. Imports no torch, writes nothing.

The planners and `job_bytes.py` call it. The kept model is written and read by
`toolkit/models/kept`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from toolkit.config.sections.trainer import DiffusionSection
from toolkit.files.writing import CACHE_FOLDER
from toolkit.models.families import kept_bytes, kept_label
from toolkit.models.kept import kept_entries, why_not_kept
from toolkit.number_types import DTYPE_BYTES


class KeptOutlook(NamedTuple):
    """The kept model of a job.

    >>> KeptOutlook(bytes=20_000_000_000, is_there=False, lack="the disk is full").lack
    'the disk is full'
    """

    bytes: int
    """Its size, about."""

    is_there: bool
    """Whether the cache has one of this name; the start compares what it was made
    from."""

    lack: str
    """Why none will be written; empty: it will, or is there."""


def kept_outlook(section: DiffusionSection) -> KeptOutlook | None:
    """The kept model of a job: its size, and whether it exists. None where the job
    keeps none."""
    model = section.model
    if not model.keeps_quantized() or section.network.trains_model:
        return None
    cache = Path(section.training_folder).expanduser() / CACHE_FOLDER
    size = kept_bytes(model, DTYPE_BYTES[section.weights_dtype()])
    is_there = any(entry.model == kept_label(model) for entry in kept_entries(cache))
    return KeptOutlook(size, is_there, "" if is_there else why_not_kept(cache, size))

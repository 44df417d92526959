"""Model folders made of the parts of another one: small files are copied, large ones
linked.

It writes no weights: callers write the parts that they change, and leave these out.
Called by everything that writes a model folder: the writers of trained models, the
merging of LoRAs, and the makers of new models.

    place_parts(base, folder, without=("transformer",))
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from toolkit.files.writing import fsync

INDEX = "model_index.json"
CUSTOM_PIPELINE = "pipeline.py"
"""Code by which diffusers loads a folder whose class it does not have."""

LINKED_BYTES = 2**20
"""Files from this size on are linked. Smaller ones (configs, vocabularies) are copied:
people edit them."""


def place_parts(base: Path, folder: Path, without: Collection[str]) -> None:
    """Links or copies the index of the model folder `base` and its parts into `folder`.

    without: names of the parts that are left out.
    """
    index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    for name in (INDEX, CUSTOM_PIPELINE):
        if (base / name).is_file():
            place_file(base / name, folder / name)
    for part in index:
        if part not in without and (base / part).is_dir():
            for file in sorted(
                path for path in (base / part).rglob("*") if path.is_file()
            ):
                place_file(file, folder / file.relative_to(base))


def place_file(file: Path, target: Path) -> None:
    """Links a large file, so that a save needs no space for it. Small files are copied,
    and large ones too where links are impossible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = file.resolve()  # the hub's snapshots are links to its store
    if file.stat().st_size >= LINKED_BYTES:
        with suppress(OSError):  # another disk, or a file system without links
            os.link(file, target)
            return
    shutil.copyfile(file, target)
    fsync(target)

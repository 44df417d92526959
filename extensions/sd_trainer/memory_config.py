"""What `model.blocks_to_swap` and `train.compile` cannot be combined with, and what has no effect. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.config.process import Finding
from toolkit.errors import UserError
from toolkit.models.families import family_for

FEWEST_TO_SWAP = 3
"""Two of the blocks that are swapped have room on the device."""


def check_memory(section: Any) -> Iterable[Finding]:
    """Mistakes of the keys that say how the blocks are run."""
    model = section.model
    count, key = model.blocks_to_swap, ("model", "blocks_to_swap")
    if not count:
        return
    if section.network.trains_model:
        message = f"{count}: only frozen weights can be swapped, and 'network.type: full' trains them. Write 0."
        yield Finding(key, message)
        return
    try:
        blocks = family_for(model).block_count(Path(model.name_or_path).expanduser())
    except UserError:  # the model has a mistake of its own
        return
    if count >= blocks:
        yield Finding(key, f"{count}, but the model has {blocks} blocks, of which one has to stay. Write {blocks - 1}.")


def note_memory(section: Any) -> Iterable[Finding]:
    """Keys that are given and do nothing, or nothing good."""
    count, settings = section.model.blocks_to_swap, section.train.compile
    if 0 < count < FEWEST_TO_SWAP:
        message = f"{count} saves no memory: two swapped blocks have room on the device. Use at least {FEWEST_TO_SWAP}."
        yield Finding(("model", "blocks_to_swap"), message)
    for name in sorted(settings.model_fields_set - {"enabled"}):
        if not settings.enabled:
            yield Finding(("train", "compile", name), "has no effect without 'enabled: true'.")
        elif name == "mode" and settings.mode != "default" and settings.backend != "inductor":
            yield Finding(("train", "compile", name), f"has no effect: 'backend: {settings.backend}' knows no modes.")

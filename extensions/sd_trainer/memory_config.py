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


OTHER_DRAWS = ("eager", "eager_debug", "eager_noexcept", "pre_dispatch_eager")
"""Compilers by which a block that is computed again draws anew, so that its gradients are of another dropout
(torch/_higher_order_ops/wrap.py, `divide_kwargs`: the others make draws a part of the program)."""


def check_memory(section: Any) -> Iterable[Finding]:
    """Mistakes of the keys that say how the blocks are run."""
    yield from _check_compile(section)
    yield from _check_swap(section)


def _check_compile(section: Any) -> Iterable[Finding]:
    train, network = section.train, section.network
    drops = not network.trains_model and (network.dropout or network.rank_dropout or network.module_dropout)
    if not (train.compile.enabled and train.compile.backend in OTHER_DRAWS and drops):
        return
    if train.checkpointing_level() != "none":
        message = (
            f"{train.compile.backend!r} draws dropout anew where a block is computed again, and the gradients would be "
            "wrong. Use inductor or aot_eager, or 'gradient_checkpointing: none'."
        )
        yield Finding(("train", "compile", "backend"), message)


def _check_swap(section: Any) -> Iterable[Finding]:
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

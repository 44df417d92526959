"""Blocks compiled by `torch.compile`: one compiled program for all blocks of a model, not one of the whole model.

Checkpointing belongs inside: around a compiled block, selective checkpointing could not tell the operations apart.
Names of weights stay as they are, because no module is wrapped, only the function that runs a block.
"""

from __future__ import annotations

from typing import Any

import torch

from toolkit.config.compile import CompileConfig
from toolkit.contracts import BlockWrapper, RunBlock

FEWEST_PROGRAMS = 32
"""Programs that PyTorch may make of the same code before it goes on uncompiled; its own 8 are soon reached by the
first block (whose inputs need no gradient), the others, and sampling, each of several shapes."""


def compiled(settings: CompileConfig) -> BlockWrapper:
    """A wrapper that compiles what it is given, for each new kind of inputs when it first meets it."""

    def wrap(run: RunBlock) -> RunBlock:
        torch._dynamo.config.recompile_limit = settings.cache_size_limit or FEWEST_PROGRAMS
        return torch.compile(run, fullgraph=settings.fullgraph, **_of_backend(settings))

    return wrap


def _of_backend(settings: CompileConfig) -> dict[str, Any]:
    dynamic = None if settings.dynamic == "auto" else settings.dynamic
    mode = settings.mode if settings.backend == "inductor" else None  # other backends have no modes
    return {"backend": settings.backend, "mode": mode, "dynamic": dynamic}

"""`train.compile`: torch.compile of the transformer's blocks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.field_types import AutoOrBool, literal_with_aliases

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class CompileConfig(StrictModel):
    """`train.compile`: torch.compile of the transformer's blocks."""

    enabled: bool = False
    """Compile the blocks at their first use, which takes a minute or more; each step is faster then. The results
    differ by rounding; with dropouts also by the draws, which inductor makes itself."""

    backend: str = "inductor"
    """Compiler, by PyTorch's name for it. inductor needs a C++ compiler on the CPU and Triton on CUDA."""

    mode: Annotated[str, *literal_with_aliases(*MODES)] = "default"
    """What inductor optimises for; max-autotune tries more and takes longer to start."""

    dynamic: AutoOrBool = "auto"
    """Programs for any size instead of one per size. auto: from the second size on, which suits captions of many
    lengths."""

    fullgraph: bool = False
    """Fail where a block cannot be compiled in one piece, instead of compiling the pieces."""

    cache_size_limit: int = Field(default=0, ge=0)
    """Programs made of the same code before PyTorch goes on uncompiled. 0: 32."""

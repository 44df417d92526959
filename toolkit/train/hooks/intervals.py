"""When something that happens every so many steps is due. Pure."""

from __future__ import annotations


def due(step: int, every: int, start: int = 0) -> bool:
    """Whether optimizer step `step` is one of the multiples of `every` from `start` on; `every` 0 is never."""
    return bool(every) and step >= start and step % every == 0

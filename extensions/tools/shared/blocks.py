"""Strengths per block of a LoRA: `0-9:0.5` halves the change of blocks 0 to 9.

This module reads and checks such entries, and gives the strength of a layer or tensor
by its name. It neither loads nor changes weights. Imports no torch.

`scale` writes the strengths into a file, and `generation` applies them while images are
generated. The pages of a run (`run_records`, `ui/tries`) name the groups of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.config.reading.process import Diagnostic
from toolkit.errors import UserError
from toolkit.networks.targets import block_in
from toolkit.rounding import ceil_divide

BAKED = re.compile(r".+_blocks_\d+\.safetensors")
"""Names that the page of a run gives to files with strengths per block."""

MOST_GROUPS = 6
"""Groups of blocks on the page."""

_ENTRY = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?:([+-]?(?:\d+\.?\d*|\.\d+))")


@dataclass(frozen=True)
class Blocks:
    """Blocks `first` to `last`, both included, from 0, and the factor of their change.

    >>> read_blocks(["0-9:0.5"])
    (Blocks(first=0, last=9, strength=0.5),)
    """

    first: int
    last: int
    strength: float


def read_blocks(texts: Iterable[str]) -> tuple[Blocks, ...]:
    """Reads entries of the form FIRST-LAST:STRENGTH or BLOCK:STRENGTH. Raises UserError
    for another form, and for a block that is named twice."""
    blocks: list[Blocks] = []
    for text in texts:
        match = _ENTRY.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"{text!r} is not FIRST-LAST:STRENGTH. Write 0-9:0.5, or 3:0 for one block."
            )
        entry = Blocks(int(match[1]), int(match[2] or match[1]), float(match[3]))
        if entry.last < entry.first or abs(entry.strength) > 100:
            raise UserError(
                f"{text!r}: the first block comes first, and a strength is -100 to 100. Write 0-9:0.5."
            )
        if any(_overlap(entry, other) for other in blocks):
            raise UserError(
                f"{text!r} names a block that another entry names too. Name each block once."
            )
        blocks.append(entry)
    return tuple(blocks)


def _overlap(one: Blocks, other: Blocks) -> bool:
    return one.first <= other.last and other.first <= one.last


def check_blocks(key: str, texts: Sequence[str]) -> Iterator[Diagnostic]:
    """Yields a Diagnostic with the message of `read_blocks` for the first entry that
    cannot be read. It yields nothing where all can be read. key: the key of the section
    that holds the entries.

    >>> list(check_blocks("blocks", ["0-9:0.5", "12:0"]))
    []
    """
    try:
        read_blocks(texts)
    except UserError as error:
        yield Diagnostic((key,), str(error))


def strength_in(name: str, blocks: Iterable[Blocks]) -> float:
    """The strength of a layer, or of a tensor in a file; 1 where no entry names its
    block.

    >>> blocks = read_blocks(["0-9:0.5", "12:0"])
    >>> strength_in("transformer_blocks.3.attn.to_q", blocks)
    0.5
    """
    block = block_in(name)
    if block is None:
        return 1.0
    for entry in blocks:
        if entry.first <= block <= entry.last:
            return entry.strength
    return 1.0


def groups_of(names: Iterable[str]) -> list[str]:
    """The blocks of a file's tensors in at most MOST_GROUPS groups of equal size.

    >>> groups_of(f"transformer_blocks.{number}.attn" for number in range(8))
    ['0-1', '2-3', '4-5', '6-7']
    """
    numbers = [number for number in map(block_in, names) if number is not None]
    count = max(numbers, default=-1) + 1
    size = ceil_divide(count, MOST_GROUPS) or 1
    ends = [(first, min(first + size, count) - 1) for first in range(0, count, size)]
    return [f"{first}-{last}" if last > first else str(first) for first, last in ends]

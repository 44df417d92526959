"""The header of a safetensors file: its length, its JSON, and the place of each tensor. Imports no torch.

Source: the format's description in huggingface/safetensors, README.md, "Format": 8 bytes with the header's length
(little-endian), the header, the tensors without gaps, aligned to 8 bytes.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.errors import UserError

LENGTH_BYTES = 8
METADATA = "__metadata__"

Header = dict[str, Any]
"""Tensor name -> `dtype`, `shape` and `data_offsets`; the file's own texts under METADATA."""


def read_header(file: BinaryIO) -> Header:
    """The header of an open file, which then stands where the tensors begin. Raises ValueError when it is damaged."""
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    here = file.tell()
    room = file.seek(0, 2) - here
    file.seek(here)
    if len(start) < LENGTH_BYTES or length > room:
        raise ValueError("its header is cut off")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def framed(header: str) -> bytes:
    """A header as JSON text with its length before it, padded so that the tensors behind it are aligned."""
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def compact(header: Header) -> str:
    """A header as JSON text without spaces, its metadata in the order of their keys."""
    ordered = {**header, METADATA: dict(sorted(header.get(METADATA, {}).items()))}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def tensor_sizes(path: Path) -> dict[str, int]:
    """Name and number of weights of each tensor in a file of a model.

    Raises UserError, which names the file, when its header is damaged.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
        return {name: prod(entry["shape"]) for name, entry in header.items() if name != METADATA}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged weights ({error}). Copy or download the model again.") from error

"""Reads the header of a safetensors file (its length, its JSON, the place of each
tensor), and writes such files as other files are written, with usual rights and errors
of the system. Imports no torch.

Source: the format's description in huggingface/safetensors, README.md, "Format": 8
bytes with the header's length (little-endian), the header, the tensors without gaps,
aligned to 8 bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from toolkit.errors import UserError
from toolkit.files.unreadable import AGAIN, GIT_LFS, explained
from toolkit.files.writing import leftover_name, only_tidy, open_regular

if TYPE_CHECKING:
    from torch import Tensor


LENGTH_BYTES = 8
MOST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads."""

MOST_TENSORS = 50_000
"""Tensors of a file that is read whole: a LoRA and a shard of a model have some
thousands."""

METADATA = "__metadata__"

ALIGNMENT = 64
"""Bytes; PyTorch's own tensors begin at multiples of it. Kernels of a CPU may round
otherwise in a tensor that does not."""

MAGIC = {
    b"GGUF": "a GGUF file",
    b"PK\3\4": "a pickle of torch",
    b"\x80\2\x8a\n": "a pickle of torch",  # before 1.6; as a length, more than MOST_HEADER
    b"vers": GIT_LFS,
    b"<!do": "a web page",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"<HTM": "a web page",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"RIFF": "an image or a film",
}
"""First bytes of a file -> its kind, in words."""

Header = dict[str, Any]
"""Tensor name -> `dtype`, `shape` and `data_offsets`; the file's own texts under
METADATA."""


def read_header(file: BinaryIO) -> Header:
    """The header of an open file, which then stands where the tensors begin. Raises
    ValueError when it is damaged, or the file is of another kind."""
    start = file.read(LENGTH_BYTES)
    words = next(
        (words for magic, words in MAGIC.items() if start.startswith(magic)), ""
    )
    if words:
        raise ValueError(f"it is {words}")
    length = int.from_bytes(start, "little")
    here = file.tell()
    room = file.seek(0, 2) - here
    file.seek(here)
    if len(start) < LENGTH_BYTES or length > room:
        is_text = (
            len(start) == LENGTH_BYTES
            and start.decode("ascii", "replace").replace("\n", " ").isprintable()
        )
        if is_text and start.isascii():
            raise ValueError("it is a text file")
        raise ValueError("its header is cut off")
    if length > MOST_HEADER:
        raise ValueError(
            f"its header has {length:,} bytes, and {MOST_HEADER:,} are the most"
        )
    try:
        header = json.loads(file.read(length))
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("a number in its header has too many digits") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def check_count(tensors: int) -> None:
    """Raises ValueError for a file of so many tensors that working on them would not
    end."""
    if tensors > MOST_TENSORS:
        raise ValueError(
            f"it holds {tensors:,} tensors, and {MOST_TENSORS:,} are the most"
        )


def framed(header: str, alignment: int = 8) -> bytes:
    """A header as JSON text with its length before it, padded so that the tensors
    behind it begin at a multiple of `alignment` bytes.

    >>> len(framed("{}")), len(framed("{}", alignment=64))
    (16, 64)
    """
    text = header.encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % alignment)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where it begins between multiples of ALIGNMENT, as one
    in a mapped file may.

    >>> import torch
    >>> aligned(torch.zeros(4)[1:]).data_ptr() % ALIGNMENT
    0
    """
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def compact(header: Header) -> str:
    """A header as JSON text without spaces, its metadata in the order of their keys."""
    ordered = {**header, METADATA: dict(sorted(header.get(METADATA, {}).items()))}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def tensor_sizes(path: Path) -> dict[str, int]:
    """Name and number of weights of each tensor in a file of a model. Raises what
    `tensor_shapes` raises."""
    return {name: prod(shape) for name, shape in tensor_shapes(path).items()}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in a file of a model.

    Raises UserError, which names the file, when its header is damaged, or the file is
    shorter than its header says.
    """
    try:
        with open_regular(path) as file:
            header = read_header(file)
            begin = file.tell()
            end = file.seek(0, 2)
        entries = {name: entry for name, entry in header.items() if name != METADATA}
        check_count(len(entries))
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        if end - begin < max(ends, default=0):
            raise ValueError("it is cut off")
        return {
            name: tuple(map(int, entry["shape"])) for name, entry in entries.items()
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: {explained(path, error, 'damaged weights', AGAIN)}"
        ) from error


def merge_files(
    files: Mapping[Path, str], path: Path, metadata: Mapping[str, str]
) -> None:
    """One file with the tensors of several, bytes copied as they are. files: each with
    the prefix for its tensors' names. Raises ValueError for a damaged file and for
    two tensors of one name."""
    merged: Header = {METADATA: dict(metadata)}
    begins = list[int]()
    end = 0
    for file, prefix in files.items():
        with file.open("rb") as source:
            header = read_header(source)
            begins.append(source.tell())
            size = source.seek(0, 2) - begins[-1]
        for name, entry in header.items():
            if name == METADATA:
                continue
            if f"{prefix}{name}" in merged:
                raise ValueError(f"{file}: two tensors would be named {prefix}{name}")
            first, last = entry["data_offsets"]
            merged[f"{prefix}{name}"] = {
                **entry,
                "data_offsets": [end + first, end + last],
            }
        end += size
    with path.open("wb") as target:
        target.write(framed(compact(merged)))
        for file, begin in zip(files, begins, strict=True):
            with file.open("rb") as source:
                source.seek(begin)
                shutil.copyfileobj(source, target)


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """`safetensors.torch.save_file`, for everybody who may read new files here. Raises
    OSError when it cannot.

    Since 0.8 safetensors gives its files to the owner alone (mode 600): what root
    writes in a container could not be read by the user outside, nor by another program
    that runs as somebody else.
    """
    # here, so that readers of a run need no torch
    from safetensors import (
        torch as safetensors,
    )

    path.touch()
    usual = path.stat().st_mode
    # In a separate folder: safetensors writes under a random name first, which could not
    # be found after a kill.
    folder = leftover_name(path)
    folder.mkdir()
    try:
        with as_os_error():
            file = folder / "weights"
            safetensors.save_file(
                dict(tensors),
                file,
                metadata=None if metadata is None else dict(metadata),
            )
        with only_tidy(path, "only the owner may read new safetensors files"):
            file.chmod(usual)
        os.replace(file, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def as_os_error() -> Iterator[None]:
    """An error of safetensors inside the block, which reports a full disk in its own
    words, becomes an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def is_own_file(path: Path) -> bool:
    """Whether this program wrote a safetensors file: its metadata have the hash of the
    weights."""
    try:
        return (
            re.fullmatch("[0-9a-f]{64}", str(read_metadata(path).get("sha256")))
            is not None
        )
    except (OSError, ValueError, RecursionError):
        return False


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in the header of a safetensors file; empty when there is none.

    Reads the header alone. Raises OSError when the file cannot be read, ValueError when
    it has no whole header.
    """
    try:
        with open_regular(path) as file:
            metadata = read_header(file).get(METADATA, {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its header is not that of a safetensors file")
    return metadata

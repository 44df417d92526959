"""The matrix as tests/golden/interop.json: the form of every file, and what each reader
makes of it.

A file's numbers are not kept: `rebuild` makes a file of the same form with other ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.interop.comparison import Cell
from benchmarks.interop.files import Draws, WrittenFile
from benchmarks.interop.readers import READERS
from benchmarks.interop.table import Matrix

BLOCK = re.compile(r"(?<=transformer_blocks[._])\d+(?=[._])")
"""The number of a block in a key."""

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

BLOCKS = 2
"""Of both models."""

DIGITS = 3
"""Significant digits of strengths and errors."""


def record(files: Sequence[WrittenFile], matrix: Matrix) -> dict[str, Any]:
    """What the file holds."""
    return {
        "source": "benchmarks/bench_interop.py",
        "note": "keys: start of keys -> end -> [shape, dtype], or the shape alone for F32; {} stands for each block. "
        "numbers: of keys of one number, by their end where all are alike. metadata: JSON in it is written out. A cell "
        "of a reader is [outcome] or [outcome, strength, error] or [outcome, null, null, message].",
        "readers": {name: reader.version for name, reader in READERS.items()},
        "cases": [_case(file, matrix) for file in files],
    }


def _case(file: WrittenFile, matrix: Matrix) -> dict[str, Any]:
    tensors = file.tensors()
    case: dict[str, Any] = {
        "name": file.name,
        "model": file.model,
        "writer": file.writer,
        "what": file.what,
        "file_name": file.path.name,
        "strength_in_file": file.in_file,
        "keys": _by_block(_forms(file, tensors)),
        "numbers": _by_end(
            {key: t.reshape(()).item() for key, t in tensors.items() if t.numel() == 1}
        ),
        "metadata": {key: _parsed(text) for key, text in file.metadata().items()},
        "meant_norm": _digits(
            math.sqrt(
                sum(
                    float(change.double().square().sum())
                    for change in file.meant.values()
                )
            )
        ),
        "cells": {name: _cell(cells[file.place]) for name, cells in matrix.items()},
    }
    if file.config is not None:
        case["adapter_config"] = json.loads(file.config.read_text(encoding="utf-8"))
    return case


def _cell(cell: Cell) -> list[Any]:
    if cell.outcome in ("error", "refused"):
        return [cell.outcome, None, None, cell.said]
    if cell.strength is None or cell.outcome in ("exact", "nothing"):
        return [cell.outcome]
    assert cell.error is not None
    return [cell.outcome, _digits(cell.strength), _digits(cell.error)]


def _digits(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def _parsed(text: str) -> Any:
    """The value of a JSON object; any other text as it is."""
    return json.loads(text) if text.startswith("{") else text


def metadata_of(case: Mapping[str, Any]) -> dict[str, str]:
    """The header metadata of a recorded file."""
    return {
        key: json.dumps(value) if isinstance(value, dict) else value
        for key, value in case["metadata"].items()
    }


def _forms(
    file: WrittenFile, tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Start of the keys of a layer -> their ends -> shape and dtype."""
    names = [
        spelled for layer in file.layers for spelled in (layer, layer.replace(".", "_"))
    ]
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        inside = [name for name in names if name in key]
        name = max(inside, key=len, default="")
        end = key.index(name) + len(name) if name else len(key)
        shape = list(tensor.shape)
        is_usual = tensor.dtype == torch.float32
        found.setdefault(key[:end], {})[key[end:]] = (
            shape if is_usual else [shape, _NAMES[tensor.dtype]]
        )
    return found


def _by_block(values: Mapping[str, Any]) -> dict[str, Any]:
    """With {} for the number of the block where all blocks have the same value."""
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        grouped.setdefault(BLOCK.sub("{}", key), {})[key] = value
    found: dict[str, Any] = {}
    for pattern, of_blocks in grouped.items():
        first = next(iter(of_blocks.values()))
        is_whole = len(of_blocks) == BLOCKS and all(
            value == first for value in of_blocks.values()
        )
        found |= {pattern: first} if "{}" in pattern and is_whole else of_blocks
    return found


def _by_end(numbers: Mapping[str, float]) -> dict[str, float]:
    """The one number of all keys with an end, such as `.alpha`, where they are alike;
    else each."""
    found: dict[str, float] = {}
    for end in sorted({key[key.rindex(".") :] for key in numbers if "." in key}):
        of_end = {key: number for key, number in numbers.items() if key.endswith(end)}
        values = set(of_end.values())
        found |= {end: values.pop()} if len(values) == 1 else of_end
    return found


def shapes_of(
    case: Mapping[str, Any],
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each key of a recorded file."""
    found = {}
    for start, ends in case["keys"].items():
        starts = (
            [start.format(block) for block in range(BLOCKS)]
            if "{}" in start
            else [start]
        )
        for end, form in ends.items():
            is_usual = all(isinstance(size, int) for size in form)
            shape, dtype = (form, "F32") if is_usual else form
            found |= {one + end: (tuple(shape), DTYPES[dtype]) for one in starts}
    return found


def rebuild(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the same names, shapes and dtypes, drawn anew; single numbers, such as
    alphas, as they were."""
    draws = Draws("rebuilt", case["model"], case["name"])
    tensors: dict[str, Tensor] = {}
    for key, (shape, dtype) in shapes_of(case).items():
        number = case["numbers"].get(key, case["numbers"].get(key[key.rfind(".") :]))
        if number is not None and math.prod(shape) == 1:
            tensors[key] = torch.full(shape, number, dtype=dtype)
        else:
            tensors[key] = draws.normal(*shape).to(dtype)
    return tensors


def text_of(recorded: Mapping[str, Any]) -> str:
    """One line for each case: small, and a change of one file is a change of one
    line."""
    head = {key: value for key, value in recorded.items() if key != "cases"}
    lines = ",\n".join(
        json.dumps(case, ensure_ascii=False, separators=(",", ":"))
        for case in recorded["cases"]
    )
    return (
        json.dumps(head, ensure_ascii=False, indent=1)[:-2]
        + f',\n "cases": [\n{lines}\n]}}\n'
    )

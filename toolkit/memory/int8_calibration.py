"""W8A8 calibration: chooses once which layers use int8 matmuls, by the error of quantizing their inputs and gradients.

During calibration the layers multiply in floating point and keep their largest errors on the device, which are read
once. After that the choice is fixed, whatever the values.

Shape suffixes: M rows (tokens), K the summed side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn

from toolkit.memory.int8_matmul import (
    MAX_ERROR,
    MIN_ROWS,
    Int8Matmul,
    exact_directions,
    is_supported,
    quantization_error,
)
from toolkit.memory.quantization import Int8Matmuls, RowwiseQuantized

MOST_PATTERNS = 4
"""Largest number of different block patterns (which layers use int8 matmuls) with compilation: each has its program."""


def int8_layers(model: nn.Module) -> list[RowwiseQuantized]:
    """All weights in int8, in the order of the model."""
    return [part for part in model.modules() if isinstance(part, RowwiseQuantized) and part.code_type == torch.int8]


def candidates(
    model: nn.Module, wanted: Int8Matmul, device: torch.device, compiled: bool = False
) -> list[RowwiseQuantized]:
    """The int8 layers that can use int8 matmuls, if their errors are small; see `is_supported`."""
    return [layer for layer in int8_layers(model) if is_supported(wanted, device, tuple(layer.shape), compiled)]


LayerErrors = dict[str, float]
"""The largest errors of one layer, by field of `Int8Matmuls`. Missing: a field that never had enough rows, or for
which the device has no exact matmul."""


class ErrorObserver:
    """The largest errors of one layer so far, on the device."""

    def __init__(self) -> None:
        self.worst: dict[str, Tensor] = {}
        """As `LayerErrors`, each 0-dim."""

    def __call__(self, direction: str, rows_MK: Tensor) -> None:
        if len(rows_MK) >= MIN_ROWS and direction in exact_directions(rows_MK.device):
            error = quantization_error(rows_MK)
            self.worst[direction] = torch.maximum(self.worst.get(direction, error), error)  # NaN stays NaN


@contextmanager
def observe_errors(layers: Sequence[RowwiseQuantized]) -> Iterator[list[ErrorObserver]]:
    """Inside the block the layers multiply in floating point and record their errors; yields one observer per layer."""
    errors = [ErrorObserver() for _ in layers]
    try:
        for layer, own in zip(layers, errors, strict=True):
            layer.in_int8, layer.watch = Int8Matmuls(), own
        yield errors
    finally:
        for layer in layers:
            layer.watch = None


def errors_to_host(errors: Sequence[ErrorObserver]) -> list[LayerErrors]:
    """The errors on the host, in one transfer."""
    worst = [value for own in errors for value in own.worst.values()]
    values = iter(torch.stack(worst).tolist() if worst else [])
    return [{direction: next(values) for direction in own.worst} for own in errors]


def is_small(error: float) -> bool:
    """Whether a matmul with this error may be int8; NaN is not small."""
    return error <= MAX_ERROR


def choose(layers: Sequence[RowwiseQuantized], errors: Sequence[LayerErrors]) -> None:
    """Sets the int8 matmuls of each layer: those that were observed and have small errors."""
    for layer, error in zip(layers, errors, strict=True):
        layer.in_int8 = Int8Matmuls(*map(bool, _flags(error)))


# ------------------------------------------------------------ few patterns

Pattern = tuple[bool | None, ...]
"""For each layer of a block, forward and backward: whether the error is small; None where none was observed."""


def choose_with_few_patterns(
    layers: Sequence[RowwiseQuantized], errors: Sequence[LayerErrors], blocks: Iterable[nn.Module], most: int = 0
) -> None:
    """`choose` with at most `most` (0: MOST_PATTERNS) different block patterns and as many int8 matmuls as possible.
    Matmuls that were not observed (the first block has no input gradients) follow other blocks of the pattern."""
    error_of = dict(zip(layers, errors, strict=True))
    layers_of = [int8_layers(block) for block in blocks]
    patterns = [tuple(flag for layer in own for flag in _flags(error_of.get(layer))) for own in layers_of]
    shared = few_patterns(patterns, most or MOST_PATTERNS)
    for own, pattern in zip(layers_of, patterns, strict=True):
        flags = map(bool, shared[pattern])
        for layer in own:
            layer.in_int8 = Int8Matmuls(*(next(flags) for _ in Int8Matmuls._fields))


def _flags(error: LayerErrors | None) -> Pattern:
    """The pattern of one layer. error: None for a layer that is not a candidate."""
    if error is None:
        return (False,) * len(Int8Matmuls._fields)
    return tuple(is_small(error[direction]) if direction in error else None for direction in Int8Matmuls._fields)


def few_patterns(patterns: Sequence[Pattern], most: int) -> dict[Pattern, Pattern]:
    """Maps each pattern to a subset of it, at most `most` different ones; patterns of different lengths never merge."""
    blocks = Counter(patterns)
    shared = {pattern: pattern for pattern in blocks}

    def lost(pair: tuple[Pattern, Pattern]) -> int:
        both = _both(*pair)
        return sum(blocks[part] * sum(a is True and not b for a, b in zip(part, both, strict=True)) for part in pair)

    while pairs := [pair for pair in combinations(blocks, 2) if len(pair[0]) == len(pair[1])]:
        pair = min(pairs, key=lost)
        if len(blocks) <= most and lost(pair):
            break
        both = _both(*pair)
        blocks[both] += sum(blocks.pop(part) for part in pair)
        shared = {pattern: both if found in pair else found for pattern, found in shared.items()}
    return shared


def _both(one: Pattern, other: Pattern) -> Pattern:
    return tuple(b if a is None else a if b is None else a and b for a, b in zip(one, other, strict=True))

"""The rotation that ComfyUI's int8_convrot weights are stored in: groups of inputs
times a regular Hadamard matrix.

Shape suffixes: S inputs of a group."""

from __future__ import annotations

import torch
from torch import Tensor


def regular_hadamard(group: int) -> Tensor:
    """The orthogonal matrix [S, S] that is its own inverse, float32. group: a power of
    4.

    Its numbers are +-1 / sqrt(S), exact in every floating-point type. Source:
    comfy-kitchen 0.2.40, tensor/int8_utils.py, `_build_hadamard`; it is not
    Sylvester's.

    >>> matrix = regular_hadamard(4)
    >>> bool((matrix @ matrix == torch.eye(4)).all()), float(matrix[0, 0])
    (True, 0.5)
    """
    of_4 = (1 - 2 * torch.eye(4).flip(0)) / 2
    matrix_SS = of_4
    while len(matrix_SS) < group:
        matrix_SS = torch.kron(matrix_SS, of_4)
    return matrix_SS


def rotate(values: Tensor, matrix_SS: Tensor) -> Tensor:
    """Each group of S values along the last axis times the matrix, which has the dtype
    of the values."""
    groups: Tensor = values.unflatten(-1, (-1, len(matrix_SS)))
    return (groups @ matrix_SS).flatten(-2)

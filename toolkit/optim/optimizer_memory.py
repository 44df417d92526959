"""Bytes of optimizer state, by the optimizer's name. Imports no torch: the memory estimate uses it.

Source of each: the tensors that the class puts into its state in its first step (torch.optim, transformers'
optimization.py, prodigyopt's prodigy.py, schedulefree's adamw_schedulefree.py, bitsandbytes' optimizer.py and
ademamix.py; its blocks have 256 weights, its matrices below 4096 weights stay float32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

from toolkit.optim.optimizer_args import OPTIMIZERS

Shape = tuple[int, ...]
Arguments = Mapping[str, Any]

BLOCK = 256
LEAST_FOR_8_BIT = 4096
FLOAT = 4


def optimizer_bytes(name: str, arguments: Arguments, shapes: Iterable[Shape]) -> int:
    """Bytes of the state for weights of these shapes. name, arguments: `train.optimizer` and its `optimizer_params`.

    A class that is not in the table is taken to keep two numbers per weight, as most do.
    """
    kind = OPTIMIZERS.get(name, name).replace(":", ".").rpartition(".")[2]
    of_shape = _STATE.get(kind, _numbers(2))
    return sum(of_shape(shape, arguments) for shape in shapes)


def _numbers(count: float) -> Callable[[Shape, Arguments], int]:
    return lambda shape, arguments: int(FLOAT * count * prod(shape))


def _sgd(shape: Shape, arguments: Arguments) -> int:
    return FLOAT * prod(shape) if arguments.get("momentum") else 0


def _adafactor(shape: Shape, arguments: Arguments) -> int:
    """Of a matrix the means of its rows and columns, of a vector all; with beta1 the first moment too."""
    squares = sum(shape) if len(shape) == 2 else prod(shape)
    return FLOAT * (squares + (prod(shape) if arguments.get("beta1") is not None else 0))


def _prodigy(shape: Shape, arguments: Arguments) -> int:
    """Two moments, and of each `slice_p`-th weight its start and the sum of its gradients."""
    return int(FLOAT * prod(shape) * (2 + 2 / max(1, int(arguments.get("slice_p", 1)))))


def _eight_bit(moments: int) -> Callable[[Shape, Arguments], int]:
    def of_shape(shape: Shape, arguments: Arguments) -> int:
        count = prod(shape)
        if count < LEAST_FOR_8_BIT:
            return FLOAT * moments * count
        return moments * (count + FLOAT * -(-count // BLOCK))

    return of_shape


_STATE: dict[str, Callable[[Shape, Arguments], int]] = {
    "AdamW": _numbers(2),
    "Adam": _numbers(2),
    "AdamWScheduleFree": _numbers(2),
    "SGD": _sgd,
    "Adafactor": _adafactor,
    "Prodigy": _prodigy,
    "AdamW8bit": _eight_bit(2),
    "Adam8bit": _eight_bit(2),
    "Lion8bit": _eight_bit(1),
    "AdEMAMix8bit": _eight_bit(3),
}
"""By the name of the class."""

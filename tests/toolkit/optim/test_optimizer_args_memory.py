"""What an optimizer is said to keep is what it keeps: each is stepped once and its tensors are counted."""

from __future__ import annotations

from math import prod

import pytest
import torch

from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.optim.optimizers import build_optimizer, state_tensors

SHAPES = [(96, 64), (40, 8), (100,)]


def kept(name: str, arguments: dict) -> int:
    """Bytes of the state's tensors with more than one number."""
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    optimizer = build_optimizer(name, parameters, 1e-3, arguments)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, _ = state_tensors(optimizer, ["a", "b", "c"])
    tables = ("qmap1", "qmap2")  # one of 256 numbers, shared by all
    return sum(
        t.numel() * t.element_size() for name, t in tensors.items() if t.numel() > 1 and not name.endswith(tables)
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adamw", {}),
        ("adam", {}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("torch.optim.SGD", {"momentum": 0.9}),
        ("rmsprop", {}),
        ("rmsprop", {"momentum": 0.9, "centered": True}),
        ("lion", {}),
        ("muon", {}),
        ("adafactor", {}),
        ("adafactor", {"beta1": 0.9}),
        ("prodigy", {}),
        ("prodigy", {"slice_p": 8}),
        ("schedulefree_adamw", {}),
        ("adamw8bit", {}),
        ("lion8bit", {}),
    ],
)
def test_the_bytes_are_those_of_the_real_state(name: str, arguments: dict) -> None:
    assert optimizer_bytes(name, arguments, SHAPES) == pytest.approx(kept(name, arguments), abs=16)


def test_a_class_nobody_knows_is_taken_to_keep_two_numbers() -> None:
    assert optimizer_bytes("some.package.Optimizer", {}, SHAPES) == 8 * sum(map(prod, SHAPES))

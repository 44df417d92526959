"""One parameter at a time must be the same training as all at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.optim.optimizers import build_optimizer, state_tensors
from toolkit.optim.stochastic_rounding import PerParameterStepper

NAMES = ["a", "b", "c"]
ARGUMENTS = {"sgd": {"momentum": 0.9}, "adafactor": {"beta1": 0.9}, "adam": {"foreach": False}, "adamw": {}}


def fresh(name: str) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (5, 3), "b": (4,), "c": (3, 2)}
    parameters = {key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()}
    groups = {"one": [parameters["a"], parameters["c"]], "two": [parameters["b"]]}
    optimizer = build_optimizer(name, groups, 0.01, ARGUMENTS[name])
    optimizer.param_groups[1]["lr"] = 0.1
    return parameters, optimizer


def gradient(parameter: nn.Parameter, step: int) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_same_weights_and_the_same_state_in_any_order(name: str) -> None:
    at_once, whole = fresh(name)
    single, parts = fresh(name)
    one_by_one = PerParameterStepper(parts)
    for step in range(5):
        for key in NAMES:
            at_once[key].grad = gradient(at_once[key], step)
        whole.step()
        for key in reversed(NAMES):
            single[key].grad = gradient(single[key], step)
            one_by_one.step(single[key])
            single[key].grad = None
    assert all(torch.equal(at_once[key], single[key]) for key in NAMES)
    order = ["a", "c", "b"]
    (tensors, plain), (of_parts, plain_of_parts) = state_tensors(whole, order), state_tensors(parts, order)
    assert plain == plain_of_parts and tensors.keys() == of_parts.keys()
    assert all(torch.equal(tensor, of_parts[key]) for key, tensor in tensors.items())


def test_groups_that_are_loaded_later_are_used() -> None:
    parameters, optimizer = fresh("sgd")
    one_by_one = PerParameterStepper(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the groups
    optimizer.param_groups[0]["lr"] = 0.0
    before = parameters["a"].detach().clone()
    parameters["a"].grad = torch.ones_like(before)
    one_by_one.step(parameters["a"])
    assert torch.equal(parameters["a"], before)

"""A step that is left out leaves no trace, in whatever optimizer."""

from __future__ import annotations

import pytest
import torch

from tests.toolkit.optim.test_optimizers import ARGUMENTS, NAMES, equal, start, values
from toolkit.optim.optimizer_args import OPTIMIZERS
from toolkit.optim.optimizers import build_optimizer, state_tensors, step_if, supports_found_inf


def train(name: str, step_ok: list[bool], arguments: dict | None = None):
    """Steps with the gradients of their numbers, those that are not taken with gradients that are no numbers."""
    parameters = start()
    optimizer = build_optimizer(name, parameters, 1e-2, ARGUMENTS.get(name, {}) | (arguments or {}))
    done = 0
    for is_taken in step_ok:
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * done + index)
            parameter.grad = 0.1 * torch.randn(parameter.shape, generator=generator)
            if not is_taken:
                parameter.grad[0] = float("nan")
        step_if(optimizer, torch.tensor(is_taken))
        done += is_taken
    return parameters, state_tensors(optimizer, NAMES)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "torch.optim.NAdam"])
@pytest.mark.parametrize("taken", [(False, True, True, True), (True, False, False, True, True)])
def test_the_training_goes_on_as_if_the_step_had_never_been(name: str, taken: tuple[bool, ...]) -> None:
    parameters, (tensors, plain) = train(name, list(taken))
    expected, (expected_tensors, expected_plain) = train(name, [True] * 3)
    assert equal(values(parameters), values(expected))
    assert tensors.keys() == expected_tensors.keys() and plain == expected_plain
    assert all(torch.equal(tensors[key], expected_tensors[key]) for key in tensors)


def test_which_optimizers_need_no_word_from_the_host() -> None:
    guarding = {name for name in OPTIMIZERS if supports_found_inf(build_optimizer(name, start(), 1e-3, {}))}
    assert guarding == {"adamw", "adam"}


@pytest.mark.parametrize("arguments", [{"foreach": True}, {"fused": False}, {"capturable": False}])
def test_what_the_user_chooses_of_torchs_kernels_is_taken(arguments: dict) -> None:
    optimizer = build_optimizer("adamw", start(), 1e-3, arguments)
    assert not supports_found_inf(optimizer)
    assert all(optimizer.param_groups[0][key] is value for key, value in arguments.items())


def test_the_fused_kernel_computes_what_torchs_plain_loop_does() -> None:
    fused, (tensors, _) = train("adamw", [True] * 5, {"weight_decay": 0.1})
    plain, (expected, _) = train("adamw", [True] * 5, {"weight_decay": 0.1, "fused": False, "foreach": False})
    torch.testing.assert_close(values(fused), values(plain), rtol=1e-5, atol=1e-7)
    assert tensors.keys() == expected.keys(), "a state of one is a state of the other"
    assert {key: t.dtype for key, t in tensors.items()} == {key: t.dtype for key, t in expected.items()}

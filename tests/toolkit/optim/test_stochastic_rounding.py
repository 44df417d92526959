"""Stochastic rounding: unbiased, small updates arrive, and a resume draws what the run
would have drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit.optim.optimizers import build_optimizer, state_tensors
from toolkit.optim.stochastic_rounding import (
    PerParameterStepper,
    StochasticRoundingOptimizer,
    stochastic_round_bf16,
)
from toolkit.system.sharded_param import RowShard

BF16 = torch.bfloat16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("value", [1.0 + 2**-9, -3.1, 1e-3, -7e-20, 1e-39, 65504.0])
def test_the_result_is_a_neighbour_and_its_mean_is_the_value(value: float) -> None:
    values = torch.full((100_000,), value)
    rounded = stochastic_round_bf16(values, generator())
    below, above = sorted(rounded.float().unique().tolist())
    value = values[0].item()
    assert below < value < above
    assert (
        torch.tensor(below)
        .to(BF16)
        .view(torch.int16)
        .sub(torch.tensor(above).to(BF16).view(torch.int16))
        .abs()
        == 1
    )
    share = (value - below) / (above - below)
    found = (rounded.float() == above).double().mean().item()
    # five standard errors
    assert found == pytest.approx(
        share, abs=5 * (share * (1 - share) / len(values)) ** 0.5
    )


def test_numbers_of_bf16_and_what_is_not_finite_stay() -> None:
    largest = torch.finfo(BF16).max
    values = torch.tensor(
        [
            0.0,
            -0.0,
            1.0,
            -2.5,
            2.0**-133,
            largest,
            -largest,
            float("inf"),
            float("-inf"),
        ]
    )
    rounded = stochastic_round_bf16(values, generator())
    assert torch.equal(rounded.float(), values) and torch.equal(
        rounded.signbit(), values.signbit()
    )
    nan = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(
        torch.float32
    )
    assert stochastic_round_bf16(nan, generator()).isnan().all()


# ---------------------------------------------------------------- the optimizer


def rounded(
    name: str,
    weights: dict[str, Tensor],
    lr: float,
    seed: int = 7,
    shared_out: dict[str, RowShard] | None = None,
    **arguments,
) -> tuple[dict, StochasticRoundingOptimizer]:
    parameters = {
        key: nn.Parameter(weight.to(BF16, copy=True)) for key, weight in weights.items()
    }

    def build(of: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        return build_optimizer(name, of.values(), lr, arguments)

    return parameters, StochasticRoundingOptimizer(parameters, build, seed, shared_out)


def test_updates_far_below_the_resolution_arrive_on_average() -> None:
    """200 steps of 2^-14 at weights of 1, where bf16 knows 1 and 1 - 2^-8: rounded to
    nearest none would arrive."""
    parameters, optimizer = rounded("sgd", {"w": torch.ones(10_000)}, lr=2**-14)
    for _ in range(200):
        parameters["w"].grad = torch.ones(10_000, dtype=BF16)
        optimizer.step()
    moved = 1 - parameters["w"].detach().double()
    assert moved.mean().item() == pytest.approx(200 * 2**-14, rel=0.02)
    nearest = torch.ones(1, dtype=BF16)
    assert nearest - 2**-14 == nearest


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_the_step_before_rounding_is_the_optimizers_in_float32(name: str) -> None:
    """Weights and gradients of bf16: the result is one of the two neighbours of what
    float32 gives."""
    start, gradient = (
        torch.randn(64, 32, generator=generator(1)).to(BF16),
        torch.randn(64, 32, generator=generator(2)),
    )
    parameters, optimizer = rounded(name, {"w": start}, lr=0.01)
    parameters["w"].grad = gradient.to(BF16)
    optimizer.step()
    plain = nn.Parameter(start.float())
    plain.grad = gradient.to(BF16).float()
    build_optimizer(name, [plain], 0.01, {}).step()
    found, exact = parameters["w"].detach().float(), plain.detach()
    spacing = torch.finfo(BF16).eps * exact.abs()
    assert ((found - exact).abs() <= spacing).all()
    assert (found != exact.to(BF16).float()).any()  # and not simply the nearest
    # five standard errors at most
    assert (found - exact).mean().abs() <= 5 * spacing.norm() / 2 / spacing.numel()
    tensors, _ = state_tensors(optimizer, ["w"])
    assert {t.dtype for t in tensors.values()} <= {torch.float32}


def test_each_parameter_step_and_seed_draws_for_itself() -> None:
    def train(seed: int, keys: str = "ab") -> dict[str, Tensor]:
        parameters, optimizer = rounded(
            "sgd", dict.fromkeys(keys, torch.ones(1000)), lr=2**-10, seed=seed
        )
        for parameter in parameters.values():
            parameter.grad = torch.ones(1000, dtype=BF16)
        optimizer.step()
        return {key: p.detach() for key, p in parameters.items()}

    assert torch.equal(train(1)["b"], train(1, "b")["b"])  # whatever else is trained
    assert not torch.equal(train(1)["a"], train(1)["b"])
    assert not torch.equal(train(1)["a"], train(2)["a"])


def test_no_float32_copy_stays() -> None:
    parameters, optimizer = rounded("sgd", {"w": torch.ones(1000)}, lr=0.1)
    parameters["w"].grad = torch.ones(1000, dtype=BF16)
    optimizer.step()
    [stand_in] = optimizer.inner.param_groups[0]["params"]
    assert stand_in.numel() == 0 and stand_in.grad is None


# ------------------------------------------------------------ one parameter at a time


NAMES = ["a", "b", "c"]
ARGUMENTS = {
    "sgd": {"momentum": 0.9},
    "adafactor": {"beta1": 0.9},
    "adam": {"foreach": False},
    "adamw": {},
}


def fresh(name: str) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (5, 3), "b": (4,), "c": (3, 2)}
    parameters = {
        key: nn.Parameter(torch.randn(shape, generator=generator))
        for key, shape in shapes.items()
    }
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
    (tensors, plain), (of_parts, plain_of_parts) = (
        state_tensors(whole, order),
        state_tensors(parts, order),
    )
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

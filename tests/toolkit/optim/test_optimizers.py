from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.optimizer_names import INSTALLED, SHORT_NAMES
from toolkit.optim.optimizer_args import ArgumentError
from toolkit.optim.optimizers import (
    build_optimizer,
    eval_mode,
    load_state_tensors,
    state_tensors,
    step_if,
    supports_found_inf,
)

NAMES = ["blocks.0.to_q.lora_A.weight", "blocks.0.to_q.lora_B.weight", "bias"]
SHAPES = [(64, 128), (128, 64), (7,)]
"""The first two are large enough for 8-bit state (4096 values), the last is not."""

ARGUMENTS = {"sgd": {"momentum": 0.9}}
"""Without momentum SGD has no state."""

DOTTED = ["schedulefree.SGDScheduleFree", "torch.optim.NAdam"]


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def take_steps(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range
) -> None:
    for step in steps:
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = 0.1 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [*SHORT_NAMES, *DOTTED])
def test_every_optimizer_goes_on_from_its_saved_state_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    parameters = start()
    optimizer = build_optimizer(name, parameters, 1e-2, ARGUMENTS.get(name, {}))
    take_steps(optimizer, parameters, range(3))
    assert not equal(values(parameters), values(start()))
    tensors, plain = state_tensors(optimizer, NAMES)
    save_file(
        {key: tensor.contiguous().clone() for key, tensor in tensors.items()},
        tmp_path / "o.safetensors",
    )
    (tmp_path / "o.json").write_text(json.dumps(plain))

    resumed_parameters = [nn.Parameter(value) for value in values(parameters)]
    resumed = build_optimizer(name, resumed_parameters, 1e-2, ARGUMENTS.get(name, {}))
    load_state_tensors(
        resumed,
        NAMES,
        load_file(tmp_path / "o.safetensors"),
        json.loads((tmp_path / "o.json").read_text()),
    )
    fresh_parameters = [nn.Parameter(value) for value in values(parameters)]
    fresh = build_optimizer(name, fresh_parameters, 1e-2, ARGUMENTS.get(name, {}))
    for one, of_it in (
        (optimizer, parameters),
        (resumed, resumed_parameters),
        (fresh, fresh_parameters),
    ):
        take_steps(one, of_it, range(3, 6))
    assert equal(values(resumed_parameters), values(parameters))
    assert not equal(values(fresh_parameters), values(parameters)), (
        "the state must matter, or this says nothing"
    )


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_every_optimizer_obeys_the_learning_rate(name: str) -> None:
    parameters = start()
    take_steps(build_optimizer(name, parameters, 0.0, {}), parameters, range(2))
    assert equal(values(parameters), values(start()))


def test_adafactor_follows_the_given_learning_rate_unless_told_otherwise() -> None:
    assert (
        build_optimizer("adafactor", start(), 1e-3, {}).param_groups[0]["relative_step"]
        is False
    )
    relative = build_optimizer("adafactor", start(), None, {"relative_step": True})
    assert relative.param_groups[0]["relative_step"] is True


# ---------------------------------------------------------------- dotted paths


def test_what_the_constructor_refuses_is_a_mistake() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"torch\.optim\.Adam refuses them: Invalid epsilon value: -1",
    ):
        build_optimizer("torch.optim.Adam", start(), 1e-3, {"eps": -1})


def test_texts_reach_the_optimizer_as_numbers() -> None:
    assert build_optimizer("adamw", start(), 1e-3, {"betas": "0.8,0.9"}).param_groups[
        0
    ]["betas"] == (0.8, 0.9)


# ---------------------------------------------------------------- what belongs to all
# parameters


def test_prodigys_estimate_is_part_of_the_state() -> None:
    parameters = start()
    optimizer = build_optimizer("prodigy", parameters, 1.0, {"d_coef": 0.5})
    take_steps(optimizer, parameters, range(3))
    _, plain = state_tensors(optimizer, NAMES)
    numerator = optimizer.param_groups[0]["d_numerator"]
    assert (plain["param_groups/0/k"], plain["param_groups/0/d_numerator"]) == (
        3,
        numerator,
    ) and numerator != 0
    assert not {
        "param_groups/0/d_coef",
        "param_groups/0/lr",
        "param_groups/0/betas",
    } & set(plain), "settings are not state"


def test_a_changed_setting_outlives_the_saved_state() -> None:
    parameters = start()
    optimizer = build_optimizer(
        "schedulefree_adamw", parameters, 1e-2, {"weight_decay": 0.1}
    )
    take_steps(optimizer, parameters, range(2))
    changed = build_optimizer(
        "schedulefree_adamw", parameters, 1e-2, {"weight_decay": 0.2}
    )
    load_state_tensors(changed, NAMES, *state_tensors(optimizer, NAMES))
    assert (
        changed.param_groups[0]["weight_decay"] == 0.2
        and changed.param_groups[0]["k"] == 2
    )


# ---------------------------------------------------------------- schedule-free


def test_the_average_of_a_schedule_free_optimizer_is_shown_and_taken_away_again() -> (
    None
):
    parameters = start()
    optimizer = build_optimizer("schedulefree_adamw", parameters, 1e-2, {})
    take_steps(optimizer, parameters, range(3))
    own = values(parameters)
    with eval_mode(optimizer):
        shown = values(parameters)
        # y = beta x + (1 - beta) z, the definition of the point it trains at.
        for x, y, parameter in zip(shown, own, parameters, strict=True):
            torch.testing.assert_close(
                0.9 * x + 0.1 * optimizer.state[parameter]["z"], y
            )
    assert not equal(shown, own) and equal(values(parameters), own)
    with pytest.raises(KeyError), eval_mode(optimizer):
        raise KeyError
    assert equal(values(parameters), own)
    take_steps(optimizer, parameters, range(3, 4))


# ---------------------------------------------------------------- groups


def test_parameters_may_come_in_groups_and_state_is_named_in_their_order() -> None:
    parameters = start()
    groups = {"first": parameters[:1], "others": parameters[1:]}
    optimizer = build_optimizer("adamw", groups, 1e-3, {"weight_decay": 0.25})
    assert [group["params"] for group in optimizer.param_groups] == list(
        groups.values()
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    take_steps(optimizer, parameters, range(1))
    tensors, plain = state_tensors(optimizer, NAMES)
    assert tensors["bias/exp_avg"].shape == (7,) and plain == {}, (
        "nothing of the groups is in the state"
    )


def test_what_an_optimizer_counts_per_group_goes_on_in_each() -> None:
    def build() -> torch.optim.Optimizer:
        return build_optimizer(
            "schedulefree_adamw", {"a": parameters[:1], "b": parameters[1:]}, 1e-2, {}
        )

    parameters = start()
    optimizer, fresh = build(), build()
    optimizer.param_groups[1]["lr"] = 2e-2
    take_steps(optimizer, parameters, range(2))
    load_state_tensors(fresh, NAMES, *state_tensors(optimizer, NAMES))
    for group, other in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert (group["k"], group["lr_max"], group["weight_sum"]) == (
            other["k"],
            other["lr_max"],
            other["weight_sum"],
        )
    assert fresh.param_groups[0]["lr_max"] != fresh.param_groups[1]["lr_max"]


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("adamw8bit", 0),
        ("lion8bit", 0),
        ("bitsandbytes.optim.PagedAdamW8bit", 1),
        ("adafactor", 0),
    ],
)
def test_an_8_bit_step_waits_for_the_device_at_most_once_and_learns_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, waits: int
) -> None:
    """bitsandbytes waits after each parameter; a paged state alone needs it, once."""
    ours, plain = start(), start()
    first, second = (
        build_optimizer(name, ours, 1e-2, {}),
        build_optimizer(name, plain, 1e-2, {}),
    )
    counted: list[Tensor] = []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", counted.append)
    for _ in range(3):
        for parameters in (ours, plain):
            for parameter in parameters:
                parameter.grad = torch.cos(37 * parameter.detach())
        second.step()
        of_plain = len(counted)
        step_if(first, torch.tensor(True))
        assert len(counted) - of_plain == waits
        counted.clear()
    assert of_plain == (3 + waits if "8bit" in name else 0)
    assert all(torch.equal(*both) for both in zip(ours, plain, strict=True))


# ------------------------------------------------------------ steps that are skipped


def train(name: str, step_ok: list[bool], arguments: dict | None = None):
    """Steps with the gradients of their numbers, those that are not taken with
    gradients that are not numbers."""
    parameters = start()
    optimizer = build_optimizer(
        name, parameters, 1e-2, ARGUMENTS.get(name, {}) | (arguments or {})
    )
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


@pytest.mark.parametrize("name", [*SHORT_NAMES, "torch.optim.NAdam"])
def test_the_training_goes_on_as_if_the_step_had_never_been(name: str) -> None:
    """Before the first step, and between others."""
    taken = [False, True, False, False, True, True]
    parameters, (tensors, plain) = train(name, taken)
    expected, (expected_tensors, expected_plain) = train(name, [True] * 3)
    assert equal(values(parameters), values(expected))
    assert tensors.keys() == expected_tensors.keys() and plain == expected_plain
    assert all(torch.equal(tensors[key], expected_tensors[key]) for key in tensors)


def test_which_optimizers_need_no_word_from_the_host() -> None:
    guarding = {
        name
        for name in INSTALLED
        if supports_found_inf(build_optimizer(name, start(), 1e-3, {}))
    }
    assert guarding == {"adamw", "adam"}


@pytest.mark.parametrize(
    "arguments", [{"foreach": True}, {"fused": False}, {"capturable": False}]
)
def test_what_the_user_chooses_of_torchs_kernels_is_taken(arguments: dict) -> None:
    optimizer = build_optimizer("adamw", start(), 1e-3, arguments)
    assert not supports_found_inf(optimizer)
    assert all(
        optimizer.param_groups[0][key] is value for key, value in arguments.items()
    )


def test_the_fused_kernel_computes_what_torchs_plain_loop_does() -> None:
    fused, (tensors, _) = train("adamw", [True] * 5, {"weight_decay": 0.1})
    plain, (expected, _) = train(
        "adamw", [True] * 5, {"weight_decay": 0.1, "fused": False, "foreach": False}
    )
    torch.testing.assert_close(values(fused), values(plain), rtol=1e-5, atol=1e-7)
    assert tensors.keys() == expected.keys(), "a state of one is a state of the other"
    assert {key: t.dtype for key, t in tensors.items()} == {
        key: t.dtype for key, t in expected.items()
    }


def test_matrices_by_columns_come_back_by_columns() -> None:
    """SOAP's eigenvectors: products with the same numbers by rows have other last
    bits."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {
        "Q": torch.arange(6.0).reshape(3, 2).mT,
        "mean": torch.ones(2, 3),
    }
    tensors, plain = state_tensors(optimizer, ["w"])
    assert plain["by_columns"] == ["w/Q"]
    fresh = torch.optim.SGD([weight], lr=0.1)
    load_state_tensors(
        fresh,
        ["w"],
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        plain,
    )
    state = fresh.state[weight]
    assert torch.equal(state["Q"], tensors["w/Q"]) and state["Q"].stride() == (1, 2)
    assert state["mean"].is_contiguous() and "by_columns" not in state

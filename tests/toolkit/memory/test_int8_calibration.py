"""Which layers multiply in int8: by the errors they were seen to have, read once; few kinds of blocks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.toolkit.memory.toy_blocks import CPU, Stack
from toolkit.memory.int8_calibration import (
    candidates,
    choose,
    choose_with_few_patterns,
    errors_to_host,
    few_patterns,
    int8_layers,
    observe_errors,
)
from toolkit.memory.int8_matmul import MAX_ERROR, MIN_ROWS, is_supported, quantization_error
from toolkit.memory.quantization import Int8Matmuls, RowwiseQuantized, WithRecoveryLora, quantize_weight, quantizer

BOTH = Int8Matmuls(forward=True, backward=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[:, 0] *= 1000
    return rows


def layer() -> RowwiseQuantized:
    return quantize_weight(normal(48, 64), "int8")


def passed(weight: RowwiseQuantized, x: Tensor, g: Tensor | None) -> None:
    """Forward, and backward where there is a gradient to the output."""
    x = x.clone().requires_grad_()
    y = functional.linear(x, weight)
    if g is not None:
        y.backward(g)


def chosen(weight: RowwiseQuantized, *passes: tuple[Tensor, Tensor | None]) -> Int8Matmuls:
    with observe_errors([weight]) as seen:
        for x, g in passes:
            passed(weight, x, g)
    choose([weight], errors_to_host(seen))
    return weight.in_int8


X, G = normal(20, 64, seed=1), normal(20, 48, seed=2)


@pytest.mark.parametrize(
    ("passes", "choice"),
    [
        ([(X, G)], BOTH),
        ([(with_outliers(X), G)], Int8Matmuls(backward=True)),
        ([(X, with_outliers(G))], Int8Matmuls(forward=True)),
        ([(X, G), (with_outliers(X), with_outliers(G)), (X, G)], Int8Matmuls()),  # the worst counts
        ([(X, None)], Int8Matmuls(forward=True)),
        ([(X[: MIN_ROWS - 1], G[: MIN_ROWS - 1])], Int8Matmuls()),
        ([(X * float("nan"), G), (X, G)], Int8Matmuls(backward=True)),
        ([], Int8Matmuls()),
    ],
    ids=["ordinary", "inputs", "gradients", "worst", "forward", "few rows", "not finite", "nothing"],
)
def test_a_product_is_chosen_by_the_errors_that_were_seen(passes, choice: Int8Matmuls) -> None:
    assert chosen(layer(), *passes) == choice


def test_a_direction_without_an_exact_product_is_not_chosen(monkeypatch) -> None:
    monkeypatch.setattr("toolkit.memory.int8_calibration.exact_directions", lambda device: frozenset({"forward"}))
    assert chosen(layer(), (X, G)) == Int8Matmuls(forward=True)


def test_the_gradient_counts_with_the_scales_of_the_outputs() -> None:
    """They are what is rounded: a weight of unlike rows makes outliers of ordinary gradients."""
    weight = quantize_weight(normal(48, 64) * torch.logspace(0, 4, 48)[:, None], "int8")
    assert quantization_error(G) < MAX_ERROR < quantization_error(G * weight.scale_O1.t())
    assert chosen(weight, (X, G)) == Int8Matmuls(forward=True)


def test_watched_layers_multiply_in_floating_point_and_nobody_watches_them_later() -> None:
    weight, plain = layer(), layer()
    weight.in_int8 = BOTH
    with observe_errors([weight]) as seen:
        assert torch.equal(functional.linear(X, weight), functional.linear(X, plain))
    assert weight.watch is None
    passed(weight, X * float("nan"), None)
    assert errors_to_host(seen) == [{"forward": pytest.approx(float(quantization_error(X)))}]


def test_a_failed_pass_leaves_no_watch_behind() -> None:
    weight = layer()
    with pytest.raises(OSError, match="gone"), observe_errors([weight]):
        raise OSError("gone")
    assert weight.watch is None and weight.in_int8 == Int8Matmuls()


def test_candidates_are_int8_weights_that_the_device_takes() -> None:
    is_supported.cache_clear()
    block = nn.ModuleDict({name: nn.Linear(64, 48) for name in ("a", "b", "c")})
    quantizer("int4", recovery={"block.b": (normal(48, 2), normal(2, 64))})(block, "block")
    block.c.weight = WithRecoveryLora(layer(), normal(48, 2), normal(2, 64))
    quantizer("float8")(extra := nn.ModuleDict({"d": nn.Linear(64, 48)}), "extra")
    model = nn.ModuleList([block, extra])
    expected = [block.a.weight, block.c.weight.stored]
    assert all(a is b for a, b in zip(int8_layers(model), expected, strict=True))
    assert len(candidates(model, True, CPU)) == 2
    assert candidates(model, "auto", CPU) == candidates(model, False, CPU) == []  # they are narrow


# ------------------------------------------------------------ few kinds of blocks


def test_patterns_that_are_few_enough_stay() -> None:
    patterns = [(True, False), (False, True), (True, False)]
    assert few_patterns(patterns, 2) == {pattern: pattern for pattern in patterns}


def test_what_was_not_seen_goes_by_the_others() -> None:
    first, middle, last = (True, None, True, False), (True, True, True, False), (None, None, None, False)
    assert few_patterns([first, middle, last], 4) == dict.fromkeys((first, middle, last), middle)


def test_the_cheapest_patterns_become_one_that_each_contains() -> None:
    usual, rare, other = (True,) * 6, (True,) * 5 + (False,), (False,) * 3 + (True,) * 3
    shared = few_patterns([usual] * 3 + [rare] * 20 + [other] * 20, 2)
    assert shared == {usual: rare, rare: rare, other: other}  # three products are lost: of the three usual blocks


def test_any_patterns_become_as_few_as_asked_and_none_gains_a_product() -> None:
    patterns = list(product((True, False), repeat=5))
    for most in (1, 3, 7):
        shared = few_patterns(patterns, most)
        assert len(set(shared.values())) <= most
        assert all(a <= b for b, found in shared.items() for a, b in zip(found, b, strict=True))
    unlike = [(True,), (False,), (True, True), (False, True)]
    assert set(few_patterns(unlike, 1).values()) == {(False,), (False, True)}


def test_blocks_are_chosen_alike() -> None:
    stack = Stack(qtype="int8")
    layers_of = [int8_layers(block) for block in stack.model]
    errors = {layer: {"forward": 0.01, "backward": 0.01} for own in layers_of for layer in own}
    del errors[layers_of[0][5]]["backward"]
    for place in (1, 2, 3):
        errors[layers_of[place][place]]["backward"] = 0.2
    outside = errors.popitem()[0]

    def chosen(most: int) -> list[list[Int8Matmuls]]:
        choose_with_few_patterns(list(errors), list(errors.values()), stack.model, most)
        return [[layer.in_int8 for layer in own] for own in layers_of]

    assert outside is layers_of[4][5]  # no candidate, so not even one of others of its kind
    one, every = Int8Matmuls(forward=True), [BOTH] * 6
    places = [(5, one), (1, one), (2, one), (3, one), (5, Int8Matmuls())]
    assert chosen(5) == [[*every[:place], found, *every[place + 1 :]] for place, found in places]
    assert chosen(1) == [[BOTH, one, one, one, BOTH, Int8Matmuls()]] * 5

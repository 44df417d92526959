"""Rules for what autograd keeps: the inner one first, then those around it."""

from __future__ import annotations

import gc

import pytest
import torch

from toolkit.memory.offload import saved_tensor_rule


def test_inner_rules_go_first_and_outer_ones_still_count() -> None:
    a, b, c = (
        torch.full((2,), float(value), requires_grad=True) for value in (2, 3, 5)
    )
    asked: list[tuple[str, float]] = []

    def rule(name: str, of: float):
        def pack(tensor):
            if float(tensor[0]) != of:
                return None
            asked.append((name, of))
            return lambda: torch.full((2,), of + 10.0)

        return pack

    with saved_tensor_rule(rule("outer", 2)), saved_tensor_rule(rule("inner", 3)):
        product = a * b
    with saved_tensor_rule(rule("never", 7)):
        product = product * c
    product.sum().backward()
    assert sorted(asked) == [("inner", 3.0), ("outer", 2.0)]
    assert a.grad.tolist() == [13 * 5] * 2  # by what was given back in place of b
    assert b.grad.tolist() == [12 * 5] * 2
    assert c.grad.tolist() == [6] * 2


@pytest.mark.parametrize(
    "operation", [torch.sigmoid, lambda x: torch.softmax(x, 0), torch.exp]
)
def test_what_was_kept_for_a_backward_pass_that_never_comes_is_let_go(
    operation,
) -> None:
    """Operations that keep their own output would otherwise keep it for ever, and all
    that led to it."""
    start = torch.ones(3, requires_grad=True)

    def tensors_after_a_pass() -> int:
        with saved_tensor_rule(lambda tensor: None):
            operation(start * 2)
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    assert tensors_after_a_pass() == tensors_after_a_pass()

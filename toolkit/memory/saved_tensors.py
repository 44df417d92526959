"""Custom storage for tensors that autograd saves (saved_tensors_hooks that nest)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

PackRule = Callable[[Tensor], Callable[[], Tensor] | None]
"""For a tensor that is to be kept: what gives it back, or None where the rule has nothing to say of it."""

_rules: list[PackRule] = []


@contextmanager
def saved_tensor_rule(rule: PackRule) -> Iterator[None]:
    """What is kept within goes by `rule`, then by those around it. (Of torch's own hooks only the inner ones count.)"""
    _rules.append(rule)
    try:
        with saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _rules.pop()


def _pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    kept = (rule(tensor) for rule in reversed(_rules))
    # Not the tensor itself: an operation's own output would keep the operation, and that the output. Only a backward
    # pass ends that; of one that memory ran out before, nothing would ever be given back.
    return next((give_back for give_back in kept if give_back is not None), tensor.detach())


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()

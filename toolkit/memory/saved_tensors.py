"""Custom storage for tensors that autograd saves (saved_tensors_hooks that nest)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

PackRule = Callable[[Tensor], Callable[[], Tensor] | None]
"""Called with a tensor that autograd saves: returns a function that restores it, or None to leave it to other rules."""

_rules: list[PackRule] = []


@contextmanager
def saved_tensor_rule(rule: PackRule) -> Iterator[None]:
    """Applies `rule` to tensors saved inside the block, then the rules around it. (Torch's own hooks do not nest.)"""
    _rules.append(rule)
    try:
        with saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _rules.pop()


def _pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    kept = (rule(tensor) for rule in reversed(_rules))
    # Not the tensor itself: an operation's output would keep the operation alive, and that the output. Only a backward
    # pass breaks the cycle; without one (out of memory) the memory would never be freed.
    return next((give_back for give_back in kept if give_back is not None), tensor.detach())


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()

"""Bytes of all tensors that are alive, followed operation by operation: what a program
takes, without taking it.

It is put around work on fake tensors, which have sizes and no numbers, and sees what
their operations return. What a kernel takes for itself, and what an allocator holds
beside the tensors, it does not see.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Peak:
    """The most bytes that were alive at once in a phase."""

    device: int = 0
    host: int = 0
    """In CPU memory; its peak may be at another time than that of the device."""


@dataclass
class _Storage:
    size: int
    on_host: bool


class LiveBytes(TorchDispatchMode):
    """Counts each storage from the operation that makes it to its end.

    What an operation makes is on the host when all it is made from is, and else on the
    device.
    """

    def __init__(
        self,
        inside: Mapping[Any, Callable[..., Any]] | None = None,
        extra: Mapping[Any, Callable[..., int]] | None = None,
    ) -> None:
        """inside: operation -> the Python function that it is, whose own operations are
        to be followed.

        extra: operation -> from its arguments, bytes that its kernel takes on the
        device while it works.
        """
        super().__init__()
        self.device = self.host = 0
        self._inside, self._extra = inside or {}, extra or {}
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, _Storage] = (
            weakref.WeakKeyDictionary()
        )
        self.phases: dict[str, Peak] = {}
        self._phase = Peak()
        self._makes_on_host = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._inside:
            with self:
                return self._inside[func](*args, **kwargs)
        result = func(*args, **kwargs)
        new = [storage for storage in _storages(result) if storage not in self._known]
        if new:
            on_host = self._makes_on_host or self._are_on_host((args, kwargs))
            for storage in new:
                self._see(storage, on_host)
        self._look(self._extra[func](*args, **kwargs) if func in self._extra else 0)
        return result

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """What is made inside the block is in the CPU memory."""
        self._makes_on_host = True
        try:
            yield
        finally:
            self._makes_on_host = False

    def phase(self, name: str) -> None:
        """Ends the phase before and begins this one; what is alive at its beginning
        counts."""
        self.phases[name] = self._phase = Peak()
        self._look()

    def move(self, tensors: Iterable[Tensor], to_host: bool) -> None:
        """These, and all that share their memory, are from now on in the CPU memory, or
        on the device."""
        for storage in _storages(list(tensors)):
            self._see(storage, to_host)
            known = self._known[storage]
            if known.on_host != to_host:
                self._count(known, -1)
                known.on_host = to_host
                self._count(known, 1)
        self._look()

    def own(self, tensors: Iterable[Tensor]) -> None:
        """These have been there before: they and their views do not count."""
        for storage in _storages(list(tensors)):
            self._known.setdefault(storage, _Storage(0, on_host=False))

    def _are_on_host(self, given: Any) -> bool:
        """Whether there are tensors among these, and all are in the CPU memory."""
        known = [
            self._known[storage]
            for storage in _storages(given)
            if storage in self._known
        ]
        return bool(known) and all(storage.on_host for storage in known)

    def _see(self, storage: torch.UntypedStorage, on_host: bool) -> None:
        if storage not in self._known:
            known = self._known[storage] = _Storage(storage.nbytes(), on_host)
            self._count(known, 1)
            weakref.finalize(storage, self._count, known, -1).atexit = False

    def _count(self, storage: _Storage, sign: int) -> None:
        if storage.on_host:
            self.host += sign * storage.size
        else:
            self.device += sign * storage.size

    def _look(self, extra: int = 0) -> None:
        self._phase.host = max(self._phase.host, self.host)
        self._phase.device = max(self._phase.device, self.device + extra)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Of all tensors in it that have memory."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            yield leaf.untyped_storage()


class Kernels(TorchDispatchMode):
    """Counts the operations inside the block that a device would launch a kernel
    for."""

    def __init__(self, inside: Mapping[Any, Callable[..., Any]] | None = None) -> None:
        """inside: as of `LiveBytes`."""
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._inside = inside or {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in self._inside:
            with self:
                return self._inside[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given, made = (
            {s._cdata for s in _storages(tree)} for tree in ((args, kwargs), result)
        )
        if (
            (func._schema.is_mutable or made - given)
            and func.namespace != "prim"
            and "empty" not in func._opname
        ):
            self.calls[func._opname] += 1
        return result

"""What checkpointed blocks were given waits in the CPU memory, and is on its way back before it is wanted.

While a block computes, what it was given is copied out; while its successor goes backward, it is copied in. So the
device holds what two blocks were given instead of all of them. Only CUDA has another memory to wait in.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.interfaces import BlockForward
from toolkit.memory.saved_tensors import saved_tensor_rule


class HostCopies(Protocol):
    """Copies between the memory of the device and the CPU memory, which go on while other work is done."""

    def begin_block(self) -> None:
        """Starts a new block: later copies belong to its inputs."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """Begins a copy to the CPU memory. The tensor itself may be let go at once."""

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        """Begins a copy to the device; calling what is returned makes sure that it is there."""

    def release(self) -> None:
        """Nothing more is copied out for now: what leaves is no longer needed once its copy is made."""


class InFlightCopies:
    """Keeps GPU tensors alive until their copy to the CPU has finished, at most two blocks later."""

    def __init__(self) -> None:
        self._by_block: deque[list[tuple[Tensor, Callable[[], None]]]] = deque([[], []])

    def hold(self, tensor: Tensor, wait: Callable[[], None]) -> None:
        """wait: has the device's next work wait for the copy; called before the tensor is let go."""
        self._by_block[-1].append((tensor, wait))

    def begin_block(self) -> None:
        for _, wait in self._by_block.popleft():
            wait()
        self._by_block.append([])

    def release(self) -> None:
        """Of everything: no more is copied out for now."""
        for _ in range(len(self._by_block)):
            self.begin_block()


class CudaCopies:
    """Copies on a stream of their own, from and to pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # Not `record_stream`: it gives memory back once the host has seen that the copy is made, and the host is many
        # blocks ahead of the device. All that they were given would be on the device after all.
        self._leaving = InFlightCopies()

    def begin_block(self) -> None:
        self._leaving.begin_block()

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # until it is computed
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            copied = self._stream.record_event()
        self._leaving.hold(tensor, partial(self._wait, copied))
        return host

    def release(self) -> None:
        self._leaving.release()

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        self.release()
        tensor = torch.empty_like(host, device=self._device)
        # Until nobody writes any more to the memory that this tensor was given, and it has arrived on the host.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            tensor.copy_(host, non_blocking=True)
            arrived = self._stream.record_event()

        def arrive() -> Tensor:
            self._wait(arrived)
            return tensor

        return arrive

    def _wait(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)


class _BlockInputs:
    """What one run of a block was given by the one before, in the CPU memory."""

    def __init__(self, copies: HostCopies, before: _BlockInputs | None) -> None:
        self._copies = copies
        self._before = before
        """The run that goes backward after this one."""
        self._hosts: list[Tensor] = []
        self._on_the_way: dict[int, Callable[[], Tensor]] = {}

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Lets the tensor wait; what is returned gives it back."""
        place = len(self._hosts)
        self._hosts.append(self._copies.to_host(tensor))
        return lambda: self._give_back(place)

    def _give_back(self, place: int) -> Tensor:
        self._fetch(place)
        arrive = self._on_the_way.pop(place)
        if self._before is not None:
            self._before.fetch_all()
            self._before = None  # once: what is asked for again later comes late, and right
        return arrive()

    def fetch_all(self) -> None:
        for place in range(len(self._hosts)):
            self._fetch(place)

    def _fetch(self, place: int) -> None:
        if place not in self._on_the_way:
            self._on_the_way[place] = self._copies.to_device(self._hosts[place])


class ActivationOffload:
    """A wrapper around a checkpointed block, compiled or not."""

    def __init__(
        self, copies: HostCopies, is_elsewhere: Callable[[Tensor], bool] = lambda tensor: tensor.is_cuda
    ) -> None:
        """is_elsewhere: whether a tensor is in the memory that is to be saved."""
        self._copies = copies
        self._is_elsewhere = is_elsewhere
        self._latest: Callable[[], _BlockInputs | None] = lambda: None

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_offloaded(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            # What one block hands to the next; the rest is shared by all blocks.
            handed_on = {_memory(t) for t in tensors if t is not None and t.requires_grad and self._is_elsewhere(t)}
            if not handed_on or not torch.is_grad_enabled():
                return run(block, *tensors)
            self._copies.begin_block()
            given = _BlockInputs(self._copies, self._latest())
            self._latest = weakref.ref(given)  # what has gone backward already is of no interest
            try:
                with saved_tensor_rule(lambda tensor: given.keep(tensor) if _memory(tensor) in handed_on else None):
                    return run(block, *tensors)
            except torch.OutOfMemoryError:
                self._copies.release()  # no block follows that would
                raise

        return run_offloaded


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def offloading(device: torch.device) -> list[ActivationOffload]:
    """The wrapper for this device; none where there is no other memory to wait in."""
    return [ActivationOffload(CudaCopies(device))] if device.type == "cuda" else []

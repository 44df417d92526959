"""Activation offload: the inputs of checkpointed blocks are kept in CPU memory, and prefetched for the backward pass.

While a block computes, its inputs are copied to the CPU; during the backward pass of the next block they are copied
back. So the GPU holds the inputs of two blocks instead of all. Only for CUDA.
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
    """Asynchronous copies between device and CPU memory."""

    def begin_block(self) -> None:
        """Starts a new block: later copies belong to its inputs."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """Starts a copy to CPU memory. The caller may free the tensor at once."""

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        """Starts a copy to the device; calling the result waits for it."""

    def release(self) -> None:
        """No more copies to the CPU for now: tensors are freed once their copy is finished."""


class InFlightCopies:
    """Keeps GPU tensors alive until their copy to the CPU has finished, at most two blocks later."""

    def __init__(self) -> None:
        self._by_block: deque[list[tuple[Tensor, Callable[[], None]]]] = deque([[], []])

    def hold(self, tensor: Tensor, wait: Callable[[], None]) -> None:
        """wait: makes the device's next work wait for the copy; called before the tensor is freed."""
        self._by_block[-1].append((tensor, wait))

    def begin_block(self) -> None:
        for _, wait in self._by_block.popleft():
            wait()
        self._by_block.append([])

    def release(self) -> None:
        """Releases all tensors: no more copies to the CPU for now."""
        for _ in range(len(self._by_block)):
            self.begin_block()


class CudaCopies:
    """Copies on a separate stream, from and to pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # Not `record_stream`: it frees memory only once the host has seen the copy finish, and the host is many blocks
        # ahead of the device. The inputs of all these blocks would stay on the device.
        self._in_flight = InFlightCopies()

    def begin_block(self) -> None:
        self._in_flight.begin_block()

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # until it is computed
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            copied = self._stream.record_event()
        self._in_flight.hold(tensor, partial(self._wait, copied))
        return host

    def release(self) -> None:
        self._in_flight.release()

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        self.release()
        tensor = torch.empty_like(host, device=self._device)
        # Waits until no kernel writes to the memory of this tensor any more, and its copy to the CPU is finished.
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
    """The inputs of one call of a block, in CPU memory."""

    def __init__(self, copies: HostCopies, before: _BlockInputs | None) -> None:
        self._copies = copies
        self._before = before
        """The inputs of the previous block, whose backward pass follows."""
        self._hosts: list[Tensor] = []
        self._prefetched: dict[int, Callable[[], Tensor]] = {}

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Offloads the tensor; the result returns it."""
        index = len(self._hosts)
        self._hosts.append(self._copies.to_host(tensor))
        return lambda: self._restore(index)

    def _restore(self, index: int) -> Tensor:
        self._fetch(index)
        arrive = self._prefetched.pop(index)
        if self._before is not None:
            self._before.fetch_all()
            self._before = None  # prefetch only once; a later request is still correct, but waits
        return arrive()

    def fetch_all(self) -> None:
        for index in range(len(self._hosts)):
            self._fetch(index)

    def _fetch(self, index: int) -> None:
        if index not in self._prefetched:
            self._prefetched[index] = self._copies.to_device(self._hosts[index])


class ActivationOffload:
    """A wrapper around checkpointed blocks, compiled or not."""

    def __init__(
        self, copies: HostCopies, is_elsewhere: Callable[[Tensor], bool] = lambda tensor: tensor.is_cuda
    ) -> None:
        """is_elsewhere: whether a tensor is in device memory."""
        self._copies = copies
        self._is_elsewhere = is_elsewhere
        self._latest: Callable[[], _BlockInputs | None] = lambda: None

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_offloaded(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            # Only tensors that one block passes to the next; the others are shared by all blocks.
            passed_on = {_memory(t) for t in tensors if t is not None and t.requires_grad and self._is_elsewhere(t)}
            if not passed_on or not torch.is_grad_enabled():
                return run(block, *tensors)
            self._copies.begin_block()
            inputs = _BlockInputs(self._copies, self._latest())
            self._latest = weakref.ref(inputs)  # weak: blocks after their backward pass need no prefetch
            try:
                with saved_tensor_rule(lambda tensor: inputs.keep(tensor) if _memory(tensor) in passed_on else None):
                    return run(block, *tensors)
            except torch.OutOfMemoryError:
                self._copies.release()  # no later block does it
                raise

        return run_offloaded


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def offloading(device: torch.device) -> list[ActivationOffload]:
    """The wrapper for this device; none without CUDA."""
    return [ActivationOffload(CudaCopies(device))] if device.type == "cuda" else []

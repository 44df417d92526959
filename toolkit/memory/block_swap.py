"""Block swap: frozen weights of some blocks stay in CPU memory and are copied to the device before their block runs.

Two buffers on the device alternate: while one block computes, the weights of the next one are copied to the other.
Frozen weights do not change, so nothing is copied back. Trained parameters stay on the device.

The blocks are spread evenly, so that several others compute while one arrives. (musubi-tuner spreads them so too:
modules/custom_offloading_utils.py, `LoRAStreamOffloader`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from toolkit.interfaces import BlockForward
from toolkit.memory.saved_tensors import saved_tensor_rule

ALIGNMENT = 256
"""Bytes; no kernel needs more."""


def swapped_blocks(count: int, blocks: int) -> tuple[int, ...]:
    """Indices of `count` of `blocks` blocks, spread evenly."""
    return tuple((2 * index + 1) * blocks // (2 * count) for index in range(count))


@dataclass(frozen=True)
class _BlockTensors:
    """A frozen tensor of a block and its position among the block's bytes."""

    tensor: Tensor
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    end: int

    def point_to(self, memory: Tensor) -> None:
        """Makes the tensor a view of `memory`, which holds the block's bytes."""
        self.tensor.data = memory[self.begin : self.end].view(self.dtype).view(self.shape)


class HostBlock:
    """A block whose frozen weights are in CPU memory, in one contiguous buffer."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(device)
        self.parts: list[_BlockTensors] = []
        end = 0
        for tensor in _frozen(block):
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            end = begin + tensor.numel() * tensor.element_size()
            self.parts.append(_BlockTensors(tensor, tensor.dtype, tensor.shape, begin, end))
        self.memory = torch.empty(-(-end // ALIGNMENT) * ALIGNMENT, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for part in self.parts:
            self.memory[part.begin : part.end].view(part.dtype).view(part.shape).copy_(part.tensor)
            part.point_to(self.memory)

    def point_to(self, memory: Tensor) -> None:
        for part in self.parts:
            part.point_to(memory)


def _frozen(block: nn.Module) -> Iterator[Tensor]:
    yield from (p for p in block.parameters() if not p.requires_grad)
    yield from block.buffers()


class _Buffer:
    """Device memory for one block."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.place: int | None = None
        """Index of the swapped block that is in it, or being copied to it."""
        self.arrived: torch.cuda.Event | None = None


class BlockSwap:
    """Runs blocks whose frozen weights are in CPU memory; the outermost wrapper.

    Prefetching expects the forward pass in order and the backward pass in reverse; other orders work, but are slower.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """blocks: the swapped blocks, in order, with the network attached. Moves their frozen weights to the CPU."""
        self._device = device
        self._waiting = [HostBlock(block, device) for block in blocks]
        self._place_of = {block: place for place, block in enumerate(blocks)}
        size = max(len(host_block.memory) for host_block in self._waiting)
        self._buffers = [_Buffer(size, device) for _ in range(min(2, len(blocks)))]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_fetched(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            place = self._place_of.get(block)
            if place is None:
                return run(block, *tensors)
            has_backward = torch.is_grad_enabled()
            self._ensure_loaded(place, self._after(place, has_backward))
            if not has_backward:
                return run(block, *tensors)
            with saved_tensor_rule(partial(self._as_place, place)):
                outputs = run(block, *tensors)
            differentiable = [output for output in outputs if output.requires_grad]
            if differentiable:
                # Called with the first gradient that reaches the block, before its backward pass or recomputation.
                register_multi_grad_hook(
                    differentiable, lambda grad: self._ensure_loaded(place, place - 1 if place else None), mode="any"
                )
            return outputs

        return run_fetched

    def _after(self, place: int, has_backward: bool) -> int | None:
        """The block that is needed after this one in a forward pass."""
        if place + 1 < len(self._waiting):
            return place + 1
        return None if has_backward else 0  # the backward pass begins with the last two, which are loaded

    def _ensure_loaded(self, place: int, ahead: int | None) -> None:
        """Loads the weights of one block to the device, and starts prefetching those of another."""
        current = self._fetch(place, keep=None)
        if current.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(current.arrived)
        if ahead is not None:
            self._fetch(ahead, keep=current)

    def _fetch(self, place: int, keep: _Buffer | None) -> _Buffer:
        """The buffer of a block; copies it to one that is not `keep` where it is in none."""
        here = next((buffer for buffer in self._buffers if buffer.place == place), None)
        buffer = here or next((buffer for buffer in self._buffers if buffer is not keep), None)
        if buffer is None:
            assert keep is not None  # the only buffer
            return keep
        self._buffers.remove(buffer)  # least recently used first
        self._buffers.append(buffer)
        if here:
            return here
        if buffer.place is not None:
            # The CPU copy is valid too, and a wrong use of it raises an error on CUDA.
            self._waiting[buffer.place].point_to(self._waiting[buffer.place].memory)
        buffer.place = place
        self._copy(self._waiting[place].memory, buffer)
        self._waiting[place].point_to(buffer.memory)
        return buffer

    def _copy(self, source: Tensor, buffer: _Buffer) -> None:
        target = buffer.memory[: len(source)]
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what was in the buffer is still in use
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            buffer.arrived = self._stream.record_event()

    def _as_place(self, place: int, tensor: Tensor) -> Callable[[], Tensor] | None:
        """Saves a view of a swapped weight as its position: by the backward pass the buffer holds another block."""
        if all(tensor.untyped_storage().data_ptr() != b.memory.untyped_storage().data_ptr() for b in self._buffers):
            return None
        dtype, geometry = tensor.dtype, (tensor.shape, tensor.stride(), tensor.storage_offset())
        return lambda: self._fetch(place, keep=None).memory.view(dtype).as_strided(*geometry)

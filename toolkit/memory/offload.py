"""Block swap and activation offload: weights and saved tensors that wait in CPU memory.

Block swap: weights of some blocks stay in CPU memory and are copied to the device
before their block runs. Two buffers on the device alternate: while one block computes,
the weights of the next one are copied to the other. Frozen weights do not change, so
nothing is copied back; the parameters of an adapter stay on the device. The blocks are
spread evenly, so that several others compute while one arrives (as in musubi-tuner,
modules/custom_offloading_utils.py, `LoRAStreamOffloader`). Weights that are mapped from
a file stay in the file, and two threads copy them through a pinned window of two blocks;
those of some blocks are pinned instead, where main memory has room.

Where the blocks themselves are trained, each of their parameters is stepped in the
backward pass, while it is on the device (`OptimizerInBackward`). A block that has
changed there is copied back before another takes its buffer. Where a block is in a
buffer, only that copy is valid, else the copy in CPU memory; the parameters point to
the valid one.

Activation offload, only for CUDA: while a checkpointed block computes, its inputs (or
what it keeps of attention) are copied to the CPU; during the backward pass of the next
block they are copied back. So the GPU holds those of two blocks instead of all.

`block_runner` combines these wrappers; `recompute` uses the copies for
`gradient_checkpointing: block_offload`. The number of swapped blocks comes from
`model.blocks_to_swap`."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook, saved_tensors_hooks

from toolkit.contracts.model import BlockForward
from toolkit.files.mapped import is_mapped, read_in, was_read, will_read
from toolkit.rounding import round_up
from toolkit.system.device import is_out_of_memory, pinned

PackRule = Callable[[Tensor], Callable[[], Tensor] | None]
"""Called with a tensor that autograd saves: returns a function that restores it, or
None to leave it to other rules."""

_rules: list[PackRule] = []


@contextmanager
def saved_tensor_rule(rule: PackRule) -> Iterator[None]:
    """Applies `rule` to tensors that are saved inside the block, then the rules of the
    blocks around it. (Torch's own hooks do not nest.)"""
    _rules.append(rule)
    try:
        with saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _rules.pop()


def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    """The tensor as the rules keep it, or a function that restores it."""
    restorers = (rule(tensor) for rule in reversed(_rules))
    # It is not the tensor itself: the output of an operation would keep the operation
    # alive, and the operation the output. Only a backward pass breaks the cycle;
    # without one (out of memory) the memory would never be freed.
    return next(
        (give_back for give_back in restorers if give_back is not None), tensor.detach()
    )


def _unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()


ALIGNMENT = 256
"""Alignment of a tensor in a buffer, in bytes; no kernel needs more."""


def swapped_blocks(count: int, blocks: int) -> tuple[int, ...]:
    """Indices of `count` of `blocks` blocks, spread evenly.

    >>> swapped_blocks(3, blocks=12)
    (2, 6, 10)
    """
    return tuple((2 * index + 1) * blocks // (2 * count) for index in range(count))


@dataclass(frozen=True)
class _BlockTensors:
    """A tensor of a block and its position among the block's bytes."""

    tensor: Tensor
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    end: int

    def point_to(self, memory: Tensor) -> None:
        """Makes the tensor a view of `memory`, which holds the block's bytes."""
        self.tensor.data = (
            memory[self.begin : self.end].view(self.dtype).view(self.shape)
        )


class HostBlock:
    """A block whose weights are in CPU memory, in one contiguous buffer.

    >>> block = nn.Linear(8, 4)
    >>> len(HostBlock(block, torch.device("cpu"), trained=True).memory)  # bytes
    512
    """

    def __init__(
        self, block: nn.Module, device: torch.device, trained: bool = False
    ) -> None:
        """trained: whether trained parameters are in CPU memory too, instead of on the
        device."""
        waiting = list[Tensor]()
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.requires_grad and not trained:
                tensor.data = tensor.data.to(device)
            else:
                waiting.append(tensor)
        self.parts: list[_BlockTensors] = []
        self.is_mapped = not trained and _is_one_piece(waiting)
        if self.is_mapped:
            self.memory = self._piece(waiting)
            return
        end = 0
        for tensor in waiting:
            begin = round_up(end, ALIGNMENT)
            end = begin + tensor.numel() * tensor.element_size()
            self.parts.append(
                _BlockTensors(tensor, tensor.dtype, tensor.shape, begin, end)
            )
        make = partial(torch.empty, round_up(end, ALIGNMENT), dtype=torch.uint8)
        self.memory = pinned(make) if device.type == "cuda" else make()
        for part in self.parts:
            self.memory[part.begin : part.end].view(part.dtype).view(part.shape).copy_(
                part.tensor
            )
            part.point_to(self.memory)

    def _piece(self, waiting: Sequence[Tensor]) -> Tensor:
        """The piece of the mapped file that has these tensors, without a copy."""
        first, last = _span(waiting)
        for tensor in waiting:
            begin, end = (place - first for place in _span([tensor]))
            self.parts.append(
                _BlockTensors(tensor, tensor.dtype, tensor.shape, begin, end)
            )
        return torch.empty(0, dtype=torch.uint8).set_(
            waiting[0].untyped_storage(), first, (last - first,), (1,)
        )

    def move_to(self, memory: Tensor) -> None:
        """Takes mapped weights into `memory`, which is as long."""
        _fill(self.memory, memory)
        self.memory, self.is_mapped = memory, False
        self.point_to(memory)

    def point_to(self, memory: Tensor) -> None:
        for part in self.parts:
            part.point_to(memory)

    def versions(self) -> list[int]:
        """Versions of its tensors. A version changes when the tensor is written to in
        place, in any memory."""
        return [part.tensor._version for part in self.parts]


MOST_HOLES = 1.25
"""The most bytes of a mapped piece per byte of the tensors in it. Weights in a piece
with more holes are copied."""


def _is_one_piece(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are in one piece of a mapped file."""
    if not tensors or not all(
        is_mapped(tensor) and tensor.is_contiguous() for tensor in tensors
    ):
        return False
    if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) > 1:
        return False
    first, last = _span(tensors)
    return last - first <= MOST_HOLES * sum(
        round_up(tensor.nbytes, ALIGNMENT) for tensor in tensors
    )


def _span(tensors: Sequence[Tensor]) -> tuple[int, int]:
    """First byte and end of the range that tensors of one storage take in it."""
    begins = [
        int(tensor.storage_offset()) * tensor.element_size() for tensor in tensors
    ]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return min(begins), max(map(sum, zip(begins, sizes, strict=True)))


def _fill(source: Tensor, target: Tensor) -> None:
    read_in(source)
    target.copy_(source)
    was_read(source)


COPYING = 2
"""Threads that fill a piece of a `PinnedWindow`, each a share of it: one copies about a
third of what the bus takes (docs/measured.md, "Copies in main memory")."""


class PinnedWindow:
    """Two pieces of pinned memory, through which mapped weights reach a GPU: threads
    fill one from the file while the other is copied.

    Example::

        window = PinnedWindow(largest_block_bytes, stream)
        arrived = window.send(mapped, target, ready).result()
    """

    def __init__(self, size: int, stream: torch.cuda.Stream) -> None:
        """size: bytes of a piece. stream: of the copies."""
        self._pieces = deque[tuple[Tensor, torch.cuda.Event | None]]()
        """Each piece with the event of its last copy, the least recently used first."""
        for _ in range(2):
            self._pieces.append(
                (pinned(partial(torch.empty, size, dtype=torch.uint8)), None)
            )
        self._stream = stream
        self._worker = ThreadPoolExecutor(1, "mapped weights")
        self._copying = ThreadPoolExecutor(COPYING, "copies of mapped weights")

    def send(
        self, source: Tensor, target: Tensor, ready: torch.cuda.Event
    ) -> Future[torch.cuda.Event]:
        """Copies a mapped piece to the device once `ready` has occurred. Returns the
        event of its arrival."""
        will_read(source)
        return self._worker.submit(self._send, source, target, ready)

    def _send(
        self, source: Tensor, target: Tensor, ready: torch.cuda.Event
    ) -> torch.cuda.Event:
        piece, sent = self._pieces.popleft()
        if sent is not None:
            sent.synchronize()
        shares = source.chunk(COPYING), piece[: len(source)].chunk(COPYING)
        # raises here what was raised in one of them
        list(self._copying.map(_fill, *shares))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            target.copy_(piece[: len(source)], non_blocking=True)
            arrived: torch.cuda.Event = self._stream.record_event()
        self._pieces.append((piece, arrived))
        return arrived


class _Buffer:
    """Device memory for one block."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.place: int | None = None
        """Index of the swapped block that is in it, or being copied to it."""
        self.arrived: torch.cuda.Event | None = None
        self.arriving: Future[torch.cuda.Event] | None = None
        """The future of `arrived`, where the block comes through a `PinnedWindow`."""
        self.versions: list[int] = []
        """Versions of the block's tensors when it came; empty once one of them may have
        been stepped."""


class BlockSwap:
    """Runs blocks whose weights are in CPU memory; the outermost wrapper.

    Prefetching expects the forward pass in order and the backward pass in reverse;
    other orders work, but are slower.

    Example::

        swap = BlockSwap([blocks[1], blocks[3]], device)
        model.wrap_blocks([checkpoint_wrapper("full"), swap])
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        trained: bool = False,
        pinned_blocks: int = 0,
    ) -> None:
        """Moves the frozen weights of the blocks to the CPU.

        blocks: the swapped blocks, in order, with the network attached. trained:
        whether trained parameters move too; each has to be stepped as soon as its
        gradient is complete. pinned_blocks: how many of the mapped ones are pinned for
        a GPU, as main memory has room for them."""
        self._device = device
        self._trained = trained
        self._waiting = [HostBlock(block, device, trained) for block in blocks]
        self._place_of = {block: place for place, block in enumerate(blocks)}
        size = max(len(host_block.memory) for host_block in self._waiting)
        self._buffers = [_Buffer(size, device) for _ in range(min(2, len(blocks)))]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream and pinned_blocks:
            self._pin(pinned_blocks)
        mapped = [
            len(host_block.memory)
            for host_block in self._waiting
            if host_block.is_mapped
        ]
        self._window = (
            PinnedWindow(max(mapped), self._stream) if self._stream and mapped else None
        )
        for place, block in enumerate(blocks if trained else ()):
            for parameter in block.parameters():
                if parameter.requires_grad:
                    # Before the hook that steps it: a gradient may be complete when its
                    # block has left already.
                    parameter.register_post_accumulate_grad_hook(
                        partial(self._stay, place)
                    )

    def _pin(self, count: int) -> None:
        """In one piece, whose size PyTorch does not round up. If the system does not
        pin so much, all stay mapped."""
        mapped = [waiting for waiting in self._waiting if waiting.is_mapped]
        count = min(count, len(mapped))
        chosen = [mapped[index] for index in swapped_blocks(count, len(mapped))]
        sizes = [round_up(len(waiting.memory), ALIGNMENT) for waiting in chosen]
        memory = pinned(partial(torch.empty, sum(sizes), dtype=torch.uint8))
        if memory.is_pinned():
            for waiting, piece in zip(chosen, memory.split(sizes), strict=True):
                waiting.move_to(piece[: len(waiting.memory)])

    def _stay(self, place: int, parameter: Tensor) -> None:
        self._ensure_loaded(place, None).versions = []  # fused kernels count no version

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_fetched(
            block: nn.Module, *tensors: Tensor | None
        ) -> tuple[Tensor, ...]:
            place = self._place_of.get(block)
            if place is None:
                return run(block, *tensors)
            has_backward = torch.is_grad_enabled()
            after: int | None = place + 1
            if after == len(self._waiting):
                # The backward pass begins with the last two blocks, which are loaded.
                # Trained blocks may be written to between two passes; no block may be
                # in a copy at that time.
                after = None if has_backward or self._trained else 0
            self._ensure_loaded(place, after)
            if not has_backward:
                return run(block, *tensors)

            def load(grad: Tensor) -> None:
                self._ensure_loaded(place, place - 1 if place else None)

            with saved_tensor_rule(partial(self._as_place, place)):
                outputs = run(block, *tensors)
            differentiable = [output for output in outputs if output.requires_grad]
            if differentiable:
                # Called with the first gradient that reaches the block, before its
                # backward pass or recomputation.
                register_multi_grad_hook(differentiable, load, mode="any")
            return outputs

        return run_fetched

    def _ensure_loaded(self, place: int, ahead: int | None) -> _Buffer:
        """The buffer with the weights of one block, once they have arrived. Starts to
        prefetch another block."""
        current = self._fetch(place, keep=None)
        if current.arriving is not None:
            current.arrived = current.arriving.result()
            current.arriving = None
        if current.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(current.arrived)
        if ahead is not None:
            self._fetch(ahead, keep=current)
        return current

    def _fetch(self, place: int, keep: _Buffer | None) -> _Buffer:
        """The buffer of a block, which may still be arriving. A block that has no
        buffer gets one that is not `keep`."""
        here = next((buffer for buffer in self._buffers if buffer.place == place), None)
        buffer = here or next(
            (buffer for buffer in self._buffers if buffer is not keep), None
        )
        if buffer is None:
            assert keep is not None  # the only buffer
            return keep
        self._buffers.remove(buffer)  # least recently used first
        self._buffers.append(buffer)
        if here:
            return here
        if buffer.place is not None:
            leaving = self._waiting[buffer.place]
            if leaving.versions() != buffer.versions:
                assert not leaving.is_mapped  # its weights are frozen
                self._copy_back(buffer, leaving.memory)
            # a wrong use of it raises an error on CUDA
            leaving.point_to(leaving.memory)
        buffer.place = place
        arriving = self._waiting[place]
        self._copy(arriving.memory, buffer)
        arriving.point_to(buffer.memory)
        buffer.versions = arriving.versions()
        return buffer

    def _copy_back(self, buffer: _Buffer, memory: Tensor) -> None:
        """Copies the weights back and waits for the copy: the next reader of the
        parameters may be on the CPU."""
        source = buffer.memory[: len(memory)]
        if self._stream is None:
            memory.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            memory.copy_(source, non_blocking=True)
        self._stream.synchronize()

    def _copy(self, source: Tensor, buffer: _Buffer) -> None:
        target = buffer.memory[: len(source)]
        if buffer.arriving is not None:
            # Fetched ahead and never used: it must not arrive after this block.
            buffer.arriving.result()
            buffer.arriving = None
        if self._stream is None:
            _fill(source, target)
            return
        if self._window is not None and is_mapped(source):
            # the previous block of the buffer is still in use
            ready = torch.cuda.current_stream(self._device).record_event()
            buffer.arriving = self._window.send(source, target, ready)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # as above
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            buffer.arrived = self._stream.record_event()

    def _as_place(self, place: int, tensor: Tensor) -> Callable[[], Tensor] | None:
        """Saves a view of a swapped weight as its position: by the backward pass the
        buffer holds another block."""
        if all(
            tensor.untyped_storage().data_ptr() != b.memory.untyped_storage().data_ptr()
            for b in self._buffers
        ):
            return None
        dtype = tensor.dtype
        geometry = (tensor.shape, tensor.stride(), tensor.storage_offset())
        return lambda: (
            self._ensure_loaded(place, None).memory.view(dtype).as_strided(*geometry)
        )


class HostCopies(Protocol):
    """Asynchronous copies between device and CPU memory.

    Example::

        host = copies.to_host(tensor)
        give_back = copies.to_device(host)
        tensor = give_back()
    """

    def begin_block(self) -> None:
        """Starts a new block: later copies belong to its inputs."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """Starts a copy to CPU memory. The caller may free the tensor at once."""

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        """Starts a copy to the device; calling the result waits for it."""

    def release(self) -> None:
        """No more copies to the CPU for now: tensors are freed once their copy is
        finished."""


class InFlightCopies:
    """Keeps GPU tensors alive until their copy to the CPU has finished, at most two
    blocks later.

    >>> waited = []
    >>> copies = InFlightCopies()
    >>> copies.hold(torch.zeros(2), wait=lambda: waited.append("copied"))
    >>> copies.release()
    >>> waited
    ['copied']
    """

    def __init__(self) -> None:
        self._by_block: deque[list[tuple[Tensor, Callable[[], None]]]] = deque([[], []])

    def hold(self, tensor: Tensor, wait: Callable[[], None]) -> None:
        """wait: makes the device's next work wait for the copy; called before the
        tensor is freed."""
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
    """Copies on a separate stream, from and to pinned memory.

    Example::

        offload = ActivationOffload(CudaCopies(device))
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # `record_stream` would free memory only once the host has seen the copy finish,
        # and the host is many blocks ahead of the device. The inputs of all these
        # blocks would stay on the device.
        self._in_flight = InFlightCopies()

    def begin_block(self) -> None:
        self._in_flight.begin_block()

    def to_host(self, tensor: Tensor) -> Tensor:
        host = pinned(partial(torch.empty_like, tensor, device="cpu"))
        # wait until the tensor is computed
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
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
        # Wait until no kernel writes to the memory of this tensor any more, and its
        # copy to the CPU is finished.
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
    """The inputs of one call of a block, or what it keeps of attention, in CPU
    memory."""

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
            self._before = (
                None  # prefetch only once; a later request is still correct, but waits
            )
        return arrive()

    def fetch_all(self) -> None:
        for index in range(len(self._hosts)):
            self._fetch(index)

    def _fetch(self, index: int) -> None:
        if index not in self._prefetched:
            self._prefetched[index] = self._copies.to_device(self._hosts[index])


def on_cuda(tensor: Tensor) -> bool:
    """Whether a tensor is in the memory of a GPU."""
    return tensor.is_cuda


class ActivationOffload:
    """A wrapper that offloads the inputs of checkpointed blocks, compiled or not.

    Example::

        offload = ActivationOffload(CudaCopies(device))
        model.wrap_blocks([checkpoint_wrapper("full_offload"), offload])
    """

    def __init__(
        self, copies: HostCopies, is_elsewhere: Callable[[Tensor], bool] = on_cuda
    ) -> None:
        """is_elsewhere: whether a tensor is in device memory."""
        self._copies = copies
        self._is_elsewhere = is_elsewhere
        self._latest: Callable[[], _BlockInputs | None] = lambda: None

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_offloaded(
            block: nn.Module, *tensors: Tensor | None
        ) -> tuple[Tensor, ...]:
            leaves = self._leaves(block, [t for t in tensors if isinstance(t, Tensor)])
            if leaves is None or not torch.is_grad_enabled():
                return run(block, *tensors)
            self._copies.begin_block()
            inputs = _BlockInputs(self._copies, self._latest())
            # weak: blocks after their backward pass need no prefetch
            self._latest = weakref.ref(inputs)
            try:
                with saved_tensor_rule(
                    lambda tensor: inputs.keep(tensor) if leaves(tensor) else None
                ):
                    return run(block, *tensors)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self._copies.release()  # no later block does it
                raise

        return run_offloaded

    def _leaves(
        self, block: nn.Module, given: Sequence[Tensor]
    ) -> Callable[[Tensor], bool] | None:
        """Whether a saved tensor is offloaded; None where none is. given: the inputs of
        the block."""
        # Only tensors that one block passes to the next are offloaded; all blocks share
        # the others.
        passed_on = {
            _memory(t) for t in given if t.requires_grad and self._is_elsewhere(t)
        }
        return (lambda tensor: _memory(tensor) in passed_on) if passed_on else None


class AttentionOffload(ActivationOffload):
    """A wrapper that offloads what blocks keep of attention, compiled or not: its
    output and the logarithms of its sums.

    Example::

        offload = AttentionOffload(CudaCopies(device))
        model.wrap_blocks([checkpoint_wrapper("offload_attention"), offload])
    """

    def _leaves(
        self, block: nn.Module, given: Sequence[Tensor]
    ) -> Callable[[Tensor], bool] | None:
        if not any(map(self._is_elsewhere, given)):
            return None
        # A compiled block saves its inputs and weights by the same way. The state of
        # random numbers has one dimension.
        stays = {_memory(t) for t in (*given, *block.parameters(), *block.buffers())}
        return lambda tensor: tensor.dim() > 1 and _memory(tensor) not in stays


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


OFFLOADS = {"offload_attention": AttentionOffload, "full_offload": ActivationOffload}
"""Level of `gradient_checkpointing` -> the wrapper around its checkpoints."""


def offloading(
    device: torch.device, level: str = "full_offload"
) -> list[ActivationOffload]:
    """The wrapper of a level for this device, as a list; empty without CUDA, and for
    levels that have none."""
    if device.type != "cuda" or level not in OFFLOADS:
        return []
    return [OFFLOADS[level](CudaCopies(device))]

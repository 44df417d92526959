"""Checkpointing that keeps nothing large on the device: `gradient_checkpointing:
block_offload`.

As with full checkpointing each block is computed again in the backward pass. Its inputs
wait in CPU memory until then, and so do the tensors that it saves while it is computed
again. Tensors leave as they are saved and come back one by one, in the opposite order,
so that the device holds the working set of an operation instead of a block's.

The graph of the forward pass is used, and the same operations run on the same values:
gradients equal the ones of full checkpointing, bit for bit. Compiled blocks cannot be
used, because a program itself decides which tensors it saves.

Called by `block_runner`; the copies are in `offload`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from toolkit.contracts.model import BlockForward
from toolkit.memory.offload import CudaCopies, HostCopies, on_cuda
from toolkit.system.device import is_out_of_memory

LARGE = 1 / 64
"""Share of a block's largest input above which a saved tensor leaves the device.
Statistics of norms and the low-rank numbers of an adapter are smaller and stay."""


class _AllSaved(Exception):
    """Ends a recomputation: the rest of the block saves nothing."""


class _Saved:
    """The object that autograd keeps in place of a saved tensor."""

    def __init__(self, call: _Call, index: int) -> None:
        self.call = call
        self.index = index


class _Waiting:
    """A tensor in CPU memory."""

    def __init__(
        self, copies: HostCopies, tensor: Tensor, is_largest: bool = False
    ) -> None:
        # One tensor may be in a copy while the next is computed; one of the largest may
        # not.
        copies.release() if is_largest else copies.begin_block()
        self._copies = copies
        self._host = copies.to_host(tensor.detach())
        self._arrive: Callable[[], Tensor] | None = None
        self.bytes = _bytes(tensor)

    def copy_ahead(self) -> None:
        """Starts the copy to the device."""
        self._arrive = self._arrive or self._copies.to_device(self._host)

    def __call__(self) -> Tensor:
        """The tensor on the device. Each call copies it, except the first one after
        `copy_ahead`."""
        self.copy_ahead()
        arrive = self._arrive
        self._arrive = None
        assert arrive is not None
        return arrive()


Kept = Tensor | _Waiting

Input = tuple[Kept | None, bool]
"""An input of a block, and whether it needs a gradient."""


class _Call:
    """One call of a block, and the tensors that it saves."""

    def __init__(
        self,
        run: BlockForward,
        block: nn.Module,
        copies: HostCopies,
        leaves: Callable[[Tensor], bool],
    ) -> None:
        """leaves: whether a large tensor may leave the device."""
        self._run = run
        self._block = block
        self._copies = copies
        self._leaves = leaves
        self._inputs: list[Input] = []
        self._saved: list[weakref.ref[_Saved]] = []
        self._again: dict[int, Kept] = {}
        """Index of a saved tensor -> the recomputed tensor, until it is used."""
        self._on_host: dict[tuple[object, ...], tuple[StorageWeakRef, _Waiting]] = {}
        self._before: Callable[[], _Call | None] = lambda: None
        """The call of the previous block, whose backward pass follows."""
        self._largest = 0

    def __call__(
        self, tensors: Sequence[Tensor | None], before: Callable[[], _Call | None]
    ) -> tuple[Tensor, ...]:
        """The outputs of the block."""
        self._before = before
        given = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        self._largest = max(map(_bytes, given))
        # The GPU and the state of its random numbers; empty on the CPU.
        self._of_device = [
            (t.device, torch.cuda.get_rng_state(t.device))
            for t in given[:1]
            if t.is_cuda
        ]
        self._of_host = torch.get_rng_state()
        self._inputs = list(map(self._as_input, tensors))
        with saved_tensors_hooks(self._expect, _give_back):
            return self._run(self._block, *tensors)

    def _as_input(self, given: Tensor | None) -> Input:
        # None, or a description that all blocks share
        if not isinstance(given, Tensor):
            return given, False
        # Only tensors that one block passes to the next leave; the others are shared by
        # all blocks.
        leaves = given.requires_grad and self._is_large(given)
        return _Waiting(
            self._copies, given
        ) if leaves else given.detach(), given.requires_grad

    def _is_large(self, tensor: Tensor) -> bool:
        # The size of its storage counts: a small view would keep the whole.
        return (
            tensor.untyped_storage().nbytes() >= LARGE * self._largest
            and self._leaves(tensor)
        )

    def _expect(self, tensor: Tensor) -> _Saved:
        saved = _Saved(self, len(self._saved))
        # weak: a tensor that the graph no longer needs is not kept
        self._saved.append(weakref.ref(saved))
        return saved

    def give_back(self, index: int) -> Tensor:
        """A saved tensor, which is computed again where it is missing."""
        if index not in self._again:
            self._compute_again()
        stored = self._again.pop(index)
        tensor = stored if isinstance(stored, Tensor) else stored()
        following = next(
            (self._again[i] for i in range(index - 1, -1, -1) if i in self._again), None
        )
        before = self._before()
        if following is None and before is not None:
            before.copy_inputs_ahead()
        if isinstance(following, _Waiting) and following.bytes <= self._largest:
            following.copy_ahead()  # a larger one would add to the peak
        return tensor

    def copy_inputs_ahead(self) -> None:
        for stored, _ in self._inputs:
            if isinstance(stored, _Waiting):
                stored.copy_ahead()

    def _compute_again(self) -> None:
        weights = {
            t.untyped_storage()._cdata
            for t in (*self._block.parameters(), *self._block.buffers())
        }
        index = 0

        def save(tensor: Tensor) -> None:
            nonlocal index
            if self._saved[index]() is not None:
                is_weight = tensor.untyped_storage()._cdata in weights
                leaves = not is_weight and self._is_large(tensor)
                self._again[index] = (
                    self._put_away(tensor) if leaves else tensor.detach()
                )
            index += 1
            if index == len(self._saved):
                raise _AllSaved

        self._again.clear()
        given = list(map(_as_given, self._inputs))
        with torch.random.fork_rng(devices=[device for device, _ in self._of_device]):
            torch.set_rng_state(self._of_host)
            for device, state in self._of_device:
                torch.cuda.set_rng_state(state, device)
            with (
                suppress(_AllSaved),
                torch.enable_grad(),
                saved_tensors_hooks(save, _nothing),
            ):
                self._run(self._block, *given)
        self._on_host.clear()

    def _put_away(self, tensor: Tensor) -> _Waiting:
        """The same tensor may be saved by several operations; it leaves once."""
        storage = tensor.untyped_storage()
        key = (
            storage._cdata,
            tensor._version,
            tensor.dtype,
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
        )
        # The reference ensures that the address does not belong to another storage.
        entry = self._on_host.get(key)
        if entry is None or entry[0].expired():
            waiting = _Waiting(
                self._copies, tensor, is_largest=_bytes(tensor) > self._largest
            )
            entry = self._on_host[key] = StorageWeakRef(storage), waiting
        return entry[1]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _as_given(block_input: Input) -> Tensor | None:
    """A block's input again, without its graph."""
    there, needs_grad = block_input
    tensor = there() if isinstance(there, _Waiting) else there
    if isinstance(tensor, Tensor):
        return tensor.detach().requires_grad_(needs_grad)
    return tensor


def _give_back(saved: _Saved) -> Tensor:
    return saved.call.give_back(saved.index)


def _nothing(_: None) -> Tensor:
    raise AssertionError("the graph of a recomputation is not gone through")


class RecomputeOffload:
    """A wrapper around blocks that are not compiled.

    Example::

        model.wrap_blocks([RecomputeOffload(CudaCopies(device))])
    """

    def __init__(
        self, copies: HostCopies, is_elsewhere: Callable[[Tensor], bool] = on_cuda
    ) -> None:
        """is_elsewhere: whether a tensor is in device memory."""
        self._copies = copies
        self._is_elsewhere = is_elsewhere
        self._latest: Callable[[], _Call | None] = lambda: None

    def __call__(self, run: BlockForward) -> BlockForward:
        def run_offloaded(
            block: nn.Module, *tensors: Tensor | None
        ) -> tuple[Tensor, ...]:
            if not torch.is_grad_enabled():
                return run(block, *tensors)
            before = self._latest
            call = _Call(run, block, self._copies, self._is_elsewhere)
            # weak: blocks after their backward pass need no prefetch
            self._latest = weakref.ref(call)
            try:
                return call(tensors, before)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self._copies.release()  # no later block does it
                raise

        return run_offloaded


def recomputing(device: torch.device) -> RecomputeOffload:
    """The wrapper for this device. On the CPU it recomputes, and copies nothing."""
    return RecomputeOffload(
        CudaCopies(device) if device.type == "cuda" else _NoCopies()
    )


class _NoCopies:
    """Copies for the CPU, whose tensors are in CPU memory already: it copies nothing."""

    def begin_block(self) -> None: ...

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor

    def to_device(self, host: Tensor) -> Callable[[], Tensor]:
        return lambda: host

    def release(self) -> None: ...

"""Several processes that train one run together: what they tell each other, and how they end.

Rank 0, the first, is the one that prints and writes. What the processes decide together (a stop, say) goes over gloo on
the CPU, so nobody waits for a GPU to know it; gradients go over NCCL where they are on CUDA.

How they end: whoever fails leaves a word in the store that the launcher keeps, and goes. The others notice at their
next exchange, as the connection is gone, read the word and end too. Who is gone without a word was killed.

Imports no torch until several processes meet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from toolkit import interrupt
from toolkit.errors import EXIT_FAILURE, EXIT_SIGINT, EXIT_SIGTERM, RunError, Stopped, UserError
from toolkit.parts import Part, rows_each
from toolkit.place import ALONE, Place, place_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Tensors are exchanged in pieces of about this size: few enough calls, and little memory beside the tensors."""

MEET_MINUTES = 10.0
"""How long the processes wait for each other at the start."""

GOODBYE_S = 10.0
"""How long a process that ends waits for the one that says why: a launcher that sees one end hurries the others."""

LOOK_EVERY_S = 0.05
"""Between two looks whether the first process is done with what it does alone."""

_WORD, _TOLD, _READY, _SPOKEN = "word", "told", "ready", "spoken"


class Lost(RunError):
    """Another process is gone or has failed, so this one ends, with its exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Order:
    """In the place of a value that is exchanged."""

    what: Any


class Team:
    """The processes of a run, as one of them sees it. Alone, nothing is exchanged and everything is as it is given."""

    def __init__(self, place: Place = ALONE, store: Any = None) -> None:
        """store: a `torch.distributed` store that all share; None when alone."""
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.is_first, self.alone = place.is_first, place.alone
        self._store = store
        self._done_alone = 0
        self.follow: Callable[[Any], None] | None = None
        """What this process does when the first one leads."""
        self.memory_advice = ""
        """What the user can change when memory runs out in an exchange, most effective first."""

    def open(self, minutes: float = 0) -> None:
        """Connects the processes. minutes: how long one exchange may take; 0: as long as torch says (30 minutes)."""
        if self.alone:
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if _has_nccl() else "gloo"
        timeout = timedelta(minutes=minutes) if minutes else None
        # One that failed before this would be waited for until the time is over.
        self._ask(lambda store: store.add(_READY, 1))
        self._wait_until(lambda store: store.add(_READY, 0) >= self.size)
        self.exchange(
            dist.init_process_group, backend, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
        )

    # ------------------------------------------------------------ exchanges: all processes call them, in one order

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank, in every process. What can be pickled."""
        if self.alone:
            return [value]
        while isinstance((found := self._values(value))[0], _Order):
            assert self.follow is not None  # orders come once `follow` is set (`train.lockstep`)
            self.follow(found[0].what)
        return found

    def lead(self, order: Any) -> None:
        """Called by the first process while the others wait in an exchange: they `follow` the order, and wait again."""
        if not self.alone:
            self._values(_Order(order))

    def _values(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        self.exchange(dist.all_gather_object, found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes."""
        return any(self.gather(flag))

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others call nothing and wait for it."""
        first = self.gather(make() if self.is_first else None)[0]
        return cast("T", first)  # the first process has made one

    def first_does(self, action: Callable[[], Any]) -> None:
        """The first process does something however long it takes; the others wait."""
        self._done_alone += 1
        key = f"done alone {self._done_alone}"
        if self.is_first:
            action()
            self._ask(lambda store: store.set(key, "yes"))
        else:
            self._wait_until(lambda store: store.check([key]))

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Raises RunError, in every process, when not all have the same values; it names the first that differs."""
        found = self.gather(values)
        for name in dict.fromkeys(name for own in found for name in own):
            each = [own.get(name) for own in found]
            if different := [rank for rank, value in enumerate(each) if value != each[0]]:
                raise RunError(
                    f"{name} is not the same in all processes: {each[0]!r} in process 0, {each[different[0]]!r} in "
                    f"process {different[0]}. All need the same program, job and files."
                )

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, computed in float32; the same bits in all of them."""
        self._reduce(tensors, lambda dist, flat: dist.all_reduce(flat))

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by that of the first process."""
        self._reduce(tensors, lambda dist, flat: dist.broadcast(flat, src=0))

    def collect(self, tensor: Tensor, part: Part | None = None, dtype: torch.dtype | None = None) -> Tensor | None:
        """A copy of a tensor on the CPU, in the first process; None in the others.

        part: the tensor is these rows of one that is shared out. All call it then, and all rows are copied; the device
        of the first process has room for one whole tensor. dtype: of the copy; None: as it is.
        """
        whole = tensor.detach() if part is None else self._joined(tensor.detach(), part)
        if whole is None or not self.is_first:
            return None
        return whole.to("cpu", dtype or whole.dtype, copy=True).contiguous()

    def _joined(self, own: Tensor, part: Part) -> Tensor | None:
        import torch.distributed as dist

        each = rows_each(part.shape[0], self.size)
        with self._telling_of_memory():
            padded = own.new_zeros(each, *part.shape[1:])  # all have to send as much
            joined = own.new_empty(each * self.size, *part.shape[1:]) if self.is_first else None
        padded[: len(own)] = own
        self.exchange(dist.gather, padded, None if joined is None else list(joined.chunk(self.size)))
        return None if joined is None else joined[: part.shape[0]]

    def _reduce(self, tensors: Sequence[Tensor], reduce: Callable[[Any, Tensor], Any]) -> None:
        if self.alone:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for bucket in _buckets(tensors):
                with self._telling_of_memory():
                    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in bucket])
                self.exchange(reduce, dist, flat)
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def device(self, wanted: torch.device) -> torch.device:
        """The device of this process: with several processes each has a GPU of its own.

        Raises UserError when the machine has too few, or the device cannot be shared by several processes.
        """
        if self.alone or wanted.type == "cpu":
            return wanted
        import torch

        if wanted.type != "cuda":
            raise UserError(f"device: {wanted} serves one process only, and there are {self.size}. Use cuda or cpu.")
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(
                f"process {self.rank} has no GPU: it is number {self.local_rank} (from 0) on a machine that has "
                f"{count}. Start as many processes as there are GPUs: torchrun --nproc-per-node {count}"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    # ------------------------------------------------------------ ends

    @contextmanager
    def together(self, report: Callable[[BaseException], int]) -> Iterator[None]:
        """Inside the block the processes end together: one that fails tells the others, and one speaks for all.

        report: shows why the program ends and returns its exit code. Of several processes each then leaves with
        SystemExit.
        """
        try:
            yield
            self.gather("done")
        except BaseException as error:
            if self.alone:
                raise
            interrupt.ignore()
            raise SystemExit(self._leave(error, report)) from error

    def _leave(self, error: BaseException, report: Callable[[BaseException], int]) -> int:
        """Says why all end, or lets another process do it. Returns the exit code."""
        if isinstance(error, Lost):
            speaks = self.is_first if self._word() else self._ask(lambda store: store.add(_TOLD, 1), 1) == 1
            return report(error) if speaks else error.exit_code
        code, text = _exit_code(error), str(error) or type(error).__name__
        word = json.dumps({"rank": self.rank, "code": code, "text": text})
        said = self._ask(lambda store: store.compare_set(_WORD, "", word).decode(), word) or word
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        # All find the same mistake in a job, and all hear of a stop: one is enough to say so.
        speaks = self.is_first if stopped else said == word or json.loads(said)["text"] != text
        if speaks:
            code = report(error)
            self._ask(lambda store: store.set(_SPOKEN, "yes"))
        elif not self._another_speaks():
            return report(error)
        return code

    def _another_speaks(self) -> bool:
        """Waits for the one that says why all end, so that no launcher hurries it. Whether it does."""
        until = time.monotonic() + GOODBYE_S
        while time.monotonic() < until:
            # A store that is gone was kept by the first process, which ends last of those that are well.
            if self._ask(lambda store: store.check([_SPOKEN]), True):
                return True
            time.sleep(LOOK_EVERY_S)
        return False

    def exchange(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What `call` gives, which exchanges something with the other processes.

        Raises Lost, or Stopped, when one of them is gone; RunError when this one runs out of memory.
        """
        with self._telling_of_memory():
            try:
                return call(*arguments, **named)
            except RuntimeError as error:
                if _is_out_of_memory(error):
                    raise
                raise self._loss() from error

    @contextmanager
    def _telling_of_memory(self) -> Iterator[None]:
        """What runs out of memory inside the block ends the run with advice."""
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            message = f"out of memory in an exchange with the other processes. {self.memory_advice}"
            raise RunError(message.rstrip()) from error

    def _loss(self) -> BaseException:
        """Why an exchange could not be made; this process is on its way out now."""
        interrupt.ignore()
        word = self._word()
        if word is None:
            return Lost(
                f"one of the {self.size} processes is gone without a word (killed, out of memory, hanging, or its "
                "machine is not reached any more), so all end. The same command goes on from the last save."
            )
        if word["code"] in (EXIT_SIGINT, EXIT_SIGTERM):
            return Stopped(word["code"])
        return Lost(f"process {word['rank']} of {self.size} failed, so all end: {word['text']}", word["code"])

    def _word(self) -> dict[str, Any] | None:
        """What the process that failed first has said."""
        said = self._ask(lambda store: store.get(_WORD).decode() if store.check([_WORD]) else "", "")
        return json.loads(said) if said else None

    def _wait_until(self, true: Callable[[Any], bool]) -> None:
        """Looks again and again, so that a signal is answered in between."""
        while not self._ask(true):
            if self._word() or not self._ask(lambda store: store.add(_READY, 0)):
                raise self._loss()
            time.sleep(LOOK_EVERY_S)

    def _ask(self, question: Callable[[Any], T], otherwise: T | None = None) -> T | None:
        """The store's answer; `otherwise` when it is gone, with the launcher or the first process."""
        with suppress(RuntimeError):
            if self._store is not None:
                return question(self._store)
        return otherwise


def meet(place: Place) -> Team:
    """The team of this process. Of several processes each waits until all are there."""
    if place.alone:
        return Team()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that is gone is told in words of our own
    from torch.distributed import PrefixStore, rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=MEET_MINUTES)))
    except RuntimeError as error:
        raise RunError(f"process {place.rank} of {place.size} did not find the others: {error}") from error
    return Team(place, PrefixStore(f"run {place.attempt}", store))  # what an earlier attempt said is not for this one


def silence_others(place: Place) -> None:
    """Only the first process of a run prints; what ends another one still goes to standard error."""
    if not place.is_first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process


def leave(code: int) -> NoReturn:
    """Ends this process; of several, without waiting for what libraries still have under way with the others."""
    interrupt.ignore()  # the exit code stands: a signal while the interpreter closes would be a traceback
    with suppress(UserError):
        if place_of().alone:
            sys.exit(code)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE * bool(error.code)
    return getattr(error, "exit_code", EXIT_FAILURE)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a device. NCCL takes memory by itself, and says so in words only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _has_nccl() -> bool:
    import torch
    import torch.distributed as dist

    return torch.cuda.is_available() and dist.is_nccl_available()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, cut where a bucket is full or the device changes."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or tensor.device != bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += 4 * tensor.numel()
    if bucket:
        yield bucket

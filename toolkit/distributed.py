"""Process group of a run on several ranks: collectives, and how all ranks end together.

Rank 0, the first, is the one that prints and writes. What the processes decide together (a stop, say) goes over gloo on
the CPU, so nobody waits for a GPU to know it; gradients go over NCCL where they are on CUDA.

How they end: whoever fails leaves a word in the store that the launcher keeps, and goes. The others notice at their
next collective, as the connection is gone, read the word and end too. A rank that disappears without an error record
was killed.

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

from toolkit import signals
from toolkit.distributed_env import SINGLE_PROCESS, DistributedEnv, read_distributed_env
from toolkit.errors import EXIT_FAILURE, EXIT_SIGINT, EXIT_SIGTERM, Interrupted, RunError, UserError
from toolkit.sharded_param import RowShard, rows_per_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Tensors are exchanged in pieces of about this size: few enough calls, and little memory beside the tensors."""

RENDEZVOUS_TIMEOUT_MIN = 10.0
"""How long the processes wait for each other at the start."""

SHUTDOWN_GRACE_S = 10.0
"""How long a process that ends waits for the one that says why: a launcher that sees one end hurries the others."""

POLL_INTERVAL_S = 0.05
"""Between two looks whether rank 0 is done with what it does alone."""

_WORD, _TOLD, _READY, _SPOKEN = "word", "told", "ready", "spoken"


class PeerFailedError(RunError):
    """Another process is gone or has failed, so this one ends, with its exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Command:
    """In the place of a value that is exchanged."""

    what: Any


class ProcessGroup:
    """The process group as seen from one rank. On a single process every collective returns its input."""

    def __init__(self, env: DistributedEnv = SINGLE_PROCESS, store: Any = None) -> None:
        """store: a `torch.distributed` store that all share; None when alone."""
        self.rank, self.world_size, self.local_rank = env.rank, env.size, env.local_rank
        self.is_main_process, self.is_single_process = env.is_main_process, env.is_single_process
        self._store = store
        self._rank0_actions = 0
        self.on_command: Callable[[Any], None] | None = None
        """Handles a command that rank 0 broadcasts."""
        self.oom_hint = ""
        """What the user can change when memory runs out in a collective, most effective first."""

    def init_process_group(self, minutes: float = 0) -> None:
        """Connects the processes. minutes: how long one collective may take; 0: as long as torch says (30 minutes)."""
        if self.is_single_process:
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if _has_nccl() else "gloo"
        timeout = timedelta(minutes=minutes) if minutes else None
        # One that failed before this would be waited for until the time is over.
        self._store_call(lambda store: store.add(_READY, 1))
        self._wait_until(lambda store: store.add(_READY, 0) >= self.world_size)
        self.run_collective(
            dist.init_process_group,
            backend,
            store=self._store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timeout,
        )

    # ------------------------------------------------------------ exchanges: all processes call them, in one order

    def all_gather_object(self, value: T) -> list[T]:
        """The value of each rank, in rank order, on every rank. Values must be picklable."""
        if self.is_single_process:
            return [value]
        while isinstance((found := self._values(value))[0], _Command):
            assert self.on_command is not None  # orders come once `follow` is set (`train.lockstep`)
            self.on_command(found[0].what)
        return found

    def broadcast_command(self, order: Any) -> None:
        """Called by rank 0 while the others wait in a collective: they `follow` the order, and wait again."""
        if not self.is_single_process:
            self._values(_Command(order))

    def _values(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.world_size
        self.run_collective(dist.all_gather_object, found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes."""
        return any(self.all_gather_object(flag))

    def run_on_rank0_and_broadcast(self, make: Callable[[], T]) -> T:
        """Calls `make` on rank 0 and broadcasts the result."""
        first = self.all_gather_object(make() if self.is_main_process else None)[0]
        return cast("T", first)  # rank 0 has made one

    def run_on_rank0_then_barrier(self, action: Callable[[], Any]) -> None:
        """Rank 0 runs the action; the other ranks wait, however long it takes."""
        self._rank0_actions += 1
        key = f"done alone {self._rank0_actions}"
        if self.is_main_process:
            action()
            self._store_call(lambda store: store.set(key, "yes"))
        else:
            self._wait_until(lambda store: store.check([key]))

    def assert_equal_across_ranks(self, values: Mapping[str, Any]) -> None:
        """Raises RunError, in every process, when not all have the same values; it names the first that differs."""
        found = self.all_gather_object(values)
        for name in dict.fromkeys(name for own in found for name in own):
            each = [own.get(name) for own in found]
            if different := [rank for rank, value in enumerate(each) if value != each[0]]:
                raise RunError(
                    f"{name} is not the same in all processes: {each[0]!r} in process 0, {each[different[0]]!r} in "
                    f"process {different[0]}. All need the same program, job and files."
                )

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """All-reduces each tensor in place (sum, in float32); the result has the same bits on all ranks."""
        self._reduce(tensors, lambda dist, flat: dist.all_reduce(flat))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Broadcasts each tensor from rank 0, in place."""
        self._reduce(tensors, lambda dist, flat: dist.broadcast(flat, src=0))

    def gather_to_rank0(
        self, tensor: Tensor, shard: RowShard | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """A copy of a tensor on the CPU, in rank 0; None in the others.

        part: the tensor is these rows of one that is sharded. All call it then, and all rows are copied; the device
        of rank 0 has room for one whole tensor. dtype: of the copy; None: as it is.
        """
        whole = tensor.detach() if shard is None else self._gather_rows(tensor.detach(), shard)
        if whole is None or not self.is_main_process:
            return None
        return whole.to("cpu", dtype or whole.dtype, copy=True).contiguous()

    def _gather_rows(self, own: Tensor, shard: RowShard) -> Tensor | None:
        import torch.distributed as dist

        each = rows_per_rank(shard.shape[0], self.world_size)
        with self._oom_as_run_error():
            padded = own.new_zeros(each, *shard.shape[1:])  # all have to send as much
            joined = own.new_empty(each * self.world_size, *shard.shape[1:]) if self.is_main_process else None
        padded[: len(own)] = own
        self.run_collective(dist.gather, padded, None if joined is None else list(joined.chunk(self.world_size)))
        return None if joined is None else joined[: shard.shape[0]]

    def _reduce(self, tensors: Sequence[Tensor], reduce: Callable[[Any, Tensor], Any]) -> None:
        if self.is_single_process:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for bucket in _buckets(tensors):
                with self._oom_as_run_error():
                    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in bucket])
                self.run_collective(reduce, dist, flat)
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def device(self, wanted: torch.device) -> torch.device:
        """The device of this process: with several processes each has a GPU of its own.

        Raises UserError when the machine has too few, or the device cannot be shared by several processes.
        """
        if self.is_single_process or wanted.type == "cpu":
            return wanted
        import torch

        if wanted.type != "cuda":
            raise UserError(
                f"device: {wanted} serves one process only, and there are {self.world_size}. Use cuda or cpu."
            )
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
    def fail_together(self, report: Callable[[BaseException], int]) -> Iterator[None]:
        """Inside the block the processes end together: one that fails tells the others, and one speaks for all.

        report: shows why the program ends and returns its exit code. Of several processes each then leaves with
        SystemExit.
        """
        try:
            yield
            self.all_gather_object("done")
        except BaseException as error:
            if self.is_single_process:
                raise
            signals.ignore()
            raise SystemExit(self._end(error, report)) from error

    def _end(self, error: BaseException, report: Callable[[BaseException], int]) -> int:
        """Says why all end, or lets another process do it. Returns the exit code."""
        if isinstance(error, PeerFailedError):
            speaks = (
                self.is_main_process
                if self._failure_record()
                else self._store_call(lambda store: store.add(_TOLD, 1), 1) == 1
            )
            return report(error) if speaks else error.exit_code
        code, text = _exit_code(error), str(error) or type(error).__name__
        word = json.dumps({"rank": self.rank, "code": code, "text": text})
        said = self._store_call(lambda store: store.compare_set(_WORD, "", word).decode(), word) or word
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        # All find the same error in a job, and all hear of a stop: one is enough to say so.
        speaks = self.is_main_process if stopped else said == word or json.loads(said)["text"] != text
        if speaks:
            code = report(error)
            self._store_call(lambda store: store.set(_SPOKEN, "yes"))
        elif not self._another_rank_reports():
            return report(error)
        return code

    def _another_rank_reports(self) -> bool:
        """Waits for the one that says why all end, so that no launcher hurries it. Whether it does."""
        until = time.monotonic() + SHUTDOWN_GRACE_S
        while time.monotonic() < until:
            # A store that is gone was kept by rank 0, which ends last of those that are well.
            if self._store_call(lambda store: store.check([_SPOKEN]), True):
                return True
            time.sleep(POLL_INTERVAL_S)
        return False

    def run_collective(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What `call` gives, which exchanges something with the other processes.

        Raises Lost, or Stopped, when one of them is gone; RunError when this one runs out of memory.
        """
        with self._oom_as_run_error():
            try:
                return call(*arguments, **named)
            except RuntimeError as error:
                if _is_out_of_memory(error):
                    raise
                raise self._peer_failure() from error

    @contextmanager
    def _oom_as_run_error(self) -> Iterator[None]:
        """What runs out of memory inside the block ends the run with advice."""
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            message = f"out of memory in an exchange with the other processes. {self.oom_hint}"
            raise RunError(message.rstrip()) from error

    def _peer_failure(self) -> BaseException:
        """Why a collective could not be made; this process is on its way out now."""
        signals.ignore()
        word = self._failure_record()
        if word is None:
            return PeerFailedError(
                f"one of the {self.world_size} ranks died without reporting an error (killed, out of memory, hung, or "
                "its node is unreachable); shutting down. Run the same command to resume from the last save."
            )
        if word["code"] in (EXIT_SIGINT, EXIT_SIGTERM):
            return Interrupted(word["code"])
        return PeerFailedError(
            f"rank {word['rank']} of {self.world_size} failed, shutting down: {word['text']}", word["code"]
        )

    def _failure_record(self) -> dict[str, Any] | None:
        """What the process that failed first has said."""
        said = self._store_call(lambda store: store.get(_WORD).decode() if store.check([_WORD]) else "", "")
        return json.loads(said) if said else None

    def _wait_until(self, true: Callable[[Any], bool]) -> None:
        """Looks again and again, so that a signal is answered in between."""
        while not self._store_call(true):
            if self._failure_record() or not self._store_call(lambda store: store.add(_READY, 0)):
                raise self._peer_failure()
            time.sleep(POLL_INTERVAL_S)

    def _store_call(self, question: Callable[[Any], T], otherwise: T | None = None) -> T | None:
        """The store's answer; `otherwise` when it is gone, with the launcher or rank 0."""
        with suppress(RuntimeError):
            if self._store is not None:
                return question(self._store)
        return otherwise


def rendezvous_processes(env: DistributedEnv) -> ProcessGroup:
    """The team of this process. Of several processes each waits until all are there."""
    if env.is_single_process:
        return ProcessGroup()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that is gone is told in words of our own
    from torch.distributed import PrefixStore, rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=RENDEZVOUS_TIMEOUT_MIN)))
    except RuntimeError as error:
        raise RunError(f"rank {env.rank} of {env.size}: rendezvous failed: {error}") from error
    return ProcessGroup(
        env, PrefixStore(f"run {env.attempt}", store)
    )  # what an earlier attempt said is not for this one


def mute_nonzero_ranks(env: DistributedEnv) -> None:
    """Only rank 0 of a run prints; what ends another one still goes to standard error."""
    if not env.is_main_process:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process


def exit_process(code: int) -> NoReturn:
    """Ends this process; of several, without waiting for what libraries still have under way with the others."""
    signals.ignore()  # the exit code stands: a signal while the interpreter closes would be a traceback
    with suppress(UserError):
        if read_distributed_env().is_single_process:
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

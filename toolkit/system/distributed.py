"""Process group of a run on several ranks: collectives, and how all ranks end together.

Rank 0 prints and writes. Python objects (a stop request, say) go over gloo on the CPU,
so that no rank waits for a GPU; gradients go over NCCL where they are on CUDA.

Shutdown: a rank that fails writes a failure record into the launcher's store and exits.
The connection of the other ranks is then lost: at their next collective they read the
record and exit too. A rank that disappears without a record was killed.

`run` makes the group (`rendezvous_processes`), `jobs.job` connects it, and the training
loop uses it. Sharding a model is in `toolkit.memory.fsdp`. Imports no torch before
several processes rendezvous.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    Interrupted,
    OutOfMemory,
    ReportedExit,
    RunError,
    UserError,
)
from toolkit.system import signals
from toolkit.system.distributed_env import (
    SINGLE_PROCESS,
    DistributedEnv,
    read_distributed_env,
)
from toolkit.system.sharded_param import RowShard, rows_per_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Tensors are reduced in buckets of about this size: few calls, and little extra
memory."""

TIMEOUT_MIN = 30
"""Timeout of a collective, with gloo and NCCL alike: PyTorch's own default for NCCL is
10."""

RENDEZVOUS_TIMEOUT_MIN = 10.0
"""Minutes that the ranks wait for each other at the start."""

SHUTDOWN_GRACE_S = 10.0
"""Seconds that a failing rank waits for the others: a launcher kills them once one
exits."""

POLL_INTERVAL_S = 0.05
"""Seconds between two queries of the store."""

_FAILURE = "failure"
_LOST_PEERS = "lost peers"
_READY = "ready"
_REPORTED = "reported"
_ENDED = "ended"


class PeerFailedError(RunError):
    """Another rank died or failed, so this rank exits too, with the exit code of the
    other one."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Command:
    """A command of rank 0, gathered in place of a value."""

    what: Any


class ProcessGroup:
    """The process group as seen from one rank. On a single process every collective
    returns its input.

    >>> group = ProcessGroup()
    >>> group.is_main_process, group.all_gather_object("mine")
    (True, ['mine'])
    """

    def __init__(self, env: DistributedEnv = SINGLE_PROCESS, store: Any = None) -> None:
        """store: the `torch.distributed` store of all ranks; None for a single
        process."""
        self.rank = env.rank
        self.world_size = env.world_size
        self.local_rank = env.local_rank
        self.is_main_process = env.is_main_process
        self.is_single_process = env.is_single_process
        # The rank of the first process of this machine identifies the machine.
        self._machine = env.rank - env.local_rank
        self._store = store
        self._store_calls = Queue[Callable[[], None]]()
        self._store_timeout_s = 60 * RENDEZVOUS_TIMEOUT_MIN
        if store is not None:
            threading.Thread(target=self._call_store, daemon=True, name="store").start()
        self._connected = False
        self._rank0_actions = 0
        self.on_command: Callable[[Any], None] | None = None
        """Handles a command that rank 0 broadcasts."""
        self.oom_hint: Callable[[], str] = lambda: ""
        """Advice for the user when memory runs out in a collective, the most effective
        change first."""

    def init_process_group(self, minutes: float = 0) -> None:
        """Connects the ranks. minutes: timeout of a collective; 0: `TIMEOUT_MIN`."""
        if self.is_single_process:
            return
        import torch
        import torch.distributed as dist

        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
        timeout = timedelta(minutes=minutes or TIMEOUT_MIN)
        self._store_timeout_s = timeout.total_seconds()
        # Without this the ranks would wait until the timeout for a rank that has failed
        # already.
        self._store_call(lambda store: store.add(_READY, 1))
        self._wait_until(
            lambda store: store.add(_READY, 0) >= self.world_size,
            timeout.total_seconds(),
        )
        self.run_collective(
            dist.init_process_group,
            backend,
            store=self._store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timeout,
        )
        self._connected = True

    # ------------------------------------------------------------ collectives: all
    # ranks call them in the same order

    def all_gather_object(self, value: T) -> list[T]:
        """The value of each rank, in rank order, on every rank. Values must be
        picklable."""
        if self.is_single_process:
            return [value]
        while isinstance((gathered := self._values(value))[0], _Command):
            # set by `collectives.install_command_handler` before any command
            assert self.on_command is not None
            self.on_command(gathered[0].what)
        return gathered

    def broadcast_command(self, command: Any) -> None:
        """Makes the other ranks, which wait in a collective, run a command and wait
        again. Rank 0 calls it."""
        if not self.is_single_process:
            self._values(_Command(command))

    def _values(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world_size
        self.run_collective(dist.all_gather_object, gathered, value)
        return gathered

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        return any(self.all_gather_object(flag))

    def run_on_rank0_and_broadcast(self, compute: Callable[[], T]) -> T:
        """Calls `compute` on rank 0 and broadcasts the result."""
        first = self.all_gather_object(compute() if self.is_main_process else None)[0]
        return cast("T", first)  # rank 0 has computed it

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
        """Raises RunError on all ranks when their values differ. It names the first value
        that differs."""
        gathered = self.all_gather_object(values)
        for name in dict.fromkeys(chain.from_iterable(gathered)):
            by_rank = [rank_values.get(name) for rank_values in gathered]
            for rank, value in enumerate(by_rank):
                if value != by_rank[0]:
                    raise RunError(
                        f"{name} is not the same in all processes: {by_rank[0]!r} in process 0, {value!r} "
                        f"in process {rank}. All need the same program, job and files."
                    )

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """All-reduces each tensor in place (sum, in float32); the result has the same
        bits on all ranks."""
        self._reduce(tensors, lambda dist, flat: dist.all_reduce(flat))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Broadcasts each tensor from rank 0, in place."""
        self._reduce(tensors, lambda dist, flat: dist.broadcast(flat, src=0))

    def gather_to_rank0(
        self,
        tensor: Tensor,
        shard: RowShard | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor | None:
        """A copy of a tensor on the CPU of rank 0; None on other ranks.

        shard: the tensor is this shard of a larger one, which is gathered: all ranks
        have to call it, and the device of rank 0 needs room for the full tensor. dtype:
        of the copy; None: the tensor's dtype.
        """
        import torch.distributed as dist

        full: Tensor | None = tensor.detach()
        if shard is not None:
            rows = rows_per_rank(shard.shape[0], self.world_size)
            with self._oom_as_run_error():
                # all ranks send the same size
                padded = tensor.new_zeros(rows, *shard.shape[1:])
                joined = None
                if self.is_main_process:
                    joined = tensor.new_empty(rows * self.world_size, *shard.shape[1:])
            padded[: len(tensor)] = tensor.detach()
            self.run_collective(
                dist.gather,
                padded,
                None if joined is None else list(joined.chunk(self.world_size)),
            )
            full = None if joined is None else joined[: shard.shape[0]]
        if full is None or not self.is_main_process:
            return None
        return full.to("cpu", dtype or full.dtype, copy=True).contiguous()

    def _reduce(
        self, tensors: Sequence[Tensor], reduce: Callable[[Any, Tensor], Any]
    ) -> None:
        if self.is_single_process:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for bucket in _buckets(tensors):
                with self._oom_as_run_error():
                    flat = torch.cat(
                        [tensor.detach().reshape(-1).float() for tensor in bucket]
                    )
                self.run_collective(reduce, dist, flat)
                pieces = flat.split([tensor.numel() for tensor in bucket])
                for tensor, piece in zip(bucket, pieces, strict=True):
                    tensor.copy_(piece.view_as(tensor))

    def device(self, wanted: torch.device) -> torch.device:
        """The device of this rank: with several processes each has its own GPU.

        Raises UserError when the machine has too few, or the device cannot be shared by
        several processes.
        """
        import torch

        from toolkit.system.device import use_device

        if self.is_single_process or wanted.type == "cpu":
            return use_device(wanted)
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
        return use_device(torch.device("cuda", self.local_rank))

    # ------------------------------------------------------------ shutdown

    @contextmanager
    def fail_together(self, report: Callable[[BaseException], int]) -> Iterator[None]:
        """Inside the block all ranks shut down together: one that fails records it, and
        one rank reports the error.

        report: prints the error and returns the exit code. With several processes each
        exits with ReportedExit.
        """
        try:
            yield
            self.all_gather_object("done")
        except BaseException as error:
            if self.is_single_process:
                raise
            signals.ignore()
            code = self._report_once(error, report)
            self._store_call(lambda store: store.add(_ENDED, 1))
            if not (
                self._connected or isinstance(error, Interrupted | KeyboardInterrupt)
            ):
                # This rank may own the store. A slower rank reads there that an error
                # which all ranks find has been reported.
                self._poll_before_exit(
                    lambda store: store.add(_ENDED, 0) >= self.world_size
                )
            raise ReportedExit(code) from error

    def _report_once(
        self, error: BaseException, report: Callable[[BaseException], int]
    ) -> int:
        """Reports the error, or leaves that to another rank, and returns the exit
        code."""
        if isinstance(error, PeerFailedError):
            # One rank of each machine reports it: a user may see only one output.
            reports = self.local_rank == 0
            if not self._failure_record():
                lost = f"{_LOST_PEERS} {self._machine}"
                reports = self._store_call(lambda store: store.add(lost, 1), 1) == 1
            return report(error) if reports else error.exit_code
        interrupted = isinstance(error, KeyboardInterrupt)
        code = EXIT_SIGINT if interrupted else getattr(error, "exit_code", EXIT_FAILURE)
        text = str(error) or type(error).__name__
        record = json.dumps(
            {"rank": self.rank, "machine": self._machine, "code": code, "text": text}
        )
        stored = (
            self._store_call(
                lambda store: store.compare_set(_FAILURE, "", record).decode(), record
            )
            or record
        )
        first = json.loads(stored)
        # An error in the job and a stop concern all ranks: one of each machine reports
        # it.
        reported = f"{_REPORTED} {self._machine}"
        if isinstance(error, Interrupted | KeyboardInterrupt):
            reports = self.local_rank == 0
        else:
            elsewhere = first["machine"] != self._machine
            reports = (
                stored == record
                or first["text"] != text
                or (elsewhere and self.local_rank == 0)
            )
        if reports:
            code = report(error)
            self._store_call(lambda store: store.set(reported, "yes"))
        elif not self._poll_before_exit(lambda store: store.check([reported])):
            # a launcher may have killed the rank that was to report
            return report(error)
        return code

    def _poll_before_exit(self, condition: Callable[[Any], bool]) -> bool:
        """Whether `condition` of the store comes true within SHUTDOWN_GRACE_S.

        A lost store counts as true: rank 0 owned it, and exits after the other healthy
        ranks.
        """
        until = time.monotonic() + SHUTDOWN_GRACE_S
        while time.monotonic() < until:
            if self._store_call(condition, True):
                return True
            time.sleep(POLL_INTERVAL_S)
        return False

    def run_collective(
        self, call: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Any:
        """Calls `call`, a collective, and returns its result.

        Raises PeerFailedError or Interrupted when another rank is gone; RunError when
        this rank runs out of memory.
        """
        from toolkit.system.device import is_out_of_memory

        with self._oom_as_run_error():
            try:
                return call(*arguments, **named)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise self._peer_failure() from error

    @contextmanager
    def _oom_as_run_error(self) -> Iterator[None]:
        """Turns an out-of-memory error inside the block into a RunError with advice."""
        from toolkit.system.device import is_out_of_memory

        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = f"out of memory in an exchange with the other processes. {self.oom_hint()}"
            raise OutOfMemory(message.rstrip()) from error

    def _peer_failure(self) -> BaseException:
        """The error for a failed collective; this rank is shutting down."""
        signals.ignore()
        self._store_timeout_s = (
            SHUTDOWN_GRACE_S  # it may be on the machine that is lost
        )
        record = self._failure_record()
        if record is None:
            return PeerFailedError(
                f"one of the {self.world_size} ranks died without reporting an error (killed, out of memory, hung, or "
                "its node is unreachable); shutting down. Run the same command to resume from the last save."
            )
        if record["code"] in (EXIT_SIGINT, EXIT_SIGTERM):
            return Interrupted(record["code"])
        return PeerFailedError(
            f"rank {record['rank']} of {self.world_size} failed, shutting down: {record['text']}",
            record["code"],
        )

    def _failure_record(self) -> dict[str, Any] | None:
        """The failure record of the rank that failed first."""
        stored = self._store_call(
            lambda store: (
                store.get(_FAILURE).decode() if store.check([_FAILURE]) else ""
            ),
            "",
        )
        return json.loads(stored) if stored else None

    def _wait_until(
        self, condition: Callable[[Any], bool], seconds: float = math.inf
    ) -> None:
        """Polls the store, so that signals are handled in between."""
        until = time.monotonic() + seconds
        while not self._store_call(condition):
            lost = time.monotonic() > until or not self._store_call(
                lambda store: store.add(_READY, 0)
            )
            if lost or self._failure_record():
                raise self._peer_failure()
            time.sleep(POLL_INTERVAL_S)

    def _store_call(
        self, question: Callable[[Any], T], otherwise: T | None = None
    ) -> T | None:
        """The result of a call of the store; `otherwise` when the store is lost, with
        the launcher or rank 0.

        A store that does not answer in time counts as lost: a machine that has gone
        closes no connection, and PyTorch would wait until the system notices, a quarter
        of an hour.
        """
        if self._store is None:
            return otherwise
        answers: Queue[T | None] = Queue()
        store = self._store

        def ask() -> None:
            try:
                answers.put(question(store))
            except RuntimeError:
                answers.put(otherwise)

        self._store_calls.put(ask)
        try:
            return answers.get(timeout=self._store_timeout_s)
        except Empty:
            self._store = None
            return otherwise

    def _call_store(self) -> None:
        while True:
            self._store_calls.get()()


def rendezvous_processes(env: DistributedEnv) -> ProcessGroup:
    """The process group of this rank. Waits until all ranks have joined."""
    if env.is_single_process:
        return ProcessGroup()
    # a lost store has a message of our own
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import PrefixStore, rendezvous

    try:
        with _no_messages_of_cpp():
            store, _, _ = next(
                rendezvous("env://", timeout=timedelta(minutes=RENDEZVOUS_TIMEOUT_MIN))
            )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]  # below it may be a stack of C++
        raise RunError(
            f"rank {env.rank} of {env.world_size}: the processes did not meet at {env.address}: {reason.rstrip('. ')}. "
            "Check MASTER_ADDR and MASTER_PORT, and that all of them were started."
        ) from error
    # ignores records of earlier attempts
    return ProcessGroup(env, PrefixStore(f"run {env.attempt}", store))


@contextmanager
def _no_messages_of_cpp() -> Iterator[None]:
    """Discards standard error inside the block: PyTorch logs failed connections with a
    stack, and also raises an error."""
    stderr_copy = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(nowhere)


def mute_nonzero_ranks(env: DistributedEnv) -> None:
    """Only rank 0 prints to standard output; errors of other ranks still go to standard
    error."""
    if not env.is_main_process:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process


def exit_process(code: int) -> NoReturn:
    """Exits this process. After a stop it does not wait for a thread, which may read from
    a silent server, and with several processes not for work of libraries that is pending
    with the other ranks."""
    # the exit code is final: a signal during interpreter shutdown would print a
    # traceback
    signals.ignore()
    with suppress(UserError):
        if (
            read_distributed_env().is_single_process
            and code not in signals.EXIT_CODES.values()
        ):
            sys.exit(code)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, split where a bucket is full or the device changes."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or tensor.device != bucket[0].device):
            yield bucket
            bucket = []
            size = 0
        bucket.append(tensor)
        size += 4 * tensor.numel()
    if bucket:
        yield bucket

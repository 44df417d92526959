"""The process that works on a queue (`extensions.tools.ui.queue`).

It starts the next entry when a GPU is free, and starts a failed one again after a
pause. Each job is in a separate session, so it goes on when the page or the runner
ends. A small shell is the parent of each job. It starts the job only after the runner
has recorded it, so no job runs twice, and writes the exit code to a file, which a later
runner can read. Without that file the state of the run decides. An entry has ended, and
its GPU is free, when none of its processes lives.

The runner ends when no entry waits or runs. It is started by `Queue.start_runner`, and
in the foreground by `run.py queue run` (`extensions.tools.ui.process`).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from extensions.tools.ui import commands
from extensions.tools.ui import queue as q
from extensions.tools.ui.queue import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Entry,
    Queue,
)
from toolkit.errors import (
    EXIT_DONE,
    EXIT_MISTAKE,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    RunError,
    UserError,
)
from toolkit.files.run_files import utc_now
from toolkit.system.nvidia import ask_nvml
from toolkit.train.lock import boot_id
from toolkit.train.run_index import RunIndex
from toolkit.train.run_reader import RunStatus, read_run

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"

PAUSES = (10.0, 60.0, 300.0)
"""Seconds before each of the retries."""

KILLED = 128 + 9  # SIGKILL, which Windows has not
"""Exit code of the shell if its job was killed."""

LINGER_S = 60.0
"""Seconds that other processes of a job may run after its end. Then they are killed,
because they keep its GPU."""

MOST_WHY = 600
"""Letters of a message that stand at an entry. Its log has all of it."""

_SHELL = (
    'read -r go || exit; trap : TERM INT HUP; "$@" </dev/null; code=$?; '
    'echo $code >"$0.tmp" && mv -f "$0.tmp" "$0"; exit $code'
)
"""Starts the command after a line on standard input, and writes its exit code. `$0` is
the file of the exit code, and the command follows."""


def slots() -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job that may run at the same time: one per GPU, or
    one on the CPU."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return visible.split(",")
    return [str(index) for index in range(len(ask_nvml()[1]))] or [""]


class Runner:
    """Works on a queue until no entry waits or runs.

    Example::

        Runner(Queue(queue_folder("output"))).run()
    """

    def __init__(
        self,
        queue: Queue,
        pauses: Sequence[float] = PAUSES,
        poll_s: float = 1.0,
        linger_s: float = LINGER_S,
    ) -> None:
        self._queue = queue
        self._pauses = tuple(pauses)
        self._poll_s = poll_s
        self._linger_s = linger_s
        self._slots = slots()
        self._runs = RunIndex(queue.folder.parents[1])
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._not_before: dict[str, float] = {}
        self._left: dict[str, float] = {}
        """`_not_before`: id -> when the entry may start again. `_left`: id -> when its
        job was first seen to have ended. Both are in monotonic seconds, because clocks
        jump."""

    def run(self) -> None:
        """Works on the queue. Raises RunError if another runner does."""
        with self._queue.locked():
            pass  # makes the folder
        with (self._queue.folder / "runner.lock").open("a") as file:
            for _ in range(20):  # another process may be asking for the lock's state
                is_mine = q.try_lock(file)
                if is_mine:
                    break
                time.sleep(0.05)
            if not is_mine:
                raise RunError(
                    f"{self._queue.folder}: another runner works on this queue."
                )
            while not self._is_over(file):
                try:
                    self._step()
                    time.sleep(self._poll_s)
                except (RunError, UserError, OSError) as error:
                    # The disk is full, say. Running jobs go on.
                    logger.error(f"{error}. Tried again in {self._pauses[0]:.0f} s.")
                    time.sleep(self._pauses[0])

    def _is_over(self, file: IO[str]) -> bool:
        """Whether the work is done. If it is, the runner's lock is released.

        This happens under the queue's lock. An entry that is added at the same time is
        either seen here, or whoever adds it finds no runner and starts one.
        """
        with self._queue.locked():
            states = [entry.state for entry in self._queue.entries()]
            if RUNNING in states or WAITING in states:
                return False
            file.close()
            return True

    def _step(self) -> None:
        """Ends the entries whose processes have ended, then starts waiting ones."""
        for entry in self._queue.entries():
            if entry.state == RUNNING:
                is_over, code = self._look(entry)
                if is_over:
                    self._end(entry.id, code)
        entries = self._queue.entries()
        busy = [entry.gpu for entry in entries if entry.state == RUNNING]
        due = [entry for entry in entries if entry.not_before <= utc_now()]
        waiting = [entry for entry in due if entry.state == WAITING]
        if any(entry.yields for entry in waiting) and q.trains_elsewhere(
            self._runs.runs(), entries
        ):
            waiting = [entry for entry in waiting if not entry.yields]
        count = max(0, len(self._slots) - len(busy))
        free = [slot for slot in self._slots if slot not in busy][:count]
        for slot, entry in zip(free, waiting, strict=False):
            # Until its pause is over, the GPU is kept for the entry.
            if self._not_before.get(entry.id, 0.0) <= time.monotonic():
                self._start(entry, slot)

    def _look(self, entry: Entry) -> tuple[bool, int | None]:
        """Whether a running entry has ended with all of its processes, and its exit code.
        The code is None if it is unknown."""
        child = self._children.get(entry.id)
        code = child.poll() if child else None
        is_running = code is None if child else q.is_alive(entry)
        if is_running:
            return False, None
        with suppress(OSError, ValueError):
            code = int((self._queue.folder / f"{entry.id}.exit").read_text("ascii"))
        if code is not None and code < 0:  # the shell alone was killed
            code = None
        left = self._queue.processes(entry)
        if left:  # the job goes on, or has left other processes behind
            if code is not None:
                self._kill_after_a_while(entry, left)
            return False, None
        if code is None:  # another process may be running the same run
            states = [run.status for run in q.runs_of(entry)]
            return RunStatus.RUNNING not in states, None
        return True, code

    def _kill_after_a_while(self, entry: Entry, left: list[int]) -> None:
        """Kills the processes of an entry that still run some time after its job has
        ended."""
        now = time.monotonic()
        if now - self._left.setdefault(entry.id, now) < self._linger_s:
            return
        logger.warning(
            f"{entry.id} {entry.name}: its job has ended, and its processes {left} have not: killed"
        )
        # Without the recorded session: only processes that have the mark are killed.
        marked = self._queue.processes(entry.model_copy(update={"pid": 0}))
        q.end(marked, signal.SIGKILL)

    def _end(self, id_: str, code: int | None) -> None:
        """Records how an entry has ended, or puts it back to wait for another start."""
        queue = self._queue
        with queue.locked():
            running = [each for each in queue.entries() if each.state == RUNNING]
            # It may have been asked to stop by now, or was settled before this runner.
            entry = next((each for each in running if each.id == id_), None)
            if entry is None:
                return
            before = dict(zip(map(Path, entry.runs), entry.marks, strict=False))
            runs = [
                run
                for run in q.runs_of(entry)
                if q.mark_of(run.folder) != before.get(run.folder)
            ]
            step = max((run.step for run in runs if run.step is not None), default=None)
            was_killed = code in (None, KILLED)
            is_again = entry.attempts > 1 and step == entry.failed_at and not was_killed
            gets_further = was_killed and (step or 0) > (entry.failed_at or 0)
            attempts = 1 if gets_further else entry.attempts
            is_stopped = any(run.status is RunStatus.STOPPED for run in runs)
            state = FAILED
            why = ""
            if code in (EXIT_SIGINT, EXIT_SIGTERM) or (
                code in (EXIT_DONE, None) and is_stopped
            ):
                state = STOPPED
            elif code == EXIT_DONE:
                state = DONE
            elif code == EXIT_MISTAKE:
                why = self._last_words(id_)
            elif entry.is_stopping:
                state = STOPPED
            elif is_again:
                why = f"failed again at {'the beginning' if step is None else f'step {step}'}"
            elif attempts > (
                len(self._pauses) if entry.retries is None else entry.retries
            ):
                times = f"{attempts} times" if attempts > 1 else "once"
                why = f"{'was killed' if was_killed else 'failed'} {times}"
            else:
                state = WAITING
                why = "was killed" if was_killed else f"exit code {code}"
                pauses = self._pauses[: max(attempts, 1)]
                self._not_before[id_] = time.monotonic() + pauses[-1]
            argv, order = entry.argv, queue.last_order() + 1
            if state == WAITING:
                argv, order = q.without_restart(entry.argv), entry.order
            queue.save(
                entry,
                state=state,
                why=why,
                exit_code=code,
                failed_at=entry.failed_at if step is None else step,
                attempts=attempts,
                ended=utc_now(),
                pid=0,
                is_stopping=False,
                argv=argv,
                order=order,
            )
        self._children.pop(id_, None)
        self._left.pop(id_, None)
        logger.info(f"{id_} {entry.name}: {state}{f', {why}' if why else ''}")

    def _last_words(self, id_: str) -> str:
        """The last message of an entry that was refused: its input, or what the input
        names and is not there, a model say."""
        lines = self._queue.tail(id_, 4096).splitlines()
        messages = [line for line in lines if line.strip() and line[0] != " "]
        return messages[-1][:MOST_WHY] if messages else "refused; the log says why"

    def _refuse(self, entry: Entry, reason: str) -> None:
        """Records why an entry cannot be started. The entries after it are not
        affected."""
        with self._queue.locked():
            self._queue.save(
                self._queue.waiting(entry.id),
                state=FAILED,
                why=reason,
                exit_code=EXIT_MISTAKE,
                ended=utc_now(),
                order=self._queue.last_order() + 1,
            )

    def _start(self, entry: Entry, gpu: str) -> None:
        """Starts an entry, unless it was taken out meanwhile. An entry that cannot be
        started fails."""
        queue = self._queue
        runs = tuple[str, ...]()
        reason = q.why_not_queued(entry.argv, entry.cwd)
        if not reason and entry.argv[0] not in q.queued_tools():
            with suppress(UserError, OSError):  # the start itself reports the mistake
                runs = tuple(q.planned(entry.argv, entry.cwd)["folders"])
        if reason:
            self._refuse(entry, reason)
            return
        for folder in runs:
            # A request to stop that an earlier run did not read would stop this one.
            with suppress(RunError, OSError):
                if read_run(Path(folder)).status is not RunStatus.RUNNING:
                    (Path(folder) / q.CONTROL / "stop").unlink()
        exit_file = queue.folder / f"{entry.id}.exit"
        exit_file.unlink(missing_ok=True)
        environment = {**os.environ, q.MARK: queue.mark(entry.id)}
        if gpu:
            environment[VISIBLE] = gpu
        if VISIBLE not in os.environ:
            # NVML counts in the order of the bus.
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        program = [sys.executable, str(commands.RUN_PY), *entry.argv]
        command = ["sh", "-c", _SHELL, str(exit_file), *program]
        with queue.log(entry.id).open("ab") as log:
            try:
                child = subprocess.Popen(
                    command,
                    cwd=entry.cwd,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.ENOENT, errno.ENOTDIR):
                    raise  # too little memory or too many processes: try again later
                self._refuse(
                    entry, f"cannot be started in {entry.cwd}: {error.strerror}"
                )
                return
        assert child.stdin is not None
        with child.stdin as gate:  # without a line the shell ends at once
            try:
                with queue.locked():
                    entry = queue.waiting(entry.id)
                    self._children[entry.id] = child
                    queue.save(
                        entry,
                        state=RUNNING,
                        attempts=entry.attempts + 1,
                        gpu=gpu,
                        why="",
                        pid=child.pid,
                        pid_start=q.start_of(child.pid),
                        boot=boot_id(),
                        runs=runs,
                        marks=tuple(q.mark_of(Path(folder)) for folder in runs),
                        started=utc_now(),
                        ended="",
                    )
            except UserError:
                return
            gate.write(b"go\n")
        logger.info(
            f"{entry.id} {entry.name}: started{f' on GPU {gpu}' if gpu else ''}"
        )

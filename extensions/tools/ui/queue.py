"""The queue: a folder with one JSON file for each command of `run.py` that is to run, so it survives every restart.

The runner is a process of its own. It starts the next entry when a GPU is free, each in its own session, so the end of
a page or of the runner reaches no job. A small shell stands above each job: it begins only after the runner has
recorded it, so no job runs twice, and leaves the exit code in a file for the runner that comes after. What left none is
judged by the folders of its run. Imports no torch.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from extensions.tools.ui import commands
from toolkit.errors import EXIT_DONE, EXIT_FAILURE, EXIT_MISTAKE, EXIT_SIGINT, EXIT_SIGTERM, RunError, UserError
from toolkit.extension import discover
from toolkit.files.redact import redact_json
from toolkit.files.run_files import STATUS, utc_now
from toolkit.files.writing import (
    CONFIG_SUFFIXES,
    find_config,
    open_regular,
    os_error_as_run_error,
    read_regular,
    write_json,
)
from toolkit.system.nvidia import ask_nvml
from toolkit.train.lock import boot_id
from toolkit.train.run_reader import RunInfo, RunStatus, read_run

try:
    import fcntl
except ImportError:  # Windows: the queue is refused there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

State = Literal["running", "waiting", "done", "stopped", "failed", "damaged"]
RUNNING, WAITING, DONE, STOPPED, FAILED, DAMAGED = State.__args__  # type: ignore[attr-defined]  # typing has no stub of it

CONTROL = "control"
"""The folder of a run's requests."""

NOT_QUEUED = frozenset({"ui", "queue"})
"""Tools that never end, or would wait for themselves."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

PAUSES = (10.0, 60.0, 300.0)
"""Seconds before each of the retries."""

SOON_S = 60.0
"""An attempt that was killed sooner, at the step of the one before it, is not worth another."""

PLAN_S = 600.0
"""A dry run may take so many seconds."""

TAIL_BYTES = 256 * 1024
"""Of a log that is shown."""

MOST_ARGV = 100_000
"""Bytes of a command: Linux starts none with a word of 128 KiB (execve(2)), so the queue would try it for ever."""

_ID = re.compile("[0-9]{6,12}")

_SHELL = (
    'read -r go || exit; trap : TERM INT HUP; "$@" </dev/null; code=$?; '
    'echo $code >"$0.tmp" && mv -f "$0.tmp" "$0"; exit $code'
)
"""Waits for the line that says it is recorded. $0: the file of the exit code, then the command."""


class Entry(BaseModel):
    """One command that waits, runs, or has ended, as its file has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    argv: tuple[str, ...]
    """What follows `run.py`."""

    name: str
    state: State
    order: float = Field(gt=-1e12, lt=1e12)
    """Waiting ones run by it; of those that have ended the largest is the latest."""

    cwd: str
    """Working directory: what paths are relative to."""

    runs: tuple[str, ...] = ()
    """The folders of run files that it owns, known from its start on."""

    marks: tuple[str, ...] = ()
    """What told the state of those before the start: a state that is still there is an earlier run's."""

    gpu: str = ""
    """CUDA_VISIBLE_DEVICES; empty: the environment's."""

    attempts: int = Field(default=0, ge=0)
    """Starts since it was added or retried by hand."""

    failed_at: int | None = None
    """Optimizer step of the last failure."""

    pid: int = 0
    pid_start: str = ""
    """When the process began, in ticks since the machine's start: numbers of processes are used again."""

    boot: str = ""
    """Boot id of the machine."""

    is_stopping: bool = False
    added: str = ""
    started: str = ""
    ended: str = ""
    """For people alone: clocks jump."""

    exit_code: int | None = None
    why: str = ""
    """Why it is not done, in one line."""


def refusal(argv: Sequence[str], cwd: str) -> str:
    """Why a command is none for the queue; empty: it is a job file, or a tool, with flags."""
    if not argv or not all(map(_is_text, argv)):
        return "give a job file or a tool, and its flags, as text."
    if (length := sum(len(word.encode()) for word in argv)) > MOST_ARGV:
        return f"the command has {length} bytes, and {MOST_ARGV} are the most. Put long texts into a file."
    if not os.path.isdir(cwd):
        return f"the working directory {cwd!r} is gone."
    if argv[0] in _tools():
        return ""
    for place in () if argv[0] in NOT_QUEUED or argv[0].startswith("-") else (cwd, os.path.join(cwd, "config")):
        with suppress(UserError, OSError):
            found = find_config(os.path.join(place, os.path.expanduser(argv[0])))
            if found.is_file() and found.suffix.lower() in (*CONFIG_SUFFIXES, ".toml"):
                return ""
    return f"{argv[0]!r} is neither a job file in {cwd} nor one of the tools {', '.join(sorted(_tools()))}."


def _is_text(word: object) -> bool:
    return isinstance(word, str) and "\0" not in word and word.encode("utf-8", "ignore").decode() == word


@cache
def _tools() -> frozenset[str]:
    return frozenset(discover().tools()) - NOT_QUEUED


def planned(argv: Sequence[str], cwd: str) -> dict[str, Any]:
    """The plan of a job, its `folders` absolute: a dry run in a process of its own. Raises UserError with what is wrong
    with it."""
    dry_run = (*_without_restart(argv), "--dry-run", "--json")
    code, out, told = commands.run_py(*dry_run, cwd=cwd, limit_s=PLAN_S)
    if code == commands.LATE:
        raise UserError(f"{argv[0]}: its dry run takes more than {PLAN_S:.0f} s.")
    try:
        plan = json.loads(out)
    except ValueError:
        plan = None
    if code or plan is None:
        raise UserError(told.strip() or f"{argv[0]}: the dry run gave no plan.")
    plans = plan if isinstance(plan, list) else [plan]
    if reason := next(filter(None, map(never_ends, plans)), ""):
        raise UserError(f"{argv[0]}: {reason}")
    folders = [os.path.join(cwd, os.path.expanduser(folder)) for each in plans for folder in each["folders"]]
    return {**plans[0], "folders": folders}


def never_ends(plan: Mapping[str, Any]) -> str:
    """Why a job is none for the queue, by its plan; empty: it is one."""
    types = [process["type"] for process in plan.get("processes", ()) if process["type"] in NOT_QUEUED]
    return f"type {types[0]!r} never ends, and would keep a GPU. Start it from a terminal." if types else ""


def _without_restart(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that goes on with what the given one began."""
    words, kept = iter(argv), []
    for word in words:
        if word == "--restart-from":
            next(words, None)
        elif word != "--restart" and not word.startswith("--restart-from="):
            kept.append(word)
    return tuple(kept)


def ask_run(run: RunInfo, request: str) -> None:
    """Writes a request into the control folder of a run; see `toolkit.train.callbacks.status`."""
    folder = run.folder / CONTROL
    with os_error_as_run_error(folder / request):
        folder.mkdir(exist_ok=True)
        (folder / request).touch()  # empty, and a temporary name beside it would be taken for a request


class Queue:
    """The entries in their order. Every change is made under one lock; reading needs none."""

    def __init__(self, folder: Path) -> None:
        """folder: `<output>/.ui/queue`."""
        self.folder = folder.absolute()
        self._seen: dict[str, tuple[tuple[int, ...], Entry]] = {}

    def add(self, argv: Sequence[str], name: str, cwd: Path | None = None) -> Entry:
        """A new entry at the end, which the runner starts when a GPU is free. Raises UserError for what is no command
        for the queue; whether its settings are right is the caller's to check."""
        where = str((cwd or Path.cwd()).absolute())
        if reason := refusal(argv, where):
            raise UserError(reason)
        if redact_json(list(argv)) != list(argv):
            raise UserError("a secret stands in the command, and the queue's file would keep it. Set it as a variable.")
        with self._locked():
            ids = [int(name[:-5]) for place in (self.folder, self.folder / "trash") for name in _entry_files(place)]
            entry = Entry(
                id=f"{max(ids, default=0) + 1:06d}",
                argv=tuple(argv),
                name=name if _is_text(name) else argv[0],
                state=WAITING,
                order=self._last_order() + 1,
                cwd=where,
                added=utc_now(),
            )
            self._save(entry)
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries: running, then waiting in their order, then those that have ended, the latest first."""
        found = filter(None, (self._read(name[:-5]) for name in _entry_files(self.folder)))
        ranks = {RUNNING: (0, 1), WAITING: (1, 1)}  # state -> group, and which way the order goes in it
        keyed = [(*ranks.get(entry.state, (2, -1)), entry) for entry in found]
        return tuple(entry for *_, entry in sorted(keyed, key=lambda key: (key[0], key[1] * key[2].order, key[2].id)))

    def entry(self, id_: str) -> Entry:
        """One entry. Raises UserError where there is none."""
        found = self._read(id_) if _ID.fullmatch(id_) else None
        if found is None:
            raise UserError(f"the queue has no entry {id_!r}.")
        return found

    def move(self, id_: str, before: str = "") -> None:
        """Puts a waiting entry before another waiting one, or to the end. Raises UserError where one does not."""
        with self._locked():
            entry = self._waiting(id_)
            others = [each for each in self.entries() if each.state == WAITING and each.id != id_]
            place = next((place for place, each in enumerate(others) if each.id == before), len(others))
            if before and place == len(others):
                raise UserError(f"entry {before!r} does not wait.")
            orders = [each.order for each in others] or [entry.order]
            low = orders[place - 1] if place else orders[0] - 2
            high = orders[place] if place < len(others) else orders[-1] + 2
            if low < (middle := (low + high) / 2) < high:
                self._save(entry, order=middle)
                return
            for number, each in enumerate([*others[:place], entry, *others[place:]]):  # no number is left between
                self._save(each, order=float(number))

    def shift(self, id_: str, up: bool) -> None:
        """One place up or down; at the end of the way nothing changes."""
        waiting = [entry.id for entry in self.entries() if entry.state == WAITING]
        if id_ not in waiting:
            raise UserError(f"entry {id_!r} does not wait.")
        place = waiting.index(id_)
        following = waiting[max(0, place - 1) :] if up else waiting[place + 2 :]
        if following[:1] != [id_]:
            self.move(id_, next(iter(following), ""))

    def remove(self, id_: str) -> None:
        """Takes a waiting, ended or damaged entry out: its files go to `trash/`. Raises UserError for a running one."""
        with self._locked():
            if self.entry(id_).state == RUNNING:
                raise UserError(f"entry {id_} runs. Stop it first.")
            self._discard(id_)

    def clear(self) -> None:
        """Takes out all that have ended."""
        with self._locked():
            for entry in self.entries():
                if entry.state in (DONE, STOPPED, FAILED):
                    self._discard(entry.id)

    def stop(self, id_: str) -> None:
        """Asks a running entry to save and end. The second time it is told by a signal, which also ends what does not
        train yet. Raises UserError where it does not run."""
        with self._locked():
            entry = self.entry(id_)
            if entry.state != RUNNING:
                raise UserError(f"entry {id_} does not run.")
            self._save(entry, is_stopping=True)
        training = [run for run in _runs_of(entry) if run.status is RunStatus.RUNNING]
        if training and not entry.is_stopping:
            ask_run(training[-1], "stop")
        elif is_alive(entry):
            with suppress(ProcessLookupError):
                os.killpg(entry.pid, signal.SIGTERM)

    def retry(self, id_: str) -> None:
        """Lets an entry that has ended wait again, at the end. It resumes, unless its mistake kept it from starting."""
        with self._locked():
            entry = self.entry(id_)
            if entry.state not in (DONE, STOPPED, FAILED):
                raise UserError(f"entry {id_} has not ended.")
            argv = entry.argv if entry.exit_code == EXIT_MISTAKE else _without_restart(entry.argv)
            kept = {"id": id_, "argv": argv, "name": entry.name, "cwd": entry.cwd, "added": entry.added}
            self._save(Entry(**kept, state=WAITING, order=self._last_order() + 1))

    def start_runner(self) -> None:
        """Starts the detached process that works on the queue, where there is work and none does."""
        if not any(entry.state in (RUNNING, WAITING) for entry in self.entries()) or self.has_runner():
            return
        command = [sys.executable, str(commands.RUN_PY), "queue", "--output", str(self.folder.parents[1]), "run"]
        try:
            with (self.folder / "runner.log").open("ab") as log:
                null = subprocess.DEVNULL
                subprocess.Popen(command, stdin=null, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:  # a full disk: what waits goes on waiting
            logger.error(f"{self.folder}: the queue is not worked on: {error.strerror}")

    def has_runner(self) -> bool:
        """Whether a runner works on the queue."""
        try:
            with (self.folder / "runner.lock").open("a") as file:
                return not _try_lock(file, fcntl.LOCK_SH)  # two who look at the same time do not see each other
        except OSError:
            return False

    def log(self, id_: str) -> Path:
        """What an entry has printed."""
        return self.folder / f"{id_}.log"

    def tail(self, id_: str, size: int = TAIL_BYTES) -> str:
        """The last whole lines of it, at most so many bytes."""
        try:
            with open_regular(self.log(id_)) as file:
                start = max(0, file.seek(0, os.SEEK_END) - size)
                file.seek(start)
                data = file.read()
        except OSError:
            return ""
        return (data.partition(b"\n")[2] if start else data).decode("utf-8", "replace")

    def _waiting(self, id_: str) -> Entry:
        if (entry := self.entry(id_)).state != WAITING:
            raise UserError(f"entry {id_!r} does not wait.")
        return entry

    def _last_order(self) -> float:
        return max((entry.order for entry in self.entries()), default=0.0)

    def _read(self, id_: str) -> Entry | None:
        """One file; a damaged one as such, None where it has gone."""
        path = self.folder / f"{id_}.json"
        try:
            about = path.stat()
            mark = (about.st_ino, about.st_mtime_ns, about.st_size)
            if (seen := self._seen.get(id_)) and seen[0] == mark:
                return seen[1]
            entry = Entry.model_validate(json.loads(read_regular(path)))
            if entry.id != id_:
                raise ValueError(f"it is the file of entry {entry.id!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            why = " ".join(str(error).split()).partition(" For further information")[0][:200]
            return Entry(id=id_, argv=(), name=id_, state=DAMAGED, order=0, cwd="", why=why)
        self._seen[id_] = mark, entry
        return entry

    def _save(self, entry: Entry, **changes: object) -> Entry:
        entry = entry.model_copy(update=changes)
        write_json(self.folder / f"{entry.id}.json", entry.model_dump())
        return entry

    def _discard(self, id_: str) -> None:
        trash = self.folder / "trash"
        trash.mkdir(exist_ok=True)
        for ending in (".log", ".exit", ".json"):  # the last: until then it is still an entry
            with suppress(FileNotFoundError):
                os.replace(self.folder / f"{id_}{ending}", trash / f"{id_}{ending}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is None:
            raise UserError("the queue needs Linux or macOS.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _entry_files(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if name.endswith(".json") and _ID.fullmatch(name[:-5])]


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ------------------------------------------------------------ processes


def _start_of(pid: int) -> str:
    """When a process began, in ticks since the machine's start; empty: none of that number lives (proc_pid_stat(5))."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if state in b"ZX" else rest[18].decode()


def is_alive(entry: Entry) -> bool:
    """Whether the very process that was recorded lives."""
    return entry.pid > 0 and (entry.boot, entry.pid_start) == (boot_id(), _start_of(entry.pid) or None)


def _runs_of(entry: Entry) -> list[RunInfo]:
    found = []
    for folder in entry.runs:
        with suppress(RunError, OSError, ValueError):
            found.append(read_run(Path(folder)))
    return found


def _mark(folder: Path) -> str:
    """Differs once run.json has been written again."""
    try:
        about = (folder / STATUS).stat()
    except (OSError, ValueError):
        return ""
    return f"{about.st_ino}-{about.st_mtime_ns}"


def slots() -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job that may run at the same time: one per GPU, else one on the CPU."""
    if (visible := os.environ.get(VISIBLE)) is not None:
        return visible.split(",")
    return [str(index) for index in range(len(ask_nvml()[1]))] or [""]


class Runner:
    """Works on a queue until nothing in it waits or runs."""

    def __init__(self, queue: Queue, pauses: Sequence[float] = PAUSES, poll_s: float = 1.0) -> None:
        self._queue, self._pauses, self._poll_s = queue, tuple(pauses), poll_s
        self._slots = slots()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._begun: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        """Id -> when it began, or may be tried again; monotonic, so clocks may jump."""

    def run(self) -> None:
        """Raises RunError where another runner works on the queue."""
        with self._queue._locked():
            pass  # makes the folder
        with (self._queue.folder / "runner.lock").open("a") as file:
            for _ in range(20):  # somebody may be looking whether a runner works
                if is_mine := _try_lock(file, fcntl.LOCK_EX):
                    break
                time.sleep(0.05)
            if not is_mine:
                raise RunError(f"{self._queue.folder}: another runner works on this queue.")
            while not self._is_over(file):
                try:
                    self._step()
                    time.sleep(self._poll_s)
                except (RunError, UserError, OSError) as error:  # a full disk, say: jobs that run go on
                    logger.error(f"{error}. Tried again in {self._pauses[0]:.0f} s.")
                    time.sleep(self._pauses[0])

    def _is_over(self, file: IO[str]) -> bool:
        """Gives the lock back while nobody can add, so what is added either is seen here or finds no runner."""
        with self._queue._locked():
            if any(entry.state in (RUNNING, WAITING) for entry in self._queue.entries()):
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
            return True

    def _step(self) -> None:
        """Looks at what runs, then starts what can be started."""
        for entry in self._queue.entries():
            if entry.state == RUNNING:
                is_over, code = self._look(entry)
                if is_over:
                    self._end(entry.id, code)
        entries = self._queue.entries()
        busy = [entry.gpu for entry in entries if entry.state == RUNNING]
        waiting = [entry for entry in entries if entry.state == WAITING]
        free = [slot for slot in self._slots if slot not in busy][: max(0, len(self._slots) - len(busy))]
        for slot, entry in zip(free, waiting, strict=False):
            if self._not_before.get(entry.id, 0.0) <= time.monotonic():  # else the GPU is kept for it
                self._start(entry, slot)

    def _look(self, entry: Entry) -> tuple[bool, int | None]:
        """Whether a running entry has ended, and its exit code where that is known."""
        child = self._children.get(entry.id)
        code = child.poll() if child else None
        if (code is None) if child else is_alive(entry):
            return False, None
        with suppress(OSError, ValueError):
            code = int((self._queue.folder / f"{entry.id}.exit").read_text("ascii"))
        if code is None or code < 0:  # the shell alone was killed: its job may go on
            return not any(run.status is RunStatus.RUNNING for run in _runs_of(entry)), None
        return True, code

    def _end(self, id_: str, code: int | None) -> None:
        """Records how an entry ended, or lets it wait for another attempt."""
        queue, lasted = self._queue, time.monotonic() - self._begun.pop(id_, -math.inf)
        with queue._locked():
            entry = queue.entry(id_)  # it may have been asked to stop by now
            before = dict(zip(map(Path, entry.runs), entry.marks, strict=False))
            runs = [run for run in _runs_of(entry) if _mark(run.folder) != before.get(run.folder)]
            step = max((run.step for run in runs if run.step is not None), default=None)
            is_again = entry.attempts > 1 and step == entry.failed_at and (code == EXIT_FAILURE or lasted < SOON_S)
            is_stopped = any(run.status is RunStatus.STOPPED for run in runs)
            state, why = FAILED, ""
            if code in (EXIT_SIGINT, EXIT_SIGTERM) or (code in (EXIT_DONE, None) and is_stopped):
                state = STOPPED
            elif code == EXIT_DONE:
                state = DONE
            elif code == EXIT_MISTAKE:
                why = "a mistake in the input"
            elif entry.is_stopping:
                state = STOPPED
            elif is_again:
                why = f"failed again at {'the beginning' if step is None else f'step {step}'}"
            elif entry.attempts > len(self._pauses):
                why = f"failed {entry.attempts} times"
            else:
                state, why = WAITING, "was killed" if code is None else f"exit code {code}"
                self._not_before[id_] = time.monotonic() + self._pauses[max(entry.attempts, 1) - 1]
            changes: dict[str, Any] = {"state": state, "why": why, "exit_code": code, "failed_at": step}
            changes |= {"ended": utc_now(), "pid": 0, "is_stopping": False}
            if state == WAITING:
                changes["argv"] = _without_restart(entry.argv)
            else:
                changes["order"] = queue._last_order() + 1
            queue._save(entry, **changes)
        self._children.pop(id_, None)
        logger.info(f"{id_} {entry.name}: {state}{f', {why}' if why else ''}")

    def _refuse(self, entry: Entry, reason: str) -> None:
        """Records that an entry cannot be started, and why: those behind it go on."""
        with self._queue._locked():
            refused = {"state": FAILED, "why": reason, "exit_code": EXIT_MISTAKE, "ended": utc_now()}
            self._queue._save(self._queue._waiting(entry.id), **refused, order=self._queue._last_order() + 1)

    def _start(self, entry: Entry, gpu: str) -> None:
        """Starts an entry, unless it was taken out meanwhile; one that cannot be started has failed."""
        queue, runs = self._queue, tuple[str, ...]()
        reason = refusal(entry.argv, entry.cwd)
        if not reason and entry.argv[0] not in _tools():
            with suppress(UserError, OSError):  # what is wrong with it, its start will tell, with its exit code
                runs = tuple(planned(entry.argv, entry.cwd)["folders"])
        if reason:
            self._refuse(entry, reason)
            return
        for folder in runs:  # a stop that came too late for an earlier run would stop this one
            with suppress(RunError, OSError):
                if read_run(Path(folder)).status is not RunStatus.RUNNING:
                    (Path(folder) / CONTROL / "stop").unlink()
        exit_file = queue.folder / f"{entry.id}.exit"
        exit_file.unlink(missing_ok=True)
        environment = {**os.environ, VISIBLE: gpu} if gpu else dict(os.environ)
        if VISIBLE not in os.environ:  # the numbers are then NVML's, which are those of the bus
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        command = ["sh", "-c", _SHELL, str(exit_file), sys.executable, str(commands.RUN_PY), *entry.argv]
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
                    raise  # too little memory, too many processes: it will be possible later
                self._refuse(entry, f"cannot be started in {entry.cwd}: {error.strerror}")
                return
        assert child.stdin is not None
        with child.stdin as gate:  # closed without a line it ends at once
            try:
                with queue._locked():
                    entry = queue._waiting(entry.id)
                    changes: dict[str, Any] = {"state": RUNNING, "attempts": entry.attempts + 1, "gpu": gpu, "why": ""}
                    changes |= {"pid": child.pid, "pid_start": _start_of(child.pid), "boot": boot_id()}
                    changes |= {"runs": runs, "marks": tuple(_mark(Path(folder)) for folder in runs)}
                    self._children[entry.id] = child
                    queue._save(entry, **changes, started=utc_now(), ended="")
            except UserError:
                return
            self._begun[entry.id] = time.monotonic()
            gate.write(b"go\n")
        logger.info(f"{entry.id} {entry.name}: started{f' on GPU {gpu}' if gpu else ''}")

"""The queue: a folder with one JSON file for each command of `run.py` that is to run,
so it survives every restart.

A process of its own works on it (`extensions.tools.ui.runner`). Imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from extensions.tools.ui import commands
from toolkit.errors import EXIT_MISTAKE, RunError, UserError
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

PLAN_S = 600.0
"""A dry run may take so many seconds."""

TAIL_BYTES = 256 * 1024
"""Length of the end of a log that is shown."""

MOST_ARGV = 100_000
"""Bytes of a command: Linux starts none with a word of 128 KiB (execve(2)), so the
queue would try it for ever."""

MARK = "ATELIER_QUEUE_ENTRY"
"""Variable in the environment of an entry's processes."""

_ID = re.compile("[0-9]{6,12}")


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
    """What told the state of those before the start: a state that is still there is an
    earlier run's."""

    gpu: str = ""
    """CUDA_VISIBLE_DEVICES; empty: the environment's."""

    attempts: int = Field(default=0, ge=0)
    """Starts since it was added or retried by hand."""

    failed_at: int | None = None
    """Optimizer step of the last failure."""

    pid: int = 0
    pid_start: str = ""
    """When the process began, in ticks since the machine's start: numbers of processes
    are used again."""

    boot: str = ""
    """Boot id of the machine."""

    yields: bool = False
    """It waits while a run of the folder trains that the queue did not start: both
    would need the GPU."""

    is_stopping: bool = False
    added: str = ""
    started: str = ""
    ended: str = ""
    """Times are for people only: clocks jump."""

    exit_code: int | None = None
    why: str = ""
    """Why it is not done, in one line."""


def _has_job(folder: str, name: str) -> bool:
    """Whether a folder has the job file that a word of a command names."""
    with suppress(UserError, OSError):
        file = find_config(os.path.join(folder, os.path.expanduser(name)))
        return file.is_file() and file.suffix.lower() in (*CONFIG_SUFFIXES, ".toml")
    return False


def why_not_queued(argv: Sequence[str], cwd: str) -> str:
    """Why a command is none for the queue; empty: it is a job file, or a tool, with
    flags."""
    if not argv or not all(map(_is_text, argv)):
        return "give a job file or a tool, and its flags, as text."
    length = sum(len(word.encode()) for word in argv)
    if length > MOST_ARGV:
        return f"the command has {length} bytes, and {MOST_ARGV} are the most. Put long texts into a file."
    if not os.path.isdir(cwd):
        return f"the working directory {cwd!r} is gone."
    if argv[0] in queued_tools():
        return ""
    may_be_a_file = argv[0] not in NOT_QUEUED and not argv[0].startswith("-")
    if may_be_a_file and any(
        _has_job(place, argv[0]) for place in (cwd, os.path.join(cwd, "config"))
    ):
        return ""
    return f"{argv[0]!r} is neither a job file in {cwd} nor one of the tools {', '.join(sorted(queued_tools()))}."


def _is_text(word: object) -> bool:
    return (
        isinstance(word, str)
        and "\0" not in word
        and word.encode("utf-8", "ignore").decode() == word
    )


@cache
def queued_tools() -> frozenset[str]:
    return frozenset(discover().tools()) - NOT_QUEUED


def planned(argv: Sequence[str], cwd: str) -> dict[str, Any]:
    """The plan of a job, its `folders` absolute: a dry run in a process of its own.
    Raises UserError with what is wrong with it."""
    dry_run = (*without_restart(argv), "--dry-run", "--json")
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
    reason = next(filter(None, map(never_ends, plans)), "")
    if reason:
        raise UserError(f"{argv[0]}: {reason}")
    folders = []
    for each in plans:
        for folder in each["folders"]:
            folders.append(os.path.join(cwd, os.path.expanduser(folder)))
    return {**plans[0], "folders": folders}


def never_ends(plan: Mapping[str, Any]) -> str:
    """Why a job is none for the queue, by its plan; empty: it is one."""
    types = []
    for process in plan.get("processes", ()):
        if process["type"] in NOT_QUEUED:
            types.append(process["type"])
    if types:
        return f"type {types[0]!r} never ends, and would keep a GPU. Start it from a terminal."
    return ""


def without_restart(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that goes on with what the given one began."""
    words = iter(argv)
    kept = []
    for word in words:
        if word == "--restart-from":
            next(words, None)
        elif word != "--restart" and not word.startswith("--restart-from="):
            kept.append(word)
    return tuple(kept)


def ask_run(run: RunInfo, request: str) -> None:
    """Writes a request into the control folder of a run; see
    `toolkit.train.callbacks.status`."""
    folder = run.folder / CONTROL
    with os_error_as_run_error(folder / request):
        folder.mkdir(exist_ok=True)
        (
            folder / request
        ).touch()  # empty, and a temporary name beside it would be taken for a request


class Queue:
    """The entries in their order. Every change is made under one lock; reading needs
    none."""

    def __init__(self, folder: Path) -> None:
        """folder: `<output>/.ui/queue`."""
        self.folder = folder.absolute()
        self._seen: dict[str, tuple[tuple[int, ...], Entry]] = {}

    def add(
        self,
        argv: Sequence[str],
        name: str,
        cwd: Path | None = None,
        unless: Collection[State] = (),
        yields: bool = False,
    ) -> Entry:
        """A new entry at the end, started by the runner when a GPU is free. Raises
        UserError for what is not a command for the queue; whether its settings are
        right is the caller's to check.

        unless: an entry of the same command in one of these states is returned instead,
        as for a button that was pressed twice. yields: as of `Entry`."""
        where = str((cwd or Path.cwd()).absolute())
        reason = why_not_queued(argv, where)
        if reason:
            raise UserError(reason)
        if redact_json(list(argv)) != list(argv):
            raise UserError(
                "a secret stands in the command, and the queue's file would keep it. Set it as a variable."
            )
        with self.locked():
            for entry in self.entries():
                if entry.state in unless and (entry.argv, entry.cwd) == (
                    tuple(argv),
                    where,
                ):
                    return entry
            ids = [
                int(name[:-5])
                for place in (self.folder, self.folder / "trash")
                for name in _entry_files(place)
            ]
            entry = Entry(
                id=f"{max(ids, default=0) + 1:06d}",
                argv=tuple(argv),
                name=name if _is_text(name) else argv[0],
                state=WAITING,
                order=self.last_order() + 1,
                cwd=where,
                added=utc_now(),
                yields=yields,
            )
            self.save(entry)
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries: running, then waiting in their order, then those that have
        ended, the latest first."""
        found = filter(
            None, (self._read(name[:-5]) for name in _entry_files(self.folder))
        )
        ranks = {
            RUNNING: (0, 1),
            WAITING: (1, 1),
        }  # state -> group, and which way the order goes in it
        keyed = [(*ranks.get(entry.state, (2, -1)), entry) for entry in found]
        return tuple(
            entry
            for *_, entry in sorted(
                keyed, key=lambda key: (key[0], key[1] * key[2].order, key[2].id)
            )
        )

    def entry(self, id_: str) -> Entry:
        """One entry. Raises UserError where there is none."""
        found = self._read(id_) if _ID.fullmatch(id_) else None
        if found is None:
            raise UserError(f"the queue has no entry {id_!r}.")
        return found

    def move(self, id_: str, before: str = "") -> None:
        """Puts a waiting entry before another waiting one, or to the end. Raises
        UserError where one does not."""
        with self.locked():
            waiting = {}
            for entry in self.entries():
                if entry.state == WAITING:
                    waiting[entry.id] = entry
            others = [each for each in waiting if each != id_]
            for each, known in ((id_, waiting), (before, ("", *others))):
                if each not in known:
                    raise UserError(f"entry {each!r} does not wait.")
            others.insert(others.index(before) if before else len(others), id_)
            first = min(entry.order for entry in waiting.values())
            for order, each in enumerate(others):
                if waiting[each].order != first + order:
                    self.save(waiting[each], order=first + order)

    def shift(self, id_: str, up: bool) -> None:
        """One place up or down; at the end of the way nothing changes."""
        waiting = [entry.id for entry in self.entries() if entry.state == WAITING]
        if id_ in waiting:
            place = waiting.index(id_) + (-1 if up else 1)
            waiting.remove(id_)
            self.move(id_, next(iter(waiting[max(0, place) :]), ""))
        else:
            self.waiting(id_)

    def remove(self, id_: str) -> None:
        """Takes a waiting, ended or damaged entry out: its files go to `trash/`. Raises
        UserError for a running one."""
        with self.locked():
            if self.entry(id_).state == RUNNING:
                raise UserError(f"entry {id_} runs. Stop it first.")
            self._discard(id_)

    def clear(self) -> None:
        """Takes out all that have ended."""
        with self.locked():
            for entry in self.entries():
                if entry.state in (DONE, STOPPED, FAILED):
                    self._discard(entry.id)

    def stop(self, id_: str) -> None:
        """Asks a running entry to save and end. The second time it is told by a signal,
        which also ends what does not train yet. Raises UserError where it does not
        run."""
        with self.locked():
            entry = self.entry(id_)
            if entry.state != RUNNING:
                raise UserError(f"entry {id_} does not run.")
            self.save(entry, is_stopping=True)
        training = [run for run in runs_of(entry) if run.status is RunStatus.RUNNING]
        if training and not entry.is_stopping:
            ask_run(training[-1], "stop")
        else:
            end(self.processes(entry), signal.SIGTERM)

    def retry(self, id_: str) -> None:
        """Lets an entry that has ended wait again, at the end. It resumes, unless its
        mistake kept it from starting."""
        with self.locked():
            entry = self.entry(id_)
            if entry.state not in (DONE, STOPPED, FAILED):
                raise UserError(f"entry {id_} has not ended.")
            if entry.exit_code == EXIT_MISTAKE:
                argv = entry.argv
            else:
                argv = without_restart(entry.argv)
            kept = {
                "id": id_,
                "argv": argv,
                "name": entry.name,
                "cwd": entry.cwd,
                "added": entry.added,
                "yields": entry.yields,
            }
            self.save(Entry(**kept, state=WAITING, order=self.last_order() + 1))

    def start_runner(self) -> None:
        """Starts the detached process that works on the queue, where there is work and
        none does."""
        if (
            not any(entry.state in (RUNNING, WAITING) for entry in self.entries())
            or self.has_runner()
        ):
            return
        command = [
            sys.executable,
            str(commands.RUN_PY),
            "queue",
            "--output",
            str(self.folder.parents[1]),
            "run",
        ]
        try:
            with (self.folder / "runner.log").open("ab") as log:
                null = subprocess.DEVNULL
                subprocess.Popen(
                    command, stdin=null, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:  # a full disk: what waits goes on waiting
            logger.error(f"{self.folder}: the queue is not worked on: {error.strerror}")

    def has_runner(self) -> bool:
        """Whether a runner works on the queue."""
        try:
            with (self.folder / "runner.lock").open("a") as file:
                return not try_lock(
                    file, shared=True
                )  # two who look at the same time do not see each other
        except OSError:
            return False

    def mark(self, id_: str) -> str:
        """What the environment of an entry's processes has as MARK."""
        return str(self.folder / id_)

    def processes(self, entry: Entry) -> list[int]:
        """The processes of an entry that live: the shell, the job, and what these have
        started, also where the shell is gone, or they have left its session."""
        return _living(entry, self.mark(entry.id))

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

    def waiting(self, id_: str) -> Entry:
        entry = self.entry(id_)
        if entry.state != WAITING:
            raise UserError(f"entry {id_!r} does not wait.")
        return entry

    def last_order(self) -> float:
        return max((entry.order for entry in self.entries()), default=0.0)

    def _read(self, id_: str) -> Entry | None:
        """One file; a damaged one as such, None where it has gone."""
        path = self.folder / f"{id_}.json"
        try:
            about = path.stat()
            mark = (about.st_ino, about.st_mtime_ns, about.st_size)
            seen = self._seen.get(id_)
            if seen and seen[0] == mark:
                return seen[1]
            entry = Entry.model_validate(json.loads(read_regular(path)))
            if entry.id != id_:
                raise ValueError(f"it is the file of entry {entry.id!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            why = " ".join(str(error).split()).partition(" For further information")[0][
                :200
            ]
            return Entry(
                id=id_, argv=(), name=id_, state=DAMAGED, order=0, cwd="", why=why
            )
        self._seen[id_] = mark, entry
        return entry

    def save(self, entry: Entry, **changes: object) -> Entry:
        entry = entry.model_copy(update=changes)
        write_json(self.folder / f"{entry.id}.json", entry.model_dump())
        return entry

    def _discard(self, id_: str) -> None:
        trash = self.folder / "trash"
        trash.mkdir(exist_ok=True)
        for ending in (
            ".log",
            ".exit",
            ".json",
        ):  # the last: until then it is still an entry
            with suppress(FileNotFoundError):
                os.replace(self.folder / f"{id_}{ending}", trash / f"{id_}{ending}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        if fcntl is None:
            raise UserError("the queue needs Linux or macOS.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _entry_files(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return [
        name for name in names if name.endswith(".json") and _ID.fullmatch(name[:-5])
    ]


def try_lock(file: IO[str], shared: bool = False) -> bool:
    """Locks a file until it is closed, unless another process has it locked."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ------------------------------------------------------------ processes


def start_of(pid: int) -> str:
    """When a process began, in ticks since the machine's start; empty: none of that
    number lives (proc_pid_stat(5))."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        )
    except OSError:
        return ""
    return "" if state in b"ZX" else rest[18].decode()


def is_alive(entry: Entry) -> bool:
    """Whether the very process that was recorded lives."""
    return entry.pid > 0 and (entry.boot, entry.pid_start) == (
        boot_id(),
        start_of(entry.pid) or None,
    )


def _living(entry: Entry, mark: str) -> list[int]:
    """The processes of the session that was recorded, and those that carry the mark in
    their environment."""
    if not os.path.isdir(
        "/proc/self"
    ):  # no Linux: the group is all that can be asked for
        with suppress(OSError):
            if entry.pid:
                os.killpg(entry.pid, 0)
                return [-entry.pid]
        return []
    is_ours = entry.boot == boot_id() and start_of(entry.pid) in ("", entry.pid_start)
    marked = f"{MARK}={mark}".encode("utf-8", "surrogateescape")
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _is_of(pid, is_ours * entry.pid, marked)
    ]


def _is_of(pid: int, session: int, marked: bytes) -> bool:
    """Whether a process lives and is in the session (0: in none of ours), or has the
    mark."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if stat[0] in b"ZX":
            return False
        return int(stat[3]) == session != 0 or marked in Path(
            f"/proc/{pid}/environ"
        ).read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return False


def end(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes; a negative number means a group."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def runs_of(entry: Entry) -> list[RunInfo]:
    """The runs of an entry that can be read."""
    found = []
    for folder in entry.runs:
        with suppress(RunError, OSError, ValueError):
            found.append(read_run(Path(folder)))
    return found


def trains_elsewhere(
    runs: Iterable[RunInfo], entries: Iterable[Entry]
) -> list[RunInfo]:
    """The runs that train and that no running entry has started."""
    owned = set()
    for entry in entries:
        if entry.state == RUNNING:
            for folder in entry.runs:
                owned.add(str(Path(folder).resolve()))
    return [
        run
        for run in runs
        if run.status is RunStatus.RUNNING and str(run.folder.resolve()) not in owned
    ]


def mark_of(folder: Path) -> str:
    """Differs once run.json has been written again."""
    try:
        about = (folder / STATUS).stat()
    except (OSError, ValueError):
        return ""
    return f"{about.st_ino}-{about.st_mtime_ns}"

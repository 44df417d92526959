"""The job queue: a folder with one JSON file per command of `run.py`.

`Queue` reads and changes the entries under a file lock, so the page, `run.py queue` and
the runner can work on it at the same time, and it survives every restart. An entry says
what is to be run, in which state it is, and which processes and runs belong to it.

Commands are not started here, except for the runner itself: that is a separate process
(`extensions.tools.ui.runner`). The views `queue`, `after`, `new` and `tools` add and
change entries, `extensions.tools.ui.process` does so from a terminal, and
`extensions.tools.ui.machine` counts them. Imports no torch.
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
from toolkit.errors import EXIT_DONE, EXIT_MISTAKE, RunError, UserError
from toolkit.extension import discover
from toolkit.files.redact import REDACTED, redact_json, redact_text
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

State = Literal[
    "running", "waiting", "done", "stopped", "failed", "damaged", "interrupted"
]
RUNNING, WAITING, DONE, STOPPED, FAILED, DAMAGED, INTERRUPTED = State.__args__  # type: ignore[attr-defined]  # typing has no stub of it

CONTROL = "control"
"""Folder for requests, in the folder of a run."""

NOT_QUEUED = frozenset({"ui", "queue", "runs", "datasets", "jobs"})
"""Tools that are refused: they never end, would wait for themselves, or would change
what waits behind them."""

PLAN_S = 600.0
"""Seconds that a dry run may take."""

TAIL_BYTES = 256 * 1024
"""Bytes at the end of a log that are shown."""

MOST_ARGV = 100_000
"""Maximum size of a command in bytes. Linux does not start a command with a word of
128 KiB (execve(2)), so the queue would try it for ever."""

MARK = "ATELIER_QUEUE_ENTRY"
"""Environment variable that marks the processes of an entry."""

_ID = re.compile("[0-9]{6,12}")

_HOOK = re.compile(r"(?<=\burl[=:])\s*(?!\$\{)[^\s,}]+")
"""The value of a key `url` within a word."""


class Entry(BaseModel):
    """One command that waits, runs, or has ended: the contents of its file.

    >>> argv = ("config/cat.yaml",)
    >>> Entry(id="000001", argv=argv, name="cat", state=WAITING, order=1, cwd="/").runs
    ()
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    argv: tuple[str, ...]
    """The words after `run.py`."""

    name: str
    state: State
    order: float = Field(gt=-1e12, lt=1e12)
    """Waiting entries start in this order. Of the ended ones, the latest has the
    largest."""

    cwd: str
    """Working directory, to which paths are relative."""

    runs: tuple[str, ...] = ()
    """Folders of the runs that it writes. They are known once it has started."""

    marks: tuple[str, ...] = ()
    """Result of `mark_of` for each of them before the start. A folder that still has its
    mark shows the state of an earlier run."""

    gpu: str = ""
    """CUDA_VISIBLE_DEVICES of its processes. Empty: as in the environment."""

    attempts: int = Field(default=0, ge=0)
    """Number of starts since it was added or retried by hand."""

    retries: int | None = Field(default=None, ge=0)
    """How often it is started again after a failure. None: as often as the runner
    does."""

    not_before: str = ""
    """Time before which it is not started, as `utc_now` writes it. Empty: none."""

    failed_at: int | None = None
    """Optimizer step of the last failure."""

    pid: int = 0
    pid_start: str = ""
    """Start of the process, in ticks since the machine's start. With it a process is
    recognized, because process numbers are used again."""

    boot: str = ""
    """Boot id of the machine."""

    yields: bool = False
    """Whether it waits while a run trains that the queue did not start. Both would need
    the GPU."""

    is_stopping: bool = False
    added: str = ""
    started: str = ""
    ended: str = ""
    """The three times are only shown: nothing is decided by them, as clocks jump."""

    exit_code: int | None = None
    why: str = ""
    """Why the entry has failed or waits again, in one line."""

    def shown(self) -> list[str]:
        """The words of the command for people, without addresses of webhooks."""
        return [
            redact_text(_HOOK.sub(REDACTED, word) if "callbacks" in word else word)
            for word in self.argv
        ]


def _has_job(folder: str, name: str) -> bool:
    """Whether a folder contains the job file that a command names."""
    with suppress(UserError, OSError):
        file = find_config(os.path.join(folder, os.path.expanduser(name)))
        return file.is_file() and file.suffix.lower() in (*CONFIG_SUFFIXES, ".toml")
    return False


def why_not_queued(argv: Sequence[str], cwd: str) -> str:
    """Why a command cannot be queued. Empty: it names a job file or a tool, with
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
    if argv[0] not in NOT_QUEUED and not argv[0].startswith("-"):
        for folder in (cwd, os.path.join(cwd, "config")):
            if _has_job(folder, argv[0]):
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
    """Uids of the tools that can be queued."""
    return frozenset(discover().tools()) - NOT_QUEUED


def planned(argv: Sequence[str], cwd: str) -> dict[str, Any]:
    """The plan of a job, from a dry run in a separate process.

    Its `folders` are absolute paths, and include those of all jobs if the file contains
    several. Raises UserError with the mistakes of the job.

    Example::

        folders = planned(["config/cat.yaml"], cwd)["folders"]
    """
    dry_run = (*without_restart(argv), "--dry-run", "--json")
    code, stdout, stderr = commands.run_py(*dry_run, cwd=cwd, limit_s=PLAN_S)
    if code == commands.LATE:
        raise UserError(f"{argv[0]}: its dry run takes more than {PLAN_S:.0f} s.")
    try:
        plan = json.loads(stdout)
    except ValueError:
        plan = None
    if code or plan is None:
        raise UserError(stderr.strip() or f"{argv[0]}: the dry run gave no plan.")
    plans = plan if isinstance(plan, list) else [plan]
    reason = next(filter(None, map(never_ends, plans)), "")
    if reason:
        raise UserError(f"{argv[0]}: {reason}")
    folders = [
        os.path.join(cwd, os.path.expanduser(folder))
        for job_plan in plans
        for folder in job_plan["folders"]
    ]
    return {**plans[0], "folders": folders}


def never_ends(plan: Mapping[str, Any]) -> str:
    """Why a job cannot be queued, by its plan. Empty: it can be."""
    for process in plan.get("processes", ()):
        if process["type"] in NOT_QUEUED:
            return f"type {process['type']!r} never ends, and would keep a GPU. Start it from a terminal."
    return ""


def without_restart(argv: Sequence[str]) -> tuple[str, ...]:
    """The command without `--restart` and `--restart-from`: it resumes what the given one
    has started.

    >>> without_restart(["cat.yaml", "--restart-from", "200", "--name=cat"])
    ('cat.yaml', '--name=cat')
    """
    words = iter(argv)
    command = []
    for word in words:
        if word == "--restart-from":
            next(words, None)
        elif word != "--restart" and not word.startswith("--restart-from="):
            command.append(word)
    return tuple(command)


def ask_run(run: RunInfo, request: str) -> None:
    """Writes a request into the control folder of a run, which then reads it
    (`toolkit.train.callbacks.status`).

    request: `stop`, `save_now` or `sample_now`.
    """
    file = run.folder / CONTROL / request
    with os_error_as_run_error(file):
        file.parent.mkdir(exist_ok=True)
        # No temporary file: the run would read it as another request.
        file.touch()


class Queue:
    """The entries of a queue in their order.

    Every change is made under one lock. Reading needs none.

    Example::

        queue = Queue(queue_folder("output"))
        entry = queue.add(["config/cat.yaml"], "cat")
        queue.start_runner()
        print(queue.entry(entry.id).state, queue.tail(entry.id))
    """

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
        not_before: str = "",
        retries: int | None = None,
    ) -> Entry:
        """Adds an entry at the end. The runner starts it when a GPU is free.

        argv: the words after `run.py`. The caller checks whether its settings are right.
        name: name of the entry for people.
        cwd: working directory. None: the one of this process.
        unless: if an entry of the same command is in one of these states, it is returned
        and none is added. So a button that is pressed twice adds one entry.
        yields, not_before, retries: as in `Entry`.

        Raises UserError for a command that cannot be queued.
        """
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
                is_same = entry.argv == tuple(argv) and entry.cwd == where
                if is_same and entry.state in unless:
                    return entry
            files = _entry_files(self.folder) + _entry_files(self.folder / "trash")
            ids = [int(file[:-5]) for file in files]
            entry = Entry(
                id=f"{max(ids, default=0) + 1:06d}",
                argv=tuple(argv),
                name=name if _is_text(name) else argv[0],
                state=WAITING,
                order=self.last_order() + 1,
                cwd=where,
                added=utc_now(),
                yields=yields,
                not_before=not_before,
                retries=retries,
            )
            self.save(entry)
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries: the running ones, then the waiting ones in their order, then the
        ended ones, the latest first."""
        entries = (self._read(name[:-5]) for name in _entry_files(self.folder))
        return tuple(sorted(filter(None, entries), key=_sort_key))

    def entry(self, id_: str) -> Entry:
        """One entry. Raises UserError for an unknown id."""
        entry = self._read(id_) if _ID.fullmatch(id_) else None
        if entry is None:
            near = id_.zfill(6)
            is_there = _ID.fullmatch(near) and self._read(near)
            remedy = (
                f"Did you mean {near!r}?" if is_there else "'queue list' has the ids."
            )
            raise UserError(f"the queue has no entry {id_!r}. {remedy}")
        return entry

    def now(self) -> tuple[Entry, ...]:
        """All entries as they are now (`as_it_is`), in the order of `entries`."""
        return tuple(map(self.as_it_is, self.entries()))

    def as_it_is(self, entry: Entry) -> Entry:
        """The entry, in the state `interrupted` if its file says that it runs, and no
        runner works on the queue and none of its processes lives: its machine was lost,
        say. No file has this state, and the next runner goes on with the entry."""
        is_over = (
            entry.state == RUNNING
            and not self.has_runner()
            and not self.processes(entry)
            and not any(run.status is RunStatus.RUNNING for run in runs_of(entry))
        )
        return entry.model_copy(update={"state": INTERRUPTED}) if is_over else entry

    def move(self, id_: str, before: str = "") -> None:
        """Moves a waiting entry before another waiting one (empty: to the end). Raises
        UserError if one of both does not wait."""
        with self.locked():
            waiting = {
                entry.id: entry for entry in self.entries() if entry.state == WAITING
            }
            others = [waiting_id for waiting_id in waiting if waiting_id != id_]
            for waiting_id, known in ((id_, waiting), (before, ("", *others))):
                if waiting_id not in known:
                    raise UserError(f"entry {waiting_id!r} does not wait.")
            others.insert(others.index(before) if before else len(others), id_)
            first = min(entry.order for entry in waiting.values())
            for order, waiting_id in enumerate(others):
                if waiting[waiting_id].order != first + order:
                    self.save(waiting[waiting_id], order=first + order)

    def shift(self, id_: str, up: bool) -> None:
        """Moves a waiting entry one place up or down, unless it is the first or last
        one."""
        waiting = [entry.id for entry in self.entries() if entry.state == WAITING]
        if id_ in waiting:
            place = waiting.index(id_) + (-1 if up else 1)
            waiting.remove(id_)
            self.move(id_, next(iter(waiting[max(0, place) :]), ""))
        else:
            self.waiting(id_)

    def remove(self, id_: str) -> None:
        """Takes out a waiting, ended, interrupted or damaged entry: its files go to
        `trash/`. Raises UserError for a running entry."""
        with self.locked():
            if self.as_it_is(self.entry(id_)).state == RUNNING:
                raise UserError(f"entry {id_} runs. Stop it first.")
            self._discard(id_)

    def clear(self) -> None:
        """Takes out all entries that have ended."""
        with self.locked():
            for entry in self.entries():
                if entry.state in (DONE, STOPPED, FAILED):
                    self._discard(entry.id)

    def stop(self, id_: str) -> None:
        """Asks a running entry to save and end.

        The second call sends a signal, and so does the first one before the training has
        begun. An interrupted entry has ended with this: no runner goes on with it. Raises
        UserError if the entry does not run.
        """
        with self.locked():
            entry = self.as_it_is(self.entry(id_))
            if entry.state == INTERRUPTED:
                self._settle(entry)
                return
            if entry.state != RUNNING:
                raise UserError(f"entry {id_} does not run.")
            self.save(entry, is_stopping=True)
        training = [run for run in runs_of(entry) if run.status is RunStatus.RUNNING]
        if training and not entry.is_stopping:
            ask_run(training[-1], "stop")
        else:
            end(self.processes(entry), signal.SIGTERM)

    def _settle(self, entry: Entry) -> None:
        """Records the end of an interrupted entry, as far as its exit code is known."""
        code = None
        with suppress(OSError, ValueError):
            code = int((self.folder / f"{entry.id}.exit").read_text("ascii"))
        stopped = any(run.status is RunStatus.STOPPED for run in runs_of(entry))
        self.save(
            entry,
            state=DONE if code == EXIT_DONE and not stopped else STOPPED,
            exit_code=code,
            why="" if code is not None else "was interrupted",
            ended=utc_now(),
            pid=0,
            is_stopping=False,
            order=self.last_order() + 1,
        )

    def retry(self, id_: str) -> None:
        """Puts an ended entry back at the end of the waiting ones. Its run resumes,
        unless a mistake in the job kept it from starting."""
        with self.locked():
            entry = self.as_it_is(self.entry(id_))
            if entry.state not in (DONE, STOPPED, FAILED, INTERRUPTED):
                raise UserError(f"entry {id_} has not ended.")
            is_mistake = entry.exit_code == EXIT_MISTAKE
            fresh = Entry(
                id=id_,
                argv=entry.argv if is_mistake else without_restart(entry.argv),
                name=entry.name,
                state=WAITING,
                order=self.last_order() + 1,
                cwd=entry.cwd,
                added=entry.added,
                yields=entry.yields,
                retries=entry.retries,
            )
            self.save(fresh)

    def start_runner(self) -> None:
        """Starts the runner as a detached process, if an entry runs or waits and no
        runner works on the queue."""
        has_work = any(entry.state in (RUNNING, WAITING) for entry in self.entries())
        if not has_work or self.has_runner():
            return
        output = str(self.folder.parents[1])
        program = (sys.executable, str(commands.RUN_PY))
        command = [*program, "queue", "--output", output, "run"]
        try:
            with (self.folder / "runner.log").open("ab") as log:
                null = subprocess.DEVNULL
                subprocess.Popen(
                    command, stdin=null, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:  # the disk is full, say: the entries go on waiting
            logger.error(f"{self.folder}: the queue is not worked on: {error.strerror}")

    def has_runner(self) -> bool:
        """Whether a runner works on the queue."""
        try:
            with (self.folder / "runner.lock").open("a") as file:
                # Shared: two processes that ask at the same time do not block each other.
                return not try_lock(file, shared=True)
        except OSError:
            return False

    def mark(self, id_: str) -> str:
        """Value of MARK in the environment of an entry's processes."""
        return str(self.folder / id_)

    def processes(self, entry: Entry) -> list[int]:
        """Ids of the living processes of an entry.

        These are the shell, the job, and the processes that both have started, also if
        the shell has ended or a process has left its session.
        """
        return _living(entry, self.mark(entry.id))

    def log(self, id_: str) -> Path:
        """File with the output of an entry."""
        return self.folder / f"{id_}.log"

    def tail(self, id_: str, size: int = TAIL_BYTES) -> str:
        """The last whole lines of an entry's output, at most `size` bytes."""
        try:
            with open_regular(self.log(id_)) as file:
                start = max(0, file.seek(0, os.SEEK_END) - size)
                file.seek(start)
                data = file.read()
        except OSError:
            return ""
        return (data.partition(b"\n")[2] if start else data).decode("utf-8", "replace")

    def waiting(self, id_: str) -> Entry:
        """A waiting entry. Raises UserError if it does not wait."""
        entry = self.entry(id_)
        if entry.state != WAITING:
            raise UserError(f"entry {id_!r} does not wait.")
        return entry

    def last_order(self) -> float:
        """The highest `order` of all entries."""
        return max((entry.order for entry in self.entries()), default=0.0)

    def _read(self, id_: str) -> Entry | None:
        """The entry of one file. A damaged file gives an entry of state `damaged`. None:
        the file does not exist."""
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
            why, _, _ = " ".join(str(error).split()).partition(
                " For further information"
            )
            return Entry(
                id=id_, argv=(), name=id_, state=DAMAGED, order=0, cwd="", why=why[:200]
            )
        self._seen[id_] = mark, entry
        return entry

    def save(self, entry: Entry, **changes: object) -> Entry:
        """Writes an entry with these fields changed, and returns it. The caller holds the
        lock."""
        entry = entry.model_copy(update=changes)
        # the command may set what is secret, such as the address of a webhook
        file = self.folder / f"{entry.id}.json"
        write_json(file, entry.model_dump(), private=True)
        return entry

    def _discard(self, id_: str) -> None:
        trash = self.folder / "trash"
        trash.mkdir(exist_ok=True)
        # The JSON file is the last: as long as it exists, the entry does.
        for ending in (".log", ".exit", ".json"):
            with suppress(FileNotFoundError):
                os.replace(self.folder / f"{id_}{ending}", trash / f"{id_}{ending}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the queue's lock, which every change needs. Makes the folder."""
        if fcntl is None:
            raise UserError("the queue needs Linux or macOS.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sort_key(entry: Entry) -> tuple[int, float, str]:
    """Running entries first, then waiting ones, then ended ones, the latest first."""
    if entry.state in (RUNNING, WAITING):
        return int(entry.state == WAITING), entry.order, entry.id
    return 2, -entry.order, entry.id


def _entry_files(folder: Path) -> list[str]:
    """Names of the entries' files in a folder."""
    if not folder.is_dir():
        return []
    names = [name for name in os.listdir(folder) if name.endswith(".json")]
    return [name for name in names if _ID.fullmatch(name[:-5])]


def try_lock(file: IO[str], shared: bool = False) -> bool:
    """Locks a file until it is closed. False: another process holds the lock."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ------------------------------------------------------------ processes


def _stat_of(pid: int) -> list[bytes]:
    """What the system says of a process, from its state on (proc_pid_stat(5)). Empty: no
    such process lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in b"ZX" else fields


def start_of(pid: int) -> str:
    """Start of a process, in ticks since the machine's start. Empty: no such process
    lives."""
    return b"".join(_stat_of(pid)[19:20]).decode()


def is_alive(entry: Entry) -> bool:
    """Whether the recorded process of an entry lives, and not another one of its
    number."""
    if entry.pid <= 0 or entry.boot != boot_id():
        return False
    start = start_of(entry.pid)
    return start != "" and start == entry.pid_start


def _living(entry: Entry, mark: str) -> list[int]:
    """The processes of the recorded session, and those with the mark in their
    environment."""
    if not os.path.isdir("/proc/self"):
        # Without Linux only the process group can be asked for.
        with suppress(OSError):
            if entry.pid:
                os.killpg(entry.pid, 0)
                return [-entry.pid]
        return []
    is_ours = entry.boot == boot_id() and start_of(entry.pid) in ("", entry.pid_start)
    marked = f"{MARK}={mark}".encode("utf-8", "surrogateescape")
    session = entry.pid if is_ours else 0
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if _is_of(pid, session, marked)]


def _is_of(pid: int, session: int, marked: bytes) -> bool:
    """Whether a process lives, and is in the session or has the mark. session: 0: the
    entry has none."""
    fields = _stat_of(pid)
    if fields and session != 0 and int(fields[3]) == session:
        return True
    with suppress(OSError):  # it has ended, or belongs to another user
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        return bool(fields) and marked in environment.split(b"\0")
    return False


def end(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes. A negative process id means a group."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def runs_of(entry: Entry) -> list[RunInfo]:
    """The runs of an entry that can be read."""
    runs = []
    for folder in entry.runs:
        with suppress(RunError, OSError, ValueError):
            runs.append(read_run(Path(folder)))
    return runs


def trains_elsewhere(
    runs: Iterable[RunInfo], entries: Iterable[Entry]
) -> list[RunInfo]:
    """The runs that train and were not started by a running entry."""
    owned = {
        str(Path(folder).resolve())
        for entry in entries
        if entry.state == RUNNING
        for folder in entry.runs
    }
    return [
        run
        for run in runs
        if run.status is RunStatus.RUNNING and str(run.folder.resolve()) not in owned
    ]


def mark_of(folder: Path) -> str:
    """Identifies the current `run.json` of a run: it changes when the file is written
    again. Empty: there is no such file."""
    try:
        about = (folder / STATUS).stat()
    except (OSError, ValueError):
        return ""
    return f"{about.st_ino}-{about.st_mtime_ns}"

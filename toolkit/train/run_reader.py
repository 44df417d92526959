"""Reading runs from their folders: their status, numbers, samples and checkpoints,
while they run and afterwards.

Nothing here imports torch, writes a file or takes a lock, so a reader can neither slow
nor disturb a run. Any file may be missing, half written, damaged, or of another
program.

    for run in list_runs(Path("output")):
        print(run.name, run.status, run.step, run.total_steps)
    with rows_by_step(run.folder / "metrics.jsonl") as rows:
        losses = [row["loss"] for row in rows]
    events = read_events(run.folder)                        # all rows
    events = read_events(run.folder, since=events.cursor)   # only new rows

Called by the tools, and by the callbacks that need earlier rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, TypeVar

from toolkit.errors import RunError
from toolkit.files import run_files
from toolkit.files.now import STEP, Now
from toolkit.files.writing import open_regular
from toolkit.train.checkpoint_store import (
    checkpoint_dir,
    checkpoint_folders,
    step_of,
    verify,
)
from toolkit.train.lock import FILE as LOCK
from toolkit.train.lock import LockHolder, read_lock

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One line of a `.jsonl` file: JSON values by name."""

_MOVED_ASIDE = re.compile(r".+\.old-\d+")
_TAIL_BYTES = 4096
"""Bytes before the offset of a cursor that its hash covers."""

_LONGEST_LINE = 2**24


class RunStatus(StrEnum):
    """Status of a run.

    >>> RunStatus("finished") is RunStatus.FINISHED
    True
    """

    RUNNING = "running"
    """A live process holds the lock of its folder: it loads, trains, saves, or is about
    to exit."""

    FINISHED = "finished"
    """All steps are done and everything is written."""

    STOPPED = "stopped"
    """A signal or control/stop ended it cleanly; the same command resumes it."""

    FAILED = "failed"
    """An error ended it."""

    KILLED = "killed"
    """It ended without recording why: killed, crash of the machine, out of memory."""

    UNKNOWN = "unknown"
    """No process runs there, and run.json is missing or damaged: a refused start,
    say."""


@dataclass(frozen=True)
class RunInfo:
    """A run as recorded in its folder. None: not recorded.

    Example::

        for run in list_runs(Path("output")):
            print(run.name, run.status, run.step, run.total_steps)
    """

    folder: Path
    name: str
    """As in run.json, else the folder's name."""

    status: RunStatus
    owner: LockHolder | None
    """The process that runs in the folder, or the one that was killed there."""

    step: int | None
    """Optimizer steps done."""

    total_steps: int | None
    epoch: int | None
    """From 0."""

    samples: int | None
    """Samples trained on."""

    skipped: int | None
    """Optimizer steps skipped because loss or gradient was not finite."""

    loss: float | None
    """Mean of the latest 50 steps."""

    lr: float | None
    step_s: float | None
    """Seconds per optimizer step: median of the latest 50."""

    eta_s: float | None
    """Seconds left of everything; of a run that does not say it, of training alone.
    None unless it is running."""

    now: Now | None
    """The activity of a running run, or the last activity of a killed one; None for
    other runs."""

    started: datetime | None
    """UTC; when the latest start of the run began to train."""

    updated: datetime | None
    """UTC; when run.json was last written."""

    error: str | None
    """The error that ended the run, when it failed."""

    reason: str | None
    """Why the run finished early, see `stop_when`."""

    best_step: int | None
    """Step of the lowest validation loss."""

    best_loss: float | None
    config: Path | None
    """The saved job file."""

    origin: tuple[str, str] | None
    """The file that the job was started from, and the working directory then."""


@dataclass(frozen=True)
class Rows:
    """Rows of events.jsonl.

    Example::

        events = read_events(run.folder)
        new_events = read_events(run.folder, since=events.cursor)
        for row in new_events.rows:
            print(row["event"])
    """

    rows: tuple[Row, ...]
    cursor: str
    """Pass it as `since` to the next call: short text, valid in JSON and in a URL
    without escaping."""

    anew: bool
    """True: these are all rows of the file and replace those read before (first call,
    or a run that started again). False: they follow the rows read before."""


@dataclass(frozen=True)
class SampleImage:
    """One sample image.

    Example::

        for sample in list_samples(run.folder):
            print(sample.step, sample.prompt, sample.path)
    """

    path: Path
    step: int
    index: int
    """Index in its set."""

    time: datetime
    """UTC; when it was generated, by its file name."""

    prompt: str | None
    """The prompt with the trigger word; None where events.jsonl has none."""


@dataclass(frozen=True)
class NetworkFile:
    """Saved weights: a safetensors file, or a folder with a complete model.

    Example::

        for file in list_network_files(run.folder):
            print(file.kind, file.step, file.path)
    """

    path: Path
    kind: str
    """`step`, `best` or `final`."""

    step: int | None
    """None when the file does not record it."""

    size: int
    """Bytes."""

    time: datetime | None
    """UTC; when it was written, where events.jsonl records it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, from which a run can resume.

    Example::

        for checkpoint in list_checkpoints(run.folder):
            print(checkpoint.step, checkpoint.problem or "good")
    """

    path: Path
    step: int
    size: int
    """Bytes."""

    problem: str | None
    """The fault of a damaged one; None when its manifest exists and all files have the
    recorded sizes.

    Hashes are not checked: a resume does that, so it may still find a damaged one.
    """


# ------------------------------------------------------------ runs


def list_runs(folder: Path) -> tuple[RunInfo, ...]:
    """All runs below a training folder, `<folder>/<job>` and
    `<folder>/<job>/<process>`, in the order of their paths.

    A run's folder has a run.lock, or the run.json of a run (a copy, say). Runs that
    were moved aside (`<name>.old-<n>`) are left out, and so is everything else. A
    folder that is missing or unreadable has no runs.
    """
    jobs = _folders_in(folder)
    processes = [inner for job in jobs for inner in _folders_in(job)]
    return tuple(_info(path) for path in sorted([*jobs, *processes]) if _is_run(path))


def runs_in(folder: Path) -> tuple[RunInfo, ...]:
    """The run in the folder itself, or else all runs below it (`list_runs`)."""
    return (_info(folder),) if _is_run(folder) else list_runs(folder)


def read_run(folder: Path) -> RunInfo:
    """One run. Raises RunError when the folder holds none."""
    if not _is_run(folder):
        raise RunError(
            f"{folder}: no run is here: neither {LOCK} nor {run_files.STATUS} of a run was found.{near_run(folder)}"
        )
    return _info(folder)


def near_run(path: Path) -> str:
    """The folder of the run that is meant by one of its files, or by its name, as a
    sentence; empty where there is none."""
    places = (Path("output", path), path.parent, Path("output", path.stem))
    return next((f" Did you mean '{one}'?" for one in places if _is_run(one)), "")


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    if (folder / LOCK).is_file():
        return True
    # A copy without its lock file. A run that was moved aside has none either, and does
    # not count.
    is_aside = _MOVED_ASIDE.fullmatch(folder.name) is not None
    return (
        not is_aside
        and folder.parent.name != run_files.SUPERSEDED
        and "status" in run_files.read_status(folder)
    )


def _info(folder: Path) -> RunInfo:
    for _ in range(2):
        # A run releases the lock after its last write, so run.json is read after the
        # lock. A run that starts in between looks as if it had been killed, but not a
        # second time.
        lock = read_lock(folder)
        document = run_files.read_status(folder)
        status = _status(lock.held, lock.owner, document)
        if status is not RunStatus.KILLED:
            break
    best = document.get("best")
    best = best if isinstance(best, dict) else {}
    step = _whole(document, "step")
    total = _whole(document, "steps")
    step_s = _number(document, "step_s")
    now = eta_s = None
    if status in (RunStatus.RUNNING, RunStatus.KILLED):
        now = _now(document)
    if status is RunStatus.RUNNING:
        if now is None:
            now = _step_now(step, total, step_s)
        eta_s = now.left_s
    config = folder / run_files.CONFIG
    return RunInfo(
        folder=folder,
        name=_text(document, "name") or folder.name,
        status=status,
        owner=lock.owner,
        step=step,
        total_steps=total,
        epoch=_whole(document, "epoch"),
        samples=_whole(document, "samples"),
        skipped=_whole(document, "skipped"),
        loss=_number(document, "loss"),
        lr=_number(document, "lr"),
        step_s=step_s,
        eta_s=eta_s,
        now=now,
        started=_time(document, "started"),
        updated=_time(document, "updated"),
        error=_text(document, "error") if status is RunStatus.FAILED else None,
        reason=_text(document, "reason"),
        best_step=_whole(best, "step"),
        best_loss=_number(best, "loss"),
        config=config if config.is_file() else None,
        origin=_origin(document.get(run_files.ORIGIN)),
    )


def _origin(entry: object) -> tuple[str, str] | None:
    """The record `origin` in run.json; None for anything else."""
    if not isinstance(entry, dict):
        return None
    file, cwd = _text(entry, "file"), _text(entry, "cwd")
    return (file, cwd) if file and cwd else None


def _now(document: Row) -> Now | None:
    """The record `now` in run.json, less the time since it was written; None for
    anything else."""
    entry = document.get("now")
    if not isinstance(entry, dict):
        return None
    phase = _text(entry, "phase")
    if not phase:
        return None
    updated = _time(document, "updated")
    since = max(0.0, (datetime.now(UTC) - updated).total_seconds()) if updated else 0.0

    def left(key: str) -> float | None:
        seconds = _number(entry, key)
        return None if seconds is None else max(0.0, seconds - since)

    share = _number(entry, "share")
    return Now(
        phase,
        _number(entry, "done"),
        _number(entry, "of"),
        _text(entry, "unit") or "",
        _text(entry, "started") or "",
        left("phase_left_s"),
        left("left_s"),
        None if share is None else min(max(share, 0.0), 1.0),
    )


def _step_now(step: int | None, total: int | None, step_s: float | None) -> Now:
    """The present activity by the steps alone."""
    if step is None:
        return Now("starting")
    share = min(1.0, max(0.0, step / total)) if total else None
    left_s = None
    if total is not None and step_s is not None:
        left_s = max(0, total - step) * step_s
    return Now(STEP, step, total, left_s=left_s, share=share)


def _status(held: bool, owner: LockHolder | None, document: Row) -> RunStatus:
    """Where no process holds the lock, an owner left in it counts more than run.json,
    which may be of an earlier start."""
    if held:
        return RunStatus.RUNNING
    recorded = document.get("status")
    if owner or recorded == RunStatus.RUNNING:
        return RunStatus.KILLED
    if recorded in list(RunStatus):
        return RunStatus(recorded)
    return RunStatus.UNKNOWN


# ------------------------------------------------------------ rows


def read_losses_by_image(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> image, by its hash -> its loss, the mean over noise levels and sizes; of
    the images of the latest validation. Empty for runs without `validation`."""
    with rows_by_step(folder / run_files.VALIDATION_IMAGES) as by_step:
        rows = list(by_step)
    losses_of_steps: dict[int, dict[str, float]] = {}
    for row in rows:
        losses = row.get("losses")
        if row.get("of") == rows[-1].get("of") and isinstance(losses, dict):
            losses_of_steps[step_of_row(row)] = {
                image: fmean(numbers)
                for image, values in losses.items()
                if (numbers := _numbers(values))
            }
    if not losses_of_steps:
        return {}
    latest = losses_of_steps[max(losses_of_steps)]
    return {
        step: means
        for step, means in losses_of_steps.items()
        if means.keys() == latest.keys()
    }


def read_events(folder: Path, since: str = "") -> Rows:
    """Rows of events.jsonl, including rows of repeated steps; see `Rows`. since: the
    cursor of the previous call.

    A line that is being written is left for the next call; damaged ones are left out. A
    cursor is `<offset>-<hash of the bytes before the offset>`: a file that was replaced
    may have grown beyond the offset since, and the hash detects it, because the lines
    differ at least in their times.
    """
    path = folder / run_files.EVENTS
    match = re.fullmatch(r"(\d{1,18})-([0-9a-f]{16})", since, re.ASCII)
    offset = int(match[1]) if match else 0
    try:
        with open_regular(path) as file:
            if match and digest_before(file, offset) != match[2]:
                offset = 0
            file.seek(offset)
            data = file.read()
            end = data.rfind(b"\n") + 1
            rows = [
                row
                for line in data[:end].splitlines()
                if (row := row_of(line)) is not None
            ]
            cursor = f"{offset + end}-{digest_before(file, offset + end)}"
    except OSError as error:
        tell_unreadable(path, error)
        return Rows((), "", anew=True)
    return Rows(tuple(rows), cursor, anew=offset == 0)


def tell_unreadable(path: Path, error: OSError) -> None:
    """Logs a warning for a file that exists and cannot be read. A missing file is not
    reported, because most runs lack one or the other."""
    if not isinstance(error, FileNotFoundError):
        logger.warning(f"{path}: cannot be read: {error.strerror or error}")


def digest_before(file: BinaryIO, offset: int) -> str:
    """A hash of the bytes before an offset, by which a reader knows that a file was
    replaced since."""
    begin = max(0, offset - _TAIL_BYTES)
    file.seek(begin)
    return hashlib.sha256(file.read(offset - begin)).hexdigest()[:16]


def row_of(data: bytes) -> Row | None:
    """A JSON object; None for anything else. Bytes that are not UTF-8 are replaced.

    >>> row_of(b'{"step": 1}'), row_of(b"[1]"), row_of(b'{"step"')
    ({'step': 1}, None, None)
    """
    try:
        value = json.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def step_of_row(row: Row) -> int:
    """The optimizer step of a row; -1 for a row without one.

    >>> step_of_row({"step": 5}), step_of_row({"loss": 0.1})
    (5, -1)
    """
    step = _whole(row, "step")
    return -1 if step is None else step


class StepRows:
    """The rows of a `.jsonl` file in the order of their optimizer steps, each step
    once: a row replaces earlier rows of its step and later steps; lines without a step,
    damaged ones and one that is being written are left out. Only their places are kept,
    so a million rows take 16 MB. The file may grow, go back or be replaced (`read`).

    >>> lines = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": 0.4}', b""]
    >>> rows = StepRows()
    >>> [row["loss"] for _, row in rows.read(io.BytesIO(bytes([10]).join(lines)))]
    [0.5, 0.4]
    >>> len(rows)
    2
    """

    def __init__(self) -> None:
        self.steps = array("q")
        """The step of each row, ascending."""

        self._offsets = array("q")
        self._end = 0
        self._digest = ""

    def __len__(self) -> int:
        return len(self.steps)

    def read(self, file: BinaryIO) -> Iterator[tuple[int, Row]]:
        """Reads what was appended to the file since the last call, or all of it if it
        was replaced. Yields each row with its index; an index that was used before
        means that the earlier rows from there on no longer count."""
        if self._end and digest_before(file, self._end) != self._digest:
            del self.steps[:], self._offsets[:]
            self._end = 0
        for offset, line in _lines(file, self._end):
            self._end = offset + len(line)
            row = row_of(line) or {}
            step = step_of_row(row)
            if 0 <= step < 2**63:
                index = bisect_left(self.steps, step)
                del self.steps[index:], self._offsets[index:]
                self.steps.append(step)
                self._offsets.append(offset)
                yield index, row
        self._digest = digest_before(file, self._end)

    def between(
        self, file: BinaryIO, begin: int = 0, end: int | None = None
    ) -> Iterator[Row]:
        """The rows from index `begin` to before `end`, read from the file again; None:
        to the last. A row that is damaged since is an empty dict."""
        for offset in self._offsets[begin:end]:
            file.seek(offset)
            yield row_of(file.readline(_LONGEST_LINE)) or {}


def _lines(file: BinaryIO, begin: int) -> Iterator[tuple[int, bytes]]:
    """Each complete line from an offset on, with where it begins; others may read the
    file meanwhile. Of a line longer than any that a run writes only its end comes,
    which is not a row."""
    while True:
        file.seek(begin)
        line = file.readline(_LONGEST_LINE)
        if line.endswith(b"\n"):
            yield begin, line
        elif len(line) < _LONGEST_LINE:
            return
        begin += len(line)


@contextmanager
def rows_by_step(path: Path) -> Iterator[Iterator[Row]]:
    """The rows of metrics.jsonl or validation.jsonl inside the block, for
    runs of any length; none where the file is missing. Rows that a run writes meanwhile
    are left out."""
    file: BinaryIO = io.BytesIO()
    try:
        file = open_regular(path)
    except OSError as error:
        tell_unreadable(path, error)
    with file:
        rows = StepRows()
        deque(rows.read(file), maxlen=0)
        yield rows.between(file)


# ------------------------------------------------------------ files


def spread(values: Sequence[Value], most: int) -> list[Value]:
    """At most so many of the values: the first, the last, and evenly chosen ones
    between. most: at least 2 where there are more values than one.

    >>> spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    last = len(values) - 1
    return [values[round(place * last / (most - 1))] for place in range(most)]


def list_samples(folder: Path) -> tuple[SampleImage, ...]:
    """All sample images of a run, by step and index, without those in superseded/. The
    prompts are those of the events in which the images are named; None where no event
    names one."""
    events = read_events(folder).rows

    def by_file(key: str) -> dict[str, str | None]:
        text_of_file: dict[str, str | None] = {}
        for event in events:
            files = _texts(event, "files")
            for file, text in zip(files, _texts(event, key), strict=False):
                text_of_file[file] = text or None
        return text_of_file

    prompts = by_file("prompts")
    samples = []
    for path in _entries(folder / run_files.SAMPLES):
        match = run_files.SAMPLE_FILE.fullmatch(path.name) if path.is_file() else None
        if match:
            if time := _generated(path):
                text = prompts.get(path.name)
                samples.append(
                    SampleImage(
                        path, int(match["step"]), int(match["index"]), time, text
                    )
                )
    return tuple(
        sorted(
            samples, key=lambda sample: (sample.step, sample.index, sample.path.name)
        )
    )


def _generated(path: Path) -> datetime | None:
    """By the file's own time. None for one that is not a time."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def list_network_files(folder: Path) -> tuple[NetworkFile, ...]:
    """The weights that a run has saved: by step, then the best ones, then the final
    ones."""
    name = _text(run_files.read_status(folder), "name") or folder.name
    written = {
        file: _time(event, "time")
        for event in read_events(folder).rows
        if event.get("event") == "save"
        for file in _texts(event, "files")
    }

    def of(path: Path, kind: str, step: float) -> NetworkFile:
        return NetworkFile(
            path,
            kind,
            int(step) if math.isfinite(step) else None,
            _size(path),
            written.get(path.name),
        )

    by_step = run_files.step_files(folder, name)
    best = run_files.final_files(folder, run_files.best_stem(name))
    final = run_files.final_files(folder, name)
    return (
        *(of(path, "step", step) for step in sorted(by_step) for path in by_step[step]),
        *(of(path, "best", run_files.step_in(path)) for path in best),
        *(of(path, "final", run_files.step_in(path)) for path in final),
    )


def list_checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints of a run by ascending step, good or not. Their sizes are compared
    with the manifest; their hashes are not."""
    return tuple(
        Checkpoint(path, step_of(path), _size(path), verify(path, by_hash=False))
        for path in checkpoint_folders(checkpoint_dir(folder))
    )


def list_dataset_files(folder: Path) -> tuple[Path, ...]:
    """Hashes of the datasets of a run, `dataset-<hash>.json`: one file for each version
    of the dataset."""
    return tuple(
        path
        for path in _entries(folder)
        if path.name.startswith(run_files.DATASET_PREFIX) and path.suffix == ".json"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; files that vanish meanwhile do not
    count."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


# ------------------------------------------------------------ values of JSON that
# others may have written


def _whole(row: Row, key: str) -> int | None:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    # No run counts this far, and beyond it sums and times fail.
    return value if abs(value) < 2**53 else None


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # Infinity is left out, and so is an integer that no float can hold.
    return float(value) if abs(value) < 1e300 else None


def _numbers(value: object) -> list[float]:
    """The numbers of a list; empty for a value that is not a list or has other
    entries."""
    numbers = (
        [_number({"": entry}, "") for entry in value] if isinstance(value, list) else []
    )
    if None not in numbers:
        return [entry for entry in numbers if entry is not None]
    return []


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    return value if isinstance(value, str) else None


def _texts(row: Row, key: str) -> list[str]:
    """The texts of a list; empty for anything else. An entry that is not a text becomes
    an empty one, so that places stay."""
    value = row.get(key)
    if isinstance(value, list):
        return [entry if isinstance(entry, str) else "" for entry in value]
    return []


def _time(row: Row, key: str) -> datetime | None:
    value = _text(row, key)
    return run_files.parse_time(value) if value else None

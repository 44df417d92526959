"""The verbs of every day for runs, datasets and jobs: train longer, clone, rename,
delete into a trash, restore.

A deletion is a rename into the folder `.trash` beside what is deleted, with a record
next to it, so nothing is lost and it takes no time. Nothing that runs, or that a run or
an entry of the queue needs, is renamed or deleted, and nothing that lies elsewhere or
is a link. After a rename a run resumes as before. What a verb changes is a list of
steps, which `extensions.tools.ui.steps` does whole or not at all.

The page (`extensions.tools.ui.views.shelf`) and the commands `run.py runs`, `datasets`
and `jobs` (`extensions.tools.ui.process`) call it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from extensions.tools.ui.chosen import MEASURED
from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.datasets import TRASH, moment_name
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.queue import RUNNING, WAITING, Queue
from extensions.tools.ui.steps import Step, do, text_of
from toolkit.commands import command
from toolkit.config.reading.loader import FILE_ENDING, job_name_error, name_like
from toolkit.config.reading.located import KeyPath
from toolkit.errors import UserError
from toolkit.files import run_files
from toolkit.files.redact import REDACTED
from toolkit.files.writing import (
    CONFIG_SUFFIXES,
    folder_lock,
    only_tidy,
    os_error_as_run_error,
    read_object,
)
from toolkit.train.lock import FILE as LOCK
from toolkit.train.lock import read_lock, run_lock, why_locked
from toolkit.train.run_reader import RunStatus, list_runs, read_run, runs_in

Kind = Literal["runs", "datasets", "jobs"]
ONE = {"runs": "run", "datasets": "dataset", "jobs": "job"}

NAME, STEPS = "config.name", "train.steps"


@dataclass(frozen=True)
class Shelf:
    """The folders of runs, datasets and job files.

    >>> Shelf(Path("output"), Path("datasets"), Path("config")).home("jobs").name
    'config'
    """

    runs: Path
    datasets: Path
    jobs: Path

    def home(self, kind: Kind) -> Path:
        """The folder of a kind."""
        home: Path = getattr(self, kind)
        return home


class Trashed(NamedTuple):
    """What was deleted, as its record says it. `entry`: its place in the trash. `size`:
    bytes."""

    entry: str
    name: str
    size: int
    files: int
    time: str


def listed(shelf: Shelf, kind: Kind) -> list[tuple[str, Path]]:
    """All runs, datasets or jobs: name and path. Links are among them, though no verb
    takes one."""
    home = shelf.home(kind)
    if kind == "runs":
        folders = [run.folder for run in list_runs(home)]
        return [(path.relative_to(home).as_posix(), path) for path in folders]
    paths = sorted(home.iterdir()) if home.is_dir() else []
    return [
        (path.stem if kind == "jobs" else path.name, path)
        for path in paths
        if not path.name.startswith(".") and _exists(path, kind)
    ]


def _is_one(path: Path, kind: Kind) -> bool:
    if kind == "jobs":
        is_job = path.suffix.lower() in CONFIG_SUFFIXES and path.is_file()
        return is_job and JobText(text_of(path)).get(("config", "name")) != ""
    return bool(runs_in(path)) if kind == "runs" else path.is_dir()


def find(shelf: Shelf, kind: Kind, name: str) -> Path:
    """The folder or file of a name, which may be its path. Raises UserError for what is
    not one of the program's own."""
    home = shelf.home(kind)
    lists = f"'{command(kind)}' lists what is there."
    with suppress(ValueError):
        name = Path(name).relative_to(home).as_posix()
    parts = Path(name).parts
    most = 2 if kind == "runs" else 1
    is_elsewhere = Path(name).is_absolute() or not 0 < len(parts) <= most
    if is_elsewhere or "\0" in name or any(part.startswith(".") for part in parts):
        raise UserError(f"{name!r}: is not a {ONE[kind]} of {home}. {lists}")
    path = home / name
    if kind == "jobs" and path.suffix.lower() not in CONFIG_SUFFIXES:
        found = [home / f"{name}{suffix}" for suffix in CONFIG_SUFFIXES]
        path = next(filter(os.path.exists, found), found[0])
    if os.path.islink(path):
        raise UserError(
            f"{path}: is a link to {path.resolve()}, which this program did not make. "
            f"Remove the link with: rm {shlex.quote(str(path))}"
        )
    if not path.resolve().is_relative_to(home.resolve()) or not _exists(path, kind):
        raise UserError(f"{path}: is not a {ONE[kind]}. {lists}")
    return path


def _exists(path: Path, kind: Kind) -> bool:
    with suppress(OSError):
        return path.exists() and _is_one(path, kind)
    return False


def size_of(path: Path) -> tuple[int, int]:
    """Bytes and number of the files of a folder, or of a file."""
    sizes = [path.lstat().st_size] if path.is_file() else []
    for top, _, files in os.walk(path):
        with suppress(FileNotFoundError):
            sizes += [os.lstat(os.path.join(top, file)).st_size for file in files]
    return sum(sizes), len(sizes)


# ------------------------------------------------------------ what is in use


@contextmanager
def _locked(*homes: Path) -> Iterator[None]:
    """Inside the block no other verb changes what is in these folders, and nobody saves
    a job file in them."""
    with ExitStack() as held:
        for place in sorted({*map(os.path.realpath, filter(Path.is_dir, homes))}):
            held.enter_context(folder_lock(Path(place)))
        yield


@contextmanager
def _alone(shelf: Shelf, kind: Kind, name: str) -> Iterator[Path]:
    """The path of a name, which nobody else changes inside the block: not the same verb
    in another page, and no run that starts. Raises UserError for what runs, or what
    something that runs or waits needs, and RunError for an error of the disk."""
    with _locked(shelf.home(kind), shelf.jobs):
        path = find(shelf, kind, name)
        _require_idle(shelf, kind, path)
        is_run = (path / LOCK).is_file()
        with os_error_as_run_error(path), run_lock(path) if is_run else nullcontext():
            yield path


def _require_idle(shelf: Shelf, kind: Kind, path: Path) -> None:
    folder = path
    if kind == "jobs":
        folder = shelf.runs / (JobText(text_of(path)).get(("config", "name")) or ".")
    if kind != "datasets":
        for lock in (folder / LOCK, *folder.glob(f"*/{LOCK}")):
            state = read_lock(lock.parent)
            if state.held:
                raise UserError(why_locked(lock.parent, state.owner))
    _require_unused(shelf, path)


def _require_unused(shelf: Shelf, path: Path) -> None:
    if user := _user_of(shelf, path):
        raise UserError(f"{path}: {user} needs it. Wait for it, or stop it.")


def _user_of(shelf: Shelf, path: Path) -> str:
    """What runs or waits, and names a path or something in it; empty: nothing."""
    for run in list_runs(shelf.runs):
        if run.status is RunStatus.RUNNING and run.config:
            texts = JobText(text_of(run.config)).leaves(in_lists=True).values()
            if any(_within(text, path) is not None for text in texts):
                return f"the run {run.name}"
    for entry in Queue(queue_folder(shelf.runs)).now():
        if entry.state not in (RUNNING, WAITING):
            continue
        words = [part for word in entry.argv for part in re.split("[=:]", word)]
        ways = product(("", "config"), words, ("", *CONFIG_SUFFIXES))
        places = [os.path.join(entry.cwd, top, word + end) for top, word, end in ways]
        for job in [place for place in map(Path, places) if _exists(place, "jobs")]:
            for text in JobText(text_of(job)).leaves(in_lists=True).values():
                place = os.path.expanduser(text) if isinstance(text, str) else ""
                places.append(os.path.join(entry.cwd, place))
        if any(_within(place, path) is not None for place in places):
            return f"{entry.name} in the queue"
    return ""


def _within(text: Any, path: Path) -> str | None:
    """The rest of a path behind another one; None: it is not in it."""
    if not isinstance(text, str) or not text or "\0" in text:
        return None
    rest = os.path.relpath(
        os.path.realpath(os.path.expanduser(text)), os.path.realpath(path)
    )
    return None if rest.split(os.sep)[0] == ".." else rest


# ------------------------------------------------------------ the trash


def delete(shelf: Shelf, kind: Kind, name: str) -> Trashed:
    """Moves it into the trash. Raises UserError or RunError."""
    home = shelf.home(kind)
    with _alone(shelf, kind, name) as path:
        _tidy(shelf, kind)
        size, files = size_of(path)
        place = path.relative_to(home).as_posix()
        one = Trashed(moment_name(), place, size, files, run_files.utc_now())
        record = json.dumps(one._asdict(), indent=2)
        record_file = home / TRASH / f"{one.entry}.json"
        do([Step(path, record_file, record), Step(path, _item(shelf, kind, one))])
    return one


def trashed(shelf: Shelf, kind: Kind) -> list[Trashed]:
    """What can be restored, the latest first."""
    known = _records(shelf, kind)
    return [one for one in known.values() if _item(shelf, kind, one).exists()]


def _records(shelf: Shelf, kind: Kind) -> dict[Path, Trashed]:
    known = {}
    for record in sorted((shelf.home(kind) / TRASH).glob("*.json"), reverse=True):
        with suppress(TypeError):  # a record of something else
            known[record] = Trashed(**read_object(record))
    return known


def _tidy(shelf: Shelf, kind: Kind) -> None:
    """Removes the records of what is not in the trash: it was restored, or a kill came
    before it was moved."""
    for record, one in _records(shelf, kind).items():
        if not _item(shelf, kind, one).exists():
            with suppress(OSError):  # never made, or it holds something else
                record.with_suffix("").rmdir()
            with only_tidy(record, "records of what is not in the trash stay there"):
                record.unlink()


def _item(shelf: Shelf, kind: Kind, one: Trashed) -> Path:
    return shelf.home(kind) / TRASH / one.entry / Path(one.name).name


def restore(shelf: Shelf, kind: Kind, name: str) -> Path:
    """Moves the latest of a name, or that of an entry, back to its place. Raises
    UserError or RunError."""
    with _locked(shelf.home(kind)):
        known = trashed(shelf, kind)
        called = [
            (one.entry, one.name, kind == "jobs" and Path(one.name).stem)
            for one in known
        ]
        one = next(
            (one for one, names in zip(known, called, strict=True) if name in names),
            None,
        )
        if one is None:
            there = ", ".join(one.name for one in known) or "nothing"
            raise UserError(f"{name!r}: is not in the trash. In it: {there}.")
        target = shelf.home(kind) / one.name
        if os.path.lexists(target):
            write = command(kind, "rename", Path(one.name).stem, "NEW_NAME")
            raise UserError(f"{target}: is there again. Rename it first: {write}")
        do([Step(_item(shelf, kind, one), target)])
        _tidy(shelf, kind)
    return target


# ------------------------------------------------------------ names


def _free(shelf: Shelf, kind: Kind, new: str, suffix: str = "") -> Path:
    """The path of a new name. Raises UserError where it cannot be one or is taken."""
    fault = job_name_error(new)
    if fault or new.startswith("."):
        raise UserError(f"{new!r} {fault or 'is hidden. Begin with a letter.'}")
    if FILE_ENDING.search(new):
        raise UserError(f"{new!r} is the name of a file. Write {name_like(new)!r}.")
    path = shelf.home(kind) / f"{new}{suffix}"
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already. Give another name.")
    return path


def rename(shelf: Shelf, kind: Kind, name: str, new: str) -> Path:
    """Gives it a new name, and returns its path. A run's files and its job get the new
    name too, and jobs that name its folder are corrected. Raises UserError or
    RunError."""
    with _alone(shelf, kind, name) as path:
        if path.parent != shelf.home(kind):
            raise UserError(
                f"{path}: is one of several processes of a job. Rename the job"
            )
        target = _free(shelf, kind, new, path.suffix if kind == "jobs" else "")
        before = {"runs": _of_run, "datasets": _of_dataset, "jobs": _of_job}[kind]
        do([*before(shelf, path, target), Step(path, target)])
    return target


def _of_job(shelf: Shelf, path: Path, target: Path) -> list[Step]:
    """What changes before a job file has its new name."""
    job = JobText(text_of(path))
    if job.get(job.path(NAME)) != path.stem:
        return []
    if (shelf.runs / path.stem / run_files.STATUS).is_file():
        write = command("runs", "rename", path.stem, target.stem)
        raise UserError(
            f"{path}: the run {path.stem} goes on with it. Rename both: {write}"
        )
    return [Step(path, path, _with(job, path, NAME, target.stem).text)]


def _of_dataset(shelf: Shelf, path: Path, target: Path) -> list[Step]:
    """What changes before a dataset has its new name: jobs that name it, and what the
    page keeps of it."""
    steps = _correct(shelf, path, target)
    own = queue_folder(shelf.runs).parent
    for kept, end in (("datasets", ".json"), ("lint", ".json"), ("undo", "")):
        of_old, of_new = (own / kept / f"{one.name}{end}" for one in (path, target))
        if of_old.exists() and of_new.exists():  # of one that was deleted
            place = own / "trash" / kept / target.name / f"{moment_name()}{end}"
            steps.append(Step(of_new, place))
        if of_old.exists():
            steps.append(Step(of_old, of_new))
    return steps


def _of_run(shelf: Shelf, folder: Path, target: Path) -> list[Step]:
    """What changes before a run's folder has its new name: the name in it and in its
    job, then the names of the files."""
    old, new = folder.name, target.name
    state, config = folder / run_files.STATUS, folder / run_files.CONFIG
    called = read_object(state).get("name")
    is_saved = config.is_file() and not config.is_symlink()
    if called not in (old, new) or not is_saved:
        write = command("runs", "rename", old, str(called))
        raise UserError(
            f"{folder}: the run in it is called {called!r}, or has no saved job. If it was to be renamed so: {write}"
        )
    files = {*_files_of(folder, old)}
    if called == new:  # a kill came before: some of them have the new name
        files -= {*_files_of(folder, new)}
    moves = {file: f"{new}{file.name.removeprefix(old)}" for file in sorted(files)}
    names = {file.name: name for file, name in moves.items()}
    edited = {}
    for path in (
        config,
        *(shelf.jobs / f"{old}{suffix}" for suffix in CONFIG_SUFFIXES),
    ):
        job = JobText(text_of(path) if path.is_file() else "")
        if job.get(job.path(NAME)) not in (old, new):
            continue
        edited[path.resolve()] = _with(job, path, NAME, new)
        if path != config:
            _require_unused(shelf, path)
            moves[path] = f"{new}{path.suffix}"
    if config.resolve() not in edited:
        raise UserError(f"{config}: its name is not {old!r}. Give the job a new name.")
    steps = _correct(shelf, folder, target, edited, names)
    measured = folder / MEASURED
    if measured.is_file():
        begins = re.compile(rf'"(?!{re.escape(new)}[_.]){re.escape(old)}(?=[_.])')
        text = begins.sub(lambda _: f'"{new}', text_of(measured))
        steps.append(Step(measured, measured, text))
    told = json.dumps(read_object(state) | {"name": new}, indent=2)
    moved = [Step(file, file.with_name(name)) for file, name in moves.items()]
    for file, to, *_ in moved:  # the job that it began with
        told = told.replace(_in_json(file), _in_json(to))
    return [*steps, Step(state, state, told), *moved]


def _in_json(path: Path) -> str:
    return json.dumps(str(path.absolute()))


def _files_of(folder: Path, name: str) -> list[Path]:
    saved = run_files.step_files(folder, name).values()
    files = [file for files in saved for file in files]
    for stem in (name, run_files.best_stem(name)):
        files += run_files.final_files(folder, stem)
    return files + run_files.workflow_files(folder, name)


def _correct(
    shelf: Shelf,
    old: Path,
    new: Path,
    edited: Mapping[Path, JobText] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Step]:
    """All jobs, and copies of jobs, that name a path, with the new one.

    edited: those that have changed already. names: files in the folder, and their new
    names.
    """
    copies = [
        run.config
        for run in list_runs(shelf.runs)
        if run.config and not run.config.is_symlink()
    ]
    jobs = [path for path in shelf.jobs.glob("*") if _exists(path, "jobs")]
    steps = []
    for path in sorted({path.resolve() for path in (*copies, *jobs)}):
        text = text_of(path)
        job = edited.get(path) or JobText(text)
        for key, value in job.leaves(in_lists=True).items():
            rest = _within(value, old)
            if rest is not None:
                first, *others = rest.split(os.sep)
                is_whole = os.path.isabs(os.path.expanduser(value))
                place = new.absolute() if is_whole else new
                place = Path(place, names.get(first, first), *others)
                job = _with(job, path, key, str(place))
        if job.text != text:
            steps.append(Step(path, path, job.text))
    return steps


def _with(
    job: JobText, path: Path, key: str | KeyPath, value: str, is_text: bool = True
) -> JobText:
    """The job of a file with another value. Raises UserError where an edit would change
    more, at an alias say."""
    place = job.path(key) if isinstance(key, str) else key
    if job.get(place) == value:
        return job
    try:
        return job.set(place, value, is_text)
    except ValueError as error:
        name = ".".join(map(str, place))
        raise UserError(
            f"{path}: {name} cannot be changed without another value. Write {value} there by hand, then do this again."
        ) from error


# ------------------------------------------------------------ further on


def clone(shelf: Shelf, kind: Kind, name: str, new: str) -> Path:
    """A copy of a dataset, or a job file with the settings of a run or a job, under a
    new name. Raises UserError or RunError."""
    with _locked(shelf.datasets if kind == "datasets" else shelf.jobs):
        path = find(shelf, kind, name)
        if kind == "datasets":
            target = _free(shelf, kind, new)
            do([Step(path, target, copies=True)])
            return target
        saved = path / run_files.CONFIG if kind == "runs" else path
        if not saved.is_file():
            raise UserError(f"{path}: has no saved job.")
        text = text_of(saved)
        before, is_lost, _ = text.partition(REDACTED)
        if kind == "runs" and is_lost:
            raise UserError(
                f"{saved}:{before.count(chr(10)) + 1}: a secret of the job stood here, and is not saved. Write "
                "${NAME} there, and set the variable NAME, then do this again."
            )
        job = _with(JobText(text), saved, NAME, new)
        target = _free(shelf, "jobs", new, ".yaml" if kind == "runs" else path.suffix)
        do([Step(saved, target, job.text)])
    return target


def _set_keys(shelf: Shelf, config: Path, values: Mapping[str, str]) -> None:
    """Sets keys in the saved job of a run, and in the job file of its name where that
    says the same."""
    saved = JobText(text_of(config))
    edits = []
    jobs = (shelf.jobs / f"{config.parent.name}{suffix}" for suffix in CONFIG_SUFFIXES)
    for path in filter(Path.is_file, (*jobs, config)):
        job = JobText(text_of(path))
        is_same = all(
            job.data(job.path(key)) == saved.data(saved.path(key))
            for key in (NAME, *values)
        )
        if is_same:
            for key, value in values.items():
                job = _with(job, path, key, value, is_text=False)
            edits.append(Step(path.resolve(), path.resolve(), job.text))
    do(edits)


def set_keys(shelf: Shelf, name: str, values: Mapping[str, str]) -> None:
    """Sets keys of a run in its saved job, and in the job file of its name where that
    says the same, so that later starts have them too."""
    with _alone(shelf, "runs", name) as folder:
        run = read_run(folder)
        if run.config is None or run.config.is_symlink():
            raise UserError(f"{folder}: has no saved job.")
        _set_keys(shelf, run.config, values)


def longer(shelf: Shelf, name: str, steps: str) -> list[str]:
    """Sets the steps of a run in its saved job, and in the job file of its name where
    that says the same. Returns the words after `run.py` that go on with it."""
    with _alone(shelf, "runs", name) as folder:
        run = read_run(folder)
        if run.config is None or run.config.is_symlink():
            raise UserError(f"{folder}: has no saved job.")
        saved = JobText(text_of(run.config))
        old, done = saved.data(saved.path(STEPS)), run.step or 0
        is_number = steps.isascii() and steps.isdigit() and len(steps) < 10
        # the same number: the first time a kill came before the end
        if not (is_number and type(old) is int and int(steps) >= max(old, done + 1)):
            raise UserError(f"{steps}: give a number of steps above {old or done}.")
        _set_keys(shelf, run.config, {STEPS: steps})
    # the rates of a schedule depend on the number of steps
    return [str(run.config.absolute()), "--allow-change"]

"""The verbs of every day for runs, datasets and jobs: train longer, clone, rename,
delete into a trash, restore.

A deletion is a rename into the folder `.trash` beside what is deleted, with a record
next to it, so nothing is lost and it takes no time. Nothing that runs, or that a run or
an entry of the queue needs, is renamed or deleted, and nothing that lies elsewhere or
is a link. After a rename a run resumes as before.

The page (`extensions.tools.ui.views.shelf`) and the commands `run.py runs`, `datasets`
and `jobs` (`extensions.tools.ui.process`) call it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from extensions.tools.ui.chosen import MEASURED
from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.datasets import TRASH, moment_name
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.queue import RUNNING, WAITING, Queue
from toolkit.commands import command
from toolkit.config.reading.loader import folder_name_error
from toolkit.errors import UserError
from toolkit.files import run_files
from toolkit.files.writing import (
    CONFIG_SUFFIXES,
    folder_lock,
    os_error_as_run_error,
    read_object,
    read_source,
    write_json,
    write_text,
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


def names(shelf: Shelf, kind: Kind) -> list[str]:
    """All runs, datasets or jobs by name."""
    home = shelf.home(kind)
    if kind == "runs":
        return [run.folder.relative_to(home).as_posix() for run in list_runs(home)]
    paths = sorted(home.iterdir()) if home.is_dir() else []
    return [
        path.stem if kind == "jobs" else path.name
        for path in paths
        if not path.name.startswith(".") and _is_one(path, kind)
    ]


def _is_one(path: Path, kind: Kind) -> bool:
    if kind == "jobs":
        is_job = path.suffix.lower() in CONFIG_SUFFIXES and path.is_file()
        return is_job and JobText(_text(path)).get(("config", "name")) != ""
    return bool(runs_in(path)) if kind == "runs" else path.is_dir()


def _text(path: Path) -> str:
    return read_source(path).decode("utf-8", "replace")


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
        path = next(filter(Path.exists, found), found[0])
    if path.is_symlink():
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
def _alone(shelf: Shelf, kind: Kind, name: str) -> Iterator[Path]:
    """The path of a name, which nobody else changes inside the block: not the same verb
    in another page, and no run that starts. Raises UserError for what runs, or what
    something that runs or waits needs, and RunError for an error of the disk."""
    path = find(shelf, kind, name)
    with folder_lock(shelf.home(kind)), os_error_as_run_error(path):
        path = find(shelf, kind, name)  # as it is now
        _require_idle(shelf, kind, path)
        with run_lock(path) if (path / LOCK).is_file() else nullcontext():
            yield path


def _require_idle(shelf: Shelf, kind: Kind, path: Path) -> None:
    folder = path
    if kind == "jobs":
        folder = shelf.runs / (JobText(_text(path)).get(("config", "name")) or ".")
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
            texts = JobText(_text(run.config)).leaves().values()
            if any(_within(text, path) is not None for text in texts):
                return f"the run {run.name}"
    for entry in Queue(queue_folder(shelf.runs)).now():
        words = [part for word in entry.argv for part in re.split("[=:]", word)]
        places = [os.path.join(entry.cwd, word) for word in words]
        if entry.state in (RUNNING, WAITING) and any(
            _within(place, path) is not None for place in places
        ):
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
        size, files = size_of(path)
        entry = moment_name()
        item = home / TRASH / entry / path.name
        item.parent.mkdir(parents=True)
        place = path.relative_to(home).as_posix()
        trashed = Trashed(entry, place, size, files, run_files.utc_now())
        write_json(home / TRASH / f"{entry}.json", trashed._asdict())
        os.rename(path, item)
    return trashed


def trashed(shelf: Shelf, kind: Kind) -> list[Trashed]:
    """What can be restored, the latest first."""
    found = []
    for record in sorted((shelf.home(kind) / TRASH).glob("*.json"), reverse=True):
        with suppress(TypeError):  # a record of something else
            one = Trashed(**read_object(record))
            if _item(shelf, kind, one).exists():
                found.append(one)
    return found


def _item(shelf: Shelf, kind: Kind, one: Trashed) -> Path:
    return shelf.home(kind) / TRASH / one.entry / Path(one.name).name


def restore(shelf: Shelf, kind: Kind, name: str) -> Path:
    """Moves the latest of a name, or that of an entry, back to its place. Raises
    UserError or RunError."""
    with folder_lock(shelf.home(kind)):
        return _restore(shelf, kind, name)


def _restore(shelf: Shelf, kind: Kind, name: str) -> Path:
    known = trashed(shelf, kind)
    one = next((one for one in known if name in (one.entry, one.name)), None)
    stems = [one for one in known if kind == "jobs" and Path(one.name).stem == name]
    one = one or next(iter(stems), None)
    if one is None:
        there = ", ".join(one.name for one in known) or "nothing"
        raise UserError(f"{name!r}: is not in the trash. In it: {there}.")
    item, target = _item(shelf, kind, one), shelf.home(kind) / one.name
    if os.path.lexists(target):
        write = command(kind, "rename", Path(one.name).stem, "NEW_NAME")
        raise UserError(f"{target}: is there again. Rename it first: {write}")
    with os_error_as_run_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(item, target)
        (item.parent.parent / f"{one.entry}.json").unlink()
        item.parent.rmdir()
    return target


# ------------------------------------------------------------ names


def _free(shelf: Shelf, kind: Kind, new: str, suffix: str = "") -> Path:
    """The path of a new name. Raises UserError where it cannot be one or is taken."""
    fault = folder_name_error(new)
    if fault or new.startswith("."):
        raise UserError(f"{new!r} {fault or 'is hidden. Begin with a letter.'}")
    path = shelf.home(kind) / f"{new}{suffix}"
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already. Give another name.")
    return path


def rename(shelf: Shelf, kind: Kind, name: str, new: str) -> Path:
    """Gives it a new name, and returns its path. A run's files and its job get the new
    name too, and jobs that name its folder are corrected. Raises UserError or
    RunError."""
    path, home = find(shelf, kind, name), shelf.home(kind)
    target = _free(shelf, kind, new, path.suffix if kind == "jobs" else "")
    if path.parent != home:
        raise UserError(f"{path}: is one of several processes of a job. Rename the job")
    if kind == "jobs":
        return _rename_job(shelf, name, path, target)
    with _alone(shelf, kind, name):
        if kind == "runs":
            _rename_run(shelf, path, new)
        os.rename(path, target)
    own = queue_folder(shelf.runs).parent
    if kind == "datasets":
        for folder in ("datasets", "lint"):
            with suppress(FileNotFoundError):
                os.rename(
                    own / folder / f"{path.name}.json", own / folder / f"{new}.json"
                )
    _correct(shelf, path, target)
    return target


def _rename_job(shelf: Shelf, name: str, path: Path, target: Path) -> Path:
    job = JobText(_text(path))
    if job.get(("config", "name")) == path.stem:
        if (shelf.runs / path.stem / run_files.STATUS).is_file():
            write = command("runs", "rename", path.stem, target.stem)
            raise UserError(
                f"{path}: the run {path.stem} goes on with it. Rename both: {write}"
            )
        job = _named(job, target.stem, path)
    with _alone(shelf, "jobs", name):
        write_text(target, job.text)
        path.unlink()
    return target


def _named(job: JobText, new: str, path: Path) -> JobText:
    try:
        return job.set(job.path(NAME), new, is_text=True)
    except ValueError as error:
        raise UserError(f"{path}: its name cannot be changed: {error}") from error


def _rename_run(shelf: Shelf, folder: Path, new: str) -> None:
    """The name within the folder of a run. Repeated after a kill it does what is
    left."""
    old = folder.name
    status, config = run_files.read_status(folder), folder / run_files.CONFIG
    if status.get("name") not in (old, new) or not config.is_file():
        raise UserError(
            f"{folder}: the run in it is called {status.get('name')!r}, or has no saved job. It cannot be renamed."
        )
    of_job = [shelf.jobs / f"{old}{suffix}" for suffix in CONFIG_SUFFIXES]
    jobs = [config, *filter(Path.is_file, of_job)]
    texts = {path: JobText(_text(path)) for path in jobs}
    texts = {
        path: _named(job, new, path)
        for path, job in texts.items()
        if job.get(job.path(NAME)) in (old, new)
    }
    if config not in texts:
        raise UserError(f"{config}: its name is not {old!r}. Give the job a new name.")
    for path in texts:
        if path != config:
            _free(shelf, "jobs", new, path.suffix)
            _require_unused(shelf, path)
    saved = run_files.step_files(folder, old).values()
    files = [file for files in saved for file in files]
    for stem in (old, run_files.best_stem(old)):
        files += run_files.final_files(folder, stem)
    files += run_files.workflow_files(folder, old)
    files += folder.glob(f"{old}_blocks_*.safetensors")
    for file in files:
        os.rename(file, file.with_name(new + file.name.removeprefix(old)))
    if (folder / MEASURED).is_file():
        text = (folder / MEASURED).read_text(encoding="utf-8")
        begins = re.compile(rf'"{re.escape(old)}(?=[_.])')
        write_text(folder / MEASURED, begins.sub(lambda _: f'"{new}', text))
    for path, job in texts.items():
        write_text(path, job.text)
        if path != config:
            os.rename(path, path.with_name(f"{new}{path.suffix}"))
    write_json(folder / run_files.STATUS, status | {"name": new})


def _correct(shelf: Shelf, old: Path, new: Path) -> None:
    """Writes the new path into all jobs, and copies of jobs, that name the old one."""
    copies = [run.config for run in list_runs(shelf.runs) if run.config]
    jobs = [path for path in shelf.jobs.glob("*") if _exists(path, "jobs")]
    for path in (*copies, *jobs):
        job = JobText(_text(path))
        for key, text in job.leaves().items():
            rest = _within(text, old)
            if rest is None:
                continue
            first, *others = rest.split(os.sep)
            if not (new / first).exists():  # a file of the run had its name
                first = new.name + first.removeprefix(old.name)
            place = new.absolute() if os.path.isabs(text) else new
            with suppress(ValueError):  # an alias: it is left, and the check says so
                job = job.set(key, str(Path(place, first, *others)), is_text=True)
        if job.text != _text(path):
            write_text(path, job.text)


# ------------------------------------------------------------ further on


def clone(shelf: Shelf, kind: Kind, name: str, new: str) -> Path:
    """A copy of a dataset, or a job file with the settings of a run or a job, under a
    new name. Raises UserError or RunError."""
    path = find(shelf, kind, name)
    if kind == "datasets":
        target = _free(shelf, kind, new)
        with os_error_as_run_error(target):
            shutil.copytree(path, target)  # refuses a folder that is there by now
        return target
    saved = path / run_files.CONFIG if kind == "runs" else path
    if not saved.is_file():
        raise UserError(f"{path}: has no saved job.")
    job = _named(JobText(_text(saved)), new, saved)
    with os_error_as_run_error(shelf.jobs):
        shelf.jobs.mkdir(parents=True, exist_ok=True)
    with folder_lock(shelf.jobs):
        target = _free(shelf, "jobs", new, ".yaml" if kind == "runs" else path.suffix)
        write_text(target, job.text)
    return target


def longer(shelf: Shelf, name: str, steps: str) -> list[str]:
    """Sets the steps of a run in its saved job, and in the job file of its name where
    that says the same. Returns the words after `run.py` that go on with it."""
    with _alone(shelf, "runs", name) as folder:
        run = read_run(folder)
        if run.config is None:
            raise UserError(f"{folder}: has no saved job.")
        saved = JobText(_text(run.config))
        at = saved.path(STEPS)
        old = saved.data(at)
        if not (steps.isascii() and steps.isdigit() and len(steps) < 10) or not (
            type(old) is int and int(steps) > max(old, run.step or 0)
        ):
            raise UserError(f"{steps}: give a number of steps above {old or run.step}.")
        files = [run.config]
        files += [shelf.jobs / f"{folder.name}{suffix}" for suffix in CONFIG_SUFFIXES]
        for path in filter(Path.is_file, files):
            job = JobText(_text(path))
            is_same = job.get(job.path(NAME)) == saved.get(saved.path(NAME))
            if is_same and job.data(job.path(STEPS)) == old:
                try:
                    write_text(path, job.set(job.path(STEPS), steps, False).text)
                except ValueError as error:
                    raise UserError(f"{path}: {error}. Change it by hand.") from error
    # the rates of a schedule depend on the number of steps
    return [str(run.config.absolute()), "--allow-change"]

"""The request that resumes a run, and which settings it goes on with.

A run keeps a copy of its job. Where the file that it came from is known and says
something else by now, the page of the run shows what differs, and the run goes on with
the file, as the command line does. The file is the one that the run has recorded, that
of the queue's entry that has started it, or the one of the run's name in the page's
folder of jobs.

`extensions.tools.ui.app` serves `resume`, and `extensions.tools.ui.views.after` shows
what `origin_of` finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from extensions.tools.shared.html_page import texts
from extensions.tools.ui import shelf
from extensions.tools.ui.commands import typed
from extensions.tools.ui.entries import file_of
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.queue import RUNNING, WAITING, planned, without_restart
from extensions.tools.ui.state import Form, Ui, done, posted, refusals, ui_of
from extensions.tools.ui.views.new import (
    NAME,
    read_job,
    why_not_started,
    without_secrets,
)
from extensions.tools.ui.views.queue import RUNNER_S, enqueue, queue_of
from extensions.tools.ui.views.shelf import shelf_of
from toolkit.config.reading.located import dotted
from toolkit.errors import UserError
from toolkit.files.writing import CONFIG_SUFFIXES, short
from toolkit.plan.memory import ENCODING, Part
from toolkit.train.run_reader import RunInfo, RunStatus

_ABSENT = object()


@dataclass(frozen=True)
class Origin:
    """The file that the job of a run came from, where it is not as it was.

    >>> Origin(("config/cat.yaml",), "/work", (("train.steps", "400", "500"),)).file
    'config/cat.yaml'
    """

    argv: tuple[str, ...]
    """The words after `run.py` that go on with the file."""

    cwd: str
    changes: tuple[tuple[str, str, str], ...] = ()
    """Each key that differs, with its old and its new value."""

    fault: str = ""
    """Why the saved copy is used nevertheless: the key of a text."""

    detail: str = ""

    @property
    def file(self) -> str:
        return self.argv[0]


def saved_job(run: RunInfo) -> JobText | None:
    """The saved copy of a run's job; None: there is none, or it cannot be read."""
    if run.config is not None:
        with suppress(HTTPException):
            return JobText(read_job(run.config))
    return None


def origin_of(ui: Ui, run: RunInfo, saved: JobText) -> Origin | None:
    """None: the file says what the copy says, or it is not known."""
    for argv, cwd in _commands(ui, run):
        path = file_of(cwd, argv[0])
        try:
            job = without_secrets(read_job(path))
        except HTTPException as error:
            return Origin(argv, cwd, fault="gone", detail=error.detail)
        is_yaml = path.suffix.lower() in CONFIG_SUFFIXES
        if job.root is None and is_yaml:
            return Origin(argv, cwd, fault="broken")
        if not (is_yaml and isinstance(job.data(("config",)), dict)):
            return Origin(argv, cwd, fault="foreign")
        other = job.get(job.path(NAME))
        # The name of `-n` stands in the copy alone.
        if len(argv) == 1 and other != saved.get(saved.path(NAME)):
            return Origin(argv, cwd, fault="other", detail=other)
        changes = tuple(_changes(saved, job))
        return Origin(argv, cwd, changes) if changes else None
    return None


def _commands(ui: Ui, run: RunInfo) -> Iterator[tuple[tuple[str, ...], str]]:
    """The commands that a run may have been started with, and their working
    directories: as it has recorded, of the queue's latest entry, then of the job file of
    its name."""
    folder, copy = map(_resolved, (run.folder, run.config or ""))
    if run.origin:
        file, cwd = run.origin
        yield (file if cwd != str(Path.cwd()) else short(Path(file)),), cwd
    entries = queue_of(ui).entries()
    for entry in sorted(entries, key=lambda entry: entry.id, reverse=True):
        argv = without_restart(entry.argv)
        # One run of several is not resumed by the command that starts them all, and a
        # key of --set stands in no file.
        others = ("--seeds", "--sweep", "--set")
        is_one = not any(word.startswith(others) for word in argv) and not any(
            word.endswith(CONFIG_SUFFIXES) for word in argv[1:]
        )
        is_copy = _resolved(os.path.join(entry.cwd, *argv[:1])) == copy
        if folder in map(_resolved, entry.runs) and is_one and not is_copy:
            yield argv, entry.cwd
    for suffix in CONFIG_SUFFIXES[:2]:
        path = ui.jobs / f"{run.name}{suffix}"
        if path.is_file():
            yield (short(path),), str(Path.cwd())


def _changes(saved: JobText, job: JobText) -> Iterator[tuple[str, str, str]]:
    before, after = saved.leaves(), job.leaves()
    for path in dict.fromkeys([*before, *after]):
        old, new = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if path != saved.path(NAME) and old != new:
            # the keys of the process that trains as docs/config.md has them
            key = dotted(path).removeprefix(f"process[{saved.trainer}].")
            yield key, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    return "–" if value is _ABSENT else typed(value)


@posted()
def resume(request: Request, form: Form) -> Response:
    """Puts a run into the queue again, once the plan has the run's folder: with the file
    that it came from, or with its saved copy where that file cannot be used or the field
    `job` asks for the copy (`saved`)."""
    ui = ui_of(request)
    run = ui.run(request.path_params["id"])
    queue = queue_of(ui)
    cwd = str(Path.cwd())
    if run.config is None:
        raise HTTPException(409, f"{run.folder} has no saved job.")
    if run.status is RunStatus.RUNNING:
        raise HTTPException(409, "it runs.")
    argv = copy = [str(run.config.absolute())]
    saved = saved_job(run)
    origin = origin_of(ui, run, saved) if saved else None
    if origin and origin.changes and form.get("job") != "saved":
        argv, cwd = [*origin.argv], origin.cwd
    folder = _resolved(run.folder)
    deadline = time.monotonic() + RUNNER_S
    while states := {
        entry.state
        for entry in queue.entries()
        if entry.state in (RUNNING, WAITING)
        and ([*entry.argv] in (argv, copy) or folder in map(_resolved, entry.runs))
    }:
        if WAITING in states or time.monotonic() > deadline:
            raise HTTPException(409, "it is in the queue already.")
        time.sleep(0.1)  # a run has ended a moment before its process has
    with refusals():
        plan = planned(argv, cwd)
        owned = plan["folders"]
        if folder not in map(_resolved, owned):
            raise UserError(
                f"{argv[0]}: started in {cwd} this job writes to {', '.join(owned) or 'no run'}, not to {folder}. "
                "Start it where it was started first."
            )
        if argv is not copy and (reasons := why_not_started(plan)):
            raise UserError(f"{argv[0]}: {reasons[0]}")
    # another press may have been planned as long
    entry = enqueue(ui, argv, run.name, Path(cwd), (WAITING, RUNNING))
    return done(request, f"/queue/{entry.id}", ok=True)


LEAST_SAVED = 0.01
"""Part of its memory that a change saves at least, to be worth a start."""


def less_memory(request: Request) -> Response:
    """Puts a run into the queue again with less memory: with the first change of the
    planner's list with which the run goes on and its peak is lower."""
    ui = ui_of(request)
    run = ui.run(request.path_params["id"])
    if run.config is None or run.status is RunStatus.RUNNING:
        raise HTTPException(409, f"{run.name} runs, or has no saved job.")
    config, cwd = str(run.config.absolute()), str(Path.cwd())
    with refusals():
        _require_free(ui, config)
        before = planned([config], cwd)
        for changes in before["processes"][0]["savings"]:
            argv = [config, *(f"--set={change}" for change in changes)]
            try:
                after = planned(argv, cwd)
            except UserError:  # not with the other keys of this job
                continue
            goes_on = _begins(after) == _begins(before) and not why_not_started(after)
            if goes_on and _peak(after) < (1 - LEAST_SAVED) * _peak(before):
                values = dict(change.split("=", 1) for change in changes)
                name = run.folder.relative_to(ui.output).as_posix()
                with ui.locked():  # another press may have been planned as long
                    _require_free(ui, config)
                    shelf.set_keys(shelf_of(ui), name, values)
                    entry = enqueue(ui, argv, run.name, Path(cwd))
                return done(request, f"/queue/{entry.id}", ok=True)
    raise HTTPException(409, texts()["run"]["less"]["none"])


def _require_free(ui: Ui, config: str) -> None:
    """Raises UserError if an entry of a saved job waits or runs."""
    for entry in queue_of(ui).entries():
        if entry.state in (RUNNING, WAITING) and config in entry.argv:
            raise UserError("it is in the queue already.")


def _begins(plan: dict[str, Any]) -> list[Any]:
    return [process["start"] for process in plan["processes"]]


def _peak(plan: dict[str, Any]) -> int:
    """Bytes that a planned job needs at its peak, without what the program itself
    takes, in the phases that are not over before the first step."""
    phases: list[dict[str, int]] = [
        phase
        for process in plan["processes"]
        for name, phase in process["memory"]["phases"].items()
        if name != ENCODING
    ]
    return max(sum(phase.values()) - phase.get(Part.PROCESS, 0) for phase in phases)


def _resolved(path: str | Path) -> str:
    return str(Path(path).resolve())

"""The status of a run (run.json for other programs, one line for the terminal), and its
control folder: the run acts on a file that appears there after the next step, and
removes it.

`save_now` saves, `sample_now` generates a set of samples, `stop` ends the run after a
save.

Added by `standard`; `recorded_end` is for the time before a run has callbacks, and
`jobs.process.trainer` calls it. `run_reader` reads run.json.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.contracts.training import StepResult
from toolkit.errors import Interrupted, RunError
from toolkit.files import run_files
from toolkit.files.log import StatusLine
from toolkit.files.writing import remove, write_json
from toolkit.train.now import RunNow
from toolkit.train.run import Callback, Run, due
from toolkit.train.run_reader import Row, rows_by_step, step_of_row

logger = logging.getLogger(__name__)


class ControlFilesCallback(Callback):
    """Runs the action of each file in the control folder, by its name in small or
    capital letters.

    An unknown name is reported once, and its file stays. A folder that cannot be read
    is reported once: a network volume that fails for a moment must not end the run.

    Example::

        actions = {"save_now": saving.save_now, "stop": ask_to_stop}
        callbacks.append(ControlFilesCallback(actions))
    """

    included_in_step_time = False

    def __init__(self, actions: dict[str, Callable[[Run], None]]) -> None:
        self.actions = actions
        self._warned: set[str] = set()

    def on_start(self, run: Run) -> None:
        (run.folder / "control").mkdir(parents=True, exist_ok=True)

    def after_step(self, run: Run) -> None:
        folder = run.folder / "control"
        try:
            with os.scandir(folder) as entries:
                requests = {entry.name.lower(): entry for entry in entries}
        except FileNotFoundError:
            return  # whoever deleted the folder has no requests
        except OSError as error:
            return self._warn_once(
                f"{folder}: cannot be read: {error.strerror or error}. Requests in it wait."
            )
        for name, action in self.actions.items():
            if request := requests.pop(name, None):
                try:
                    # A folder of that name is a request too.
                    remove(Path(request.path))
                except OSError as error:
                    # An action whose file stays would be repeated at each step.
                    self._warn_once(
                        f"{request.path}: waits, as it cannot be removed: {error.strerror or error}."
                    )
                else:
                    action(run)
        for entry in requests.values():
            self._warn_once(
                f"{entry.path}: is not a known request. Give an empty file {' or '.join(self.actions)}."
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text)


def ask_to_stop(run: Run) -> None:
    """Does what the control file `stop` does: the loop ends at the next boundary, and
    the run is saved."""
    run.stop_reason = "control/stop"


WRITE_EVERY_S = 1.0


_TERM = re.compile(r"^loss_(?!scale$|disc_|.*_weighted$)|^loss/|_loss$")
"""In the names of metrics that are the terms of a loss (docs/logging.md)."""


class StatusCallback(Callback):
    """Rewrites run.json at most once a second and keeps the status line current.

    Example::

        line = StatusLine()
        callbacks.append(StatusCallback(line, now=RunNow(line)))
    """

    def __init__(
        self, line: StatusLine, log_every: int = 0, now: RunNow | None = None
    ) -> None:
        """log_every: optimizer steps between two updates of `line`; 0 leaves the pace
        to the line itself. now: what the run does, which run.json says too."""
        self.line = line
        self.now = now or RunNow(line)
        self._is_first = True
        self.log_every = log_every
        self._recent_s: deque[float] = deque(maxlen=50)
        self._losses: deque[float] = deque(maxlen=50)
        self._written = 0.0
        self._last: StepResult | None = None
        self._started: str | None = None
        self._begun = time.monotonic()

    def on_start(self, run: Run) -> None:
        self._started = run_files.utc_now()
        self._begun = time.monotonic()
        self.now.follow(run)
        self.now.step(run, None)
        # Uncompiled blocks take longer.
        run.programs.on_stop.append(self._recent_s.clear)
        with rows_by_step(run.folder / run_files.METRICS) as rows:
            for row in rows:
                if has_loss(row, run.state.step):
                    self._losses.append(row["loss"])
        self._write(run, "running")

    def on_metrics(self, run: Run, result: StepResult) -> None:
        if not result.compiled:
            self._recent_s.append(result.step_s)
        is_trained = not result.by_role or run.main_role in result.by_role
        # A step that trains other roles alone shows the loss of an earlier step.
        if not is_trained and self._last:
            result = replace(result, loss=self._last.loss)
        self._last = result
        if is_trained and not result.skipped:
            self._losses.append(result.loss)
        if not self.log_every or due(result.step, self.log_every):
            self.line.update(self._text(run, result), always=self._is_first)
            self._is_first = False
        if self.now.writes or time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write(run, "running")

    def on_end(self, run: Run, finished: bool) -> None:
        self.line.finish(self._text(run, self._last, ended=True) if self._last else "")
        self.now.close()
        # A stop may have interrupted the last samples: only a run without a stop
        # request is surely complete.
        self._write(
            run, run_files.FINISHED if finished and not run.interrupted else "stopped"
        )

    def on_error(self, run: Run, error: BaseException) -> None:
        self.line.finish()
        self.now.close()
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._write(run, "stopped")
        else:
            # A full disk, for example, must not hide the error that ended the run.
            with suppress(RunError):
                self._write(run, "failed", error=_describe(error))

    def _text(self, run: Run, result: StepResult, ended: bool = False) -> str:
        seconds = median(self._recent_s) if self._recent_s else None
        # Most important first, the loss within 40 columns, the pace within 80: a narrow
        # terminal has room for less.
        took = run_files.duration(time.monotonic() - self._begun)
        now = replace(self.now.step(run, seconds), done=result.step)
        left = "" if ended or not now.left() else f", {now.left()}"
        parts = [
            now.text(),
            f"loss {result.loss:.4f}",
            f"avg {sum(self._losses) / max(1, len(self._losses)):.4f}",
            "compiling" if seconds is None else f"{seconds:.2f} s/it",
            f"{took}{left}",
            f"lr {result.lr:.1e}",
            memory_text(),
        ]
        parts.append(terms_text(result))
        if run.state.skipped:
            parts.append(f"{run.state.skipped} skipped")
        return " | ".join(part for part in parts if part)

    def _write(self, run: Run, status: str, **more: object) -> None:
        self._written = time.monotonic()
        last = self._last
        loss = round(sum(self._losses) / len(self._losses), 6) if self._losses else None
        document = {
            "name": run.name,
            "status": status,
            "step": run.state.step,
            "steps": None if run.steps == UNTIL_THE_DATA_ENDS else run.steps,
            "epoch": run.state.epoch,
            "samples": run.state.samples,
            "skipped": run.state.skipped,
            "loss": loss,
            "lr": last.lr if last else None,
            "step_s": round(median(self._recent_s), 4) if self._recent_s else None,
            "started": self._started,
            "updated": run_files.utc_now(),
            **run.status_fields,
            **more,
        }
        if self.now.writes:
            return self.now.post(document)
        write_json(run.folder / run_files.STATUS, document, durable=status != "running")


def has_loss(row: Row, last: int) -> bool:
    """Whether a row of metrics.jsonl is of a step up to `last` that learned from its
    loss."""
    return (
        step_of_row(row) <= last
        and isinstance(row.get("loss"), float)
        and not row.get("skipped")
    )


def terms_text(result: StepResult) -> str:
    """The terms of a loss that is a sum, each before its weight; empty for a loss of
    one term."""
    of_roles = {f"loss/{role}" for role in result.by_role}
    names = [
        name
        for name in result.extra_metrics
        if _TERM.search(name) and name not in of_roles
    ]
    if len(names) < 2 and not any(name.startswith("loss/") for name in names):
        return ""
    terms = [
        f"{_TERM.sub('', name)} {result.extra_metrics[name]:.4g}" for name in names
    ]
    return ", ".join(terms)


@contextmanager
def recorded_end(folder: Path, name: str) -> Iterator[None]:
    """Writes into run.json how a run ended that failed before its callbacks ran, for
    example while a model was loaded.

    Values of an earlier start (step, loss) stay in run.json. The exception is raised
    again.
    """
    try:
        yield
    except BaseException as error:
        status = {"status": "stopped"}
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            status = {"status": "failed", "error": _describe(error)}
        # A full disk, for example, must not hide the error that ended the run.
        with suppress(RunError):
            before = run_files.read_status(folder) or {"name": name}
            for key in ("error", "now"):
                before.pop(key, None)
            write_json(
                folder / run_files.STATUS,
                before | {"updated": run_files.utc_now()} | status,
            )
        raise


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def memory_text() -> str:
    """Used and total memory of the GPU, or the memory of the process where there is no
    GPU; empty when unknown."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"VRAM {(total - free) / 2**30:.1f}/{total / 2**30:.1f} GiB"
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return ""
    return f"RAM {pages * mmap.PAGESIZE / 2**30:.1f} GiB"

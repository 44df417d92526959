"""Reads the folder of a run for its page: all of it, or what is new since a cursor.

A cursor holds all that a page has seen, so no row is missing and none comes twice. The
files are only read, and secrets in them are redacted. Curves come from `series`.

`run_records` fills the page of a run with a feed. `ui/state` and `ui/views/run` keep
one feed per run, and send its news as an event stream.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from extensions.tools.shared.html_page import moment, texts
from extensions.tools.shared.series import IN_STEPS, series_of
from toolkit.files import run_files
from toolkit.files.redact import redact_json, redact_text
from toolkit.files.writing import open_regular
from toolkit.train.run_reader import RunInfo, read_events, read_run

MOST_LOG_BYTES = 65_536
"""Length of the end of a log that is shown."""

STATUS_S = 0.4
"""Seconds for which a run's status is not read again: fifty watchers ask as often as
one."""


class Feed:
    """One run, for all who watch it.

    Example::

        feed = Feed(Path("output/my_character"))
        everything, cursor = feed.update().news()
        later, cursor = feed.news(cursor)  # only what is new
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.series = series_of(folder)
        self.metrics = self.series[0]
        self._run: RunInfo | None = None
        self._read_at = 0.0

    def run(self) -> RunInfo:
        """The status of the run, at most `STATUS_S` old. Raises RunError where the
        folder holds no run any more."""
        if self._run is None or time.monotonic() - self._read_at > STATUS_S:
            self._run = read_run(self.folder)
            self._read_at = time.monotonic()
        return self._run

    def update(self) -> Feed:
        """Reads what was added to the files of numbers."""
        for series in self.series:
            series.update()
        return self

    def news(self, cursor: str = "") -> tuple[dict[str, Any], str]:
        """What came after a cursor, and the next cursor. For an empty cursor the events
        and the end of the log are given, but no rows: a page begins with the curves.

        `rows`: metrics of new steps. `anew`: the curves have to be fetched again,
        because the run went back to an earlier step or there are too many new rows.
        `events`, `log`: what was added. `status`: as it is now, with the `facts` of
        `facts_of`.
        """
        seen, _, rest = cursor.partition("_")
        events_seen, _, log_seen = rest.partition("_")
        self.metrics.update()
        rows = self.metrics.rows_since(seen)
        events = read_events(self.folder, events_seen)
        log, log_end = log_since(self.folder / run_files.LOG, log_seen)
        run = self.run()
        facts = facts_of(run, self.metrics.total(*IN_STEPS))
        news: dict[str, Any] = {"status": status_of(run) | {"facts": facts}}
        if rows is None and seen:
            news["anew"] = True
        if rows:
            news["rows"] = rows
        if events.rows:
            news["events"] = [redact_json(row) for row in events.rows]
        if log:
            begin = _place(log_seen)
            news["log"] = log
            news["log_anew"] = begin is None or log_end < begin
        return news, f"{self.metrics.cursor()}_{events.cursor}_{log_end}"


def status_of(run: RunInfo) -> dict[str, Any]:
    """The status of a run as JSON values, for the script of the page."""
    return {
        "status": run.status.value,
        "step": run.step,
        "steps": run.total_steps,
        "loss": run.loss,
        "step_s": run.step_s,
        "now": redact_text(run.now.line()) if run.now else "",
        "share": run.now.share if run.now else None,
        "error": redact_text(run.error or ""),
    }


def facts_of(run: RunInfo, seconds: float) -> dict[str, str]:
    """The facts of a run that change while it trains: key of `run.facts` in texts.json
    -> the text on the page, empty where it is not known. seconds: time spent in the
    steps of the run."""
    words = texts()["run"]
    best = ""
    if run.best_loss is not None:
        best = words["best_at"].format(loss=run.best_loss, step=run.best_step or 0)
    speed = ""
    if run.step_s is not None:
        speed = words["per_step"].format(time=run.step_s)
    return {
        "loss": "" if run.loss is None else f"{run.loss:.4g}",
        "best": best,
        "speed": speed,
        "time": run_files.duration(seconds) if seconds else "",
        "lr": "" if run.lr is None else f"{run.lr:.3g}",
        "epoch": "" if run.epoch is None else f"{run.epoch + 1:,}",
        "images": "" if run.samples is None else f"{run.samples:,}",
        "skipped": f"{run.skipped:,}" if run.skipped else "",
        "updated": moment(run.updated),
    }


def log_since(path: Path, seen: str = "") -> tuple[str, int]:
    """The complete lines of a log behind an offset, without secrets, and the offset at
    which they end. Only the last MOST_LOG_BYTES are read. A log that became shorter is
    read from its beginning."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            begin = _place(seen) or 0
            begin = begin if begin <= size else 0
            start = max(begin, size - MOST_LOG_BYTES)
            file.seek(start)
            data = file.read(size - start)
    except OSError:
        return "", 0
    end = data.rfind(b"\n") + 1
    first = data.find(b"\n") + 1 if start > begin else 0
    return redact_text(data[first:end].decode("utf-8", errors="replace")), start + end


def _place(seen: str) -> int | None:
    if re.fullmatch(r"\d{1,18}", seen, re.ASCII):
        return int(seen)
    return None

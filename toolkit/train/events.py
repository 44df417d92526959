"""events.jsonl: what happened and when, one line each, for readers that show a run's history."""

from __future__ import annotations

from pathlib import Path

from toolkit.files import append_json_line, os_error_as_run_error
from toolkit.run_files import utc_now


class EventLog:
    """Appends events; each line is flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **details: object) -> None:
        """One event with its details (JSON values) and the time in UTC."""
        with os_error_as_run_error(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            append_json_line(file, {"time": utc_now(), "event": event, **details})

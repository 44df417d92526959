"""events.jsonl: what happened and when, one line each, for readers that show a run's history."""

from __future__ import annotations

from pathlib import Path

from toolkit.files import append_json_line, naming_failures
from toolkit.run_files import utc_now


class EventLog:
    """Appends events; each line is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **details: object) -> None:
        """One event with its details (JSON values) and the time in UTC."""
        with naming_failures(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            append_json_line(file, {"time": utc_now(), "event": event, **details})

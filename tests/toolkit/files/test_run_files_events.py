"""events.jsonl, and times as people read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from toolkit.files.run_files import EventLog, duration


def test_each_event_is_a_line_with_its_time_that_can_be_read_at_once(
    tmp_path: Path,
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.add("save", step=4, files=["ä.safetensors"])
    assert (
        len((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    )
    # another process of the same run
    EventLog(tmp_path / "events.jsonl").add("sample", step=5)
    lines = [
        json.loads(line)
        for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.pop("time"))
        for line in lines
    )
    assert lines == [
        {"event": "save", "step": 4, "files": ["ä.safetensors"]},
        {"event": "sample", "step": 5},
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (187, "3m07s"), (7380, "2h03m"), (90061, "25h01m")],
)
def test_a_time_span_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text

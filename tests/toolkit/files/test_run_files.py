"""Weights of a run, found by the names that musubi-tuner gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.files.run_files import EventLog, about, duration, saved_as, saved_like


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs; `my-000002` has a name that looks like an epoch's file."""
    monkeypatch.chdir(tmp_path)
    for name, epoch in {
        "my/my": 3, "my/my_000000004": 1, "my/my_000000008": 2, "my/my_000000008_raw": 2, "my-000002/my-000002": 1,
        "there": 1,
    }.items():  # fmt: skip
        path = tmp_path / "out" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": torch.zeros(1)}, path, {"ss_epoch": str(epoch)})
    (tmp_path / "out" / "my" / "run.json").write_text("{}")
    (tmp_path / "out" / "full" / "full").mkdir(parents=True)
    (tmp_path / "out" / "full" / "full" / "model_index.json").write_text("{}")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("my.safetensors", "my/my.safetensors"),
        ("my-000001.safetensors", "my/my_000000004.safetensors"),
        ("my-000002.safetensors", "my-000002/my-000002.safetensors"),
        ("my-000003.safetensors", "my/my.safetensors"),
        ("my-000004.safetensors", None),
        ("my-step00000008.safetensors", "my/my_000000008.safetensors"),
        ("my-step00000009.safetensors", None),
        ("full.safetensors", "full/full"),
        ("my", "my/my.safetensors"),
        ("full", None),
        ("there.safetensors", None),
        ("other.safetensors", None),
        (".safetensors", None),
        ("my.txt", None),
        ("x" * 300 + ".safetensors", None),
        ("my\0.safetensors", None),
    ],
)
def test_a_name_of_musubi_tuner_leads_to_the_file_of_the_run(
    out: Path, asked: str, found: str | None
) -> None:
    assert saved_as(f"out/{asked}") == (None if found is None else Path("out", found))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("my-*.safetensors", ["my/my_000000004", "my/my_000000008"]),
        ("my*.safetensors", ["my/my_000000004", "my/my_000000008"]),
        ("th*.safetensors", ["there"]),  # which lie there
        ("other-*.safetensors", []),
        ("my.safetensors", []),
        ("*", []),
        ("*/my-*.safetensors", []),
        ("**.safetensors", []),
        ("my-*\0.safetensors", []),
    ],
)
def test_a_pattern_of_epoch_files_leads_to_those_of_the_run(
    out: Path, pattern: str, found: list[str]
) -> None:
    assert saved_like(f"out/{pattern}") == [
        Path("out", f"{name}.safetensors") for name in found
    ]


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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under a minute"),
        (59, "under a minute"),
        (61, "about 1 min"),
        (742, "about 12 min"),
        (5399, "about 90 min"),
        (5400, "about 1.5 h"),
        (17_840, "about 5 h"),
        (83_000, "about 23 h"),
        (71.9 * 3600, "about 72 h"),
        (72 * 3600, "about 3 days"),
        (123 * 86400, "about 120 days"),
    ],
)
def test_an_estimate_is_rounded_honestly(seconds: float, words: str) -> None:
    assert about(seconds) == words

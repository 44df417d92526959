"""Diagrams while a run trains: it waits for none of them, and goes on whatever becomes of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from toolkit.train.callbacks import diagrams as module
from toolkit.train.callbacks.diagrams import DiagramsCallback


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    line = {"step": 1, "epoch": 0, "loss": 1.0, "lr": 0.1}
    (toy.folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    (toy.folder / "run.json").write_text(json.dumps({"name": "toy", "status": "running"}))
    return toy.run(steps=1)


def doing(callback: DiagramsCallback, code: str) -> DiagramsCallback:
    """The callback with another program in the place of the drawing."""
    callback._command = [sys.executable, "-c", code]
    return callback


def test_they_are_drawn_at_a_save_and_at_the_end(run) -> None:
    callback = DiagramsCallback(run.folder)
    callback.on_start(run)
    callback.event("sample", step=1)
    assert callback._child is None
    callback.event("save", step=1)
    callback.on_end(run, finished=True)
    assert (run.folder / "graph" / "training_losses.png").is_file()


def test_a_save_waits_for_no_diagram_and_starts_none_while_one_is_drawn(run, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"open({str(started)!r}, 'a').write('x'); import time; time.sleep(0.5)"
    callback = doing(DiagramsCallback(run.folder), code)
    begun = time.monotonic()
    for step in range(20):
        callback.event("save", step=step)
    assert time.monotonic() - begun < 0.5
    callback.on_error(run, ValueError())
    assert started.read_text() == "x"


@pytest.mark.parametrize(
    ("code", "reason"), [("raise SystemExit('no room')", "no room"), ("import time; time.sleep(60)", "not ready")]
)
def test_what_goes_wrong_is_one_warning(run, said, monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    monkeypatch.setattr(module, "WAIT_AT_END_S", 1.0)
    callback = doing(DiagramsCallback(run.folder), code)
    for _ in range(2):
        callback.event("save", step=1)
        callback.on_end(run, finished=True)
    assert [reason in line for line in said if "no diagrams" in line] == [True]


def test_a_missing_package_is_told_at_the_start_and_nothing_is_started(run, said, monkeypatch) -> None:
    monkeypatch.setattr(module, "missing_package", lambda: "no matplotlib")
    callback = DiagramsCallback(run.folder)
    callback.on_start(run)
    callback.event("save", step=1)
    callback.on_end(run, finished=True)
    assert said == ["no diagrams: no matplotlib. The run goes on without them."]
    assert not (run.folder / "graph").exists()

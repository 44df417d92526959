"""Tools while a run trains: it waits for none of them, and goes on whatever becomes of
them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from extensions.hooks import tool_at_saves as module
from extensions.hooks.tool_at_saves import (
    ToolCallback,
    diagrams_at_saves,
    publish_at_end,
    report_at_saves,
)
from extensions.sd_trainer.config import SdTrainerConfig
from tests.processes import alarm
from toolkit.errors import Interrupted
from toolkit.files.log import StatusLine
from toolkit.registry import HINTED_TOOLS
from toolkit.train.callbacks.standard import standard_callbacks
from toolkit.train.run import Saved


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    line = {"step": 1, "epoch": 0, "loss": 1.0, "lr": 0.1}
    (toy.folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    (toy.folder / "run.json").write_text(
        json.dumps({"name": "toy", "status": "running"})
    )
    return toy.run(steps=1)


def doing(callback: ToolCallback, code: str) -> ToolCallback:
    """The callback with another program in the place of the tool."""
    callback._command = [sys.executable, "-c", code]
    return callback


@pytest.mark.parametrize(
    ("callback", "file"),
    [
        pytest.param(
            diagrams_at_saves, "graph/training_losses.png", marks=pytest.mark.slow
        ),
        (report_at_saves, "report.html"),
    ],
)
def test_they_work_at_a_save_and_at_the_end(run, callback, file: str) -> None:
    tool = callback(run.folder)
    run.callbacks = [tool]
    tool.on_start(run)
    run.event("sample", step=1)
    assert tool._child is None
    run.event("save", step=1)
    tool.on_end(run, finished=True)
    assert (run.folder / file).is_file()


def test_a_save_waits_for_no_diagram_and_starts_none_while_one_is_drawn(
    run, tmp_path: Path
) -> None:
    started, may_end = tmp_path / "started", tmp_path / "may_end"
    code = f"""import os, time
open({str(started)!r}, "a").write("x")
for _ in range(200):
    os.path.exists({str(may_end)!r}) or time.sleep(0.05)"""
    callback = doing(diagrams_at_saves(run.folder), code)
    for step in range(3):
        callback.on_save(run, Saved(step, 0, ()))
    may_end.touch()
    callback.on_error(run, ValueError())
    assert started.read_text() == "x"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('no room')", "no room"),
        ("import time; time.sleep(60)", "not ready"),
    ],
)
def test_what_goes_wrong_is_one_warning(
    run, said, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setattr(module, "WAIT_AT_END_S", 0.5)
    callback = doing(diagrams_at_saves(run.folder), code)
    for _ in range(2):  # the second time nothing is started
        callback.on_save(run, Saved(1, 0, ()))
        callback.on_end(run, finished=True)
    assert [reason in line for line in said if "no diagrams" in line] == [True]


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stderr.write('x' * 200_000)",
        "import subprocess; subprocess.Popen(['sleep', '20'])",
    ],
)
def test_neither_many_words_nor_a_process_that_stays_holds_it_up(
    run, said, code: str
) -> None:
    callback = doing(diagrams_at_saves(run.folder), code)
    with alarm(10):
        callback.on_end(run, finished=True)
    assert not said


def test_a_second_ctrl_c_waits_for_no_tool(run) -> None:
    upload = doing(
        publish_at_end(run.folder, "me/x", True), "import time; time.sleep(99)"
    )
    upload._start()
    with alarm(10):
        upload.on_error(run, Interrupted(130))
    upload._child.kill()


def test_a_missing_package_is_told_at_the_start_and_nothing_is_started(
    run, said, monkeypatch
) -> None:
    monkeypatch.setattr(module, "missing_package", lambda *_: "no matplotlib")
    callback = diagrams_at_saves(run.folder)
    callback.on_start(run)
    callback.on_save(run, Saved(1, 0, ()))
    callback.on_end(run, finished=True)
    assert said == ["no diagrams: no matplotlib. The run goes on without."]
    assert not (run.folder / "graph").exists()


def test_an_upload_begins_when_the_run_is_finished_and_its_failure_is_told(
    run, said, tmp_path: Path
) -> None:
    tool = publish_at_end(run.folder, "me/x", private=True)
    assert tool._command[2:] == [
        HINTED_TOOLS["publication"],
        str(run.folder),
        "--repo",
        "me/x",
        "--private",
        "true",
    ]
    begun = tmp_path / "begun"
    doing(tool, f"open({str(begun)!r}, 'w'); raise SystemExit('Later: upload it')")
    tool.on_save(run, Saved(1, 0, ()))
    tool.on_end(run, finished=False)
    assert not begun.exists()
    tool.on_end(run, finished=True)
    assert begun.exists() and said == [
        "no upload: Later: upload it. The run goes on without."
    ]


def test_a_job_that_asks_for_it_uploads_behind_its_report(tmp_path: Path) -> None:
    section = {
        "type": "sd_trainer",
        "datasets": [{"folder_path": "d"}],
        "model": {"name_or_path": "owner/model"},
        "logging": {"report": True},
    }
    plain, asked = (
        [
            tool
            for tool in standard_callbacks(config, tmp_path, StatusLine(), print)
            if isinstance(tool, ToolCallback)
        ]
        for save in (
            {},
            {"push_to_hub": True, "hf_repo_id": "me/x", "hf_private": False},
        )
        for config in [SdTrainerConfig.model_validate(section | {"save": save})]
    )
    assert len(plain) == 1 and [tool._only_finished for tool in asked] == [False, True]
    assert asked[1]._command[-5:] == [
        str(tmp_path),
        "--repo",
        "me/x",
        "--private",
        "false",
    ]

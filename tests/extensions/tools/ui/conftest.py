"""A page over made-up folders, asked without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui.app import make_app
from extensions.tools.ui.state import Ui

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def ui(tmp_path: Path) -> Ui:
    folders = [tmp_path / name for name in ("output", "datasets", "jobs")]
    for folder in folders:
        folder.mkdir()
    return Ui(*folders, token="", price_per_hour=2.0)


def client_of(ui: Ui, **options: Any) -> TestClient:
    return TestClient(make_app(ui), base_url="http://localhost:8675", raise_server_exceptions=False, **options)


@pytest.fixture
def client(ui: Ui) -> TestClient:
    return client_of(ui)


@pytest.fixture
def make_run(ui: Ui) -> Callable[..., Path]:
    """Writes the folder of a run: its status, numbers, samples, files."""

    def make(name: str = "one", steps: int = 10, sampled: tuple[int, ...] = (0, 10), **status: Any) -> Path:
        folder = ui.output / name
        (folder / "samples").mkdir(parents=True)
        document = {
            "name": folder.name,
            "status": "finished",
            "step": steps,
            "steps": steps,
            "step_s": 0.5,
            "loss": 0.25,
        }
        (folder / "run.json").write_text(json.dumps(document | status))
        rows = [{"step": step, "loss": 1 / step, "lr": 1e-3, "step_s": 0.5} for step in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        events = []
        for step in sampled:
            files = [f"{step:09d}_{index}.png" for index in range(2)]
            for file in files:
                Image.new("RGB", (32, 24), (step * 20 % 255, 90, 90)).save(folder / "samples" / file)
            prompts = ["a photo", "a <b>bold</b> photo"]
            events.append(
                {"time": "2026-11-01T10:00:00Z", "event": "sample", "step": step, "files": files, "prompts": prompts}
            )
        (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
        (folder / f"{folder.name}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}" + bytes(range(90)))
        (folder / "log.txt").write_text("one (sd_trainer)\n  the plan\ndevice cpu\nstep 1\n")
        (folder / "config.yaml").write_text(f"job: extension\nconfig:\n  name: {folder.name}\n  process: []\n")
        return folder

    return make

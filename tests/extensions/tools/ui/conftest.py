"""A page over made-up folders, asked without a network."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

import run as program
from extensions.tools.ui import commands, datasets, forms
from extensions.tools.ui.app import make_app
from extensions.tools.ui.decoder import Decoder
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views import run, system, tools
from tests.processes import free_port, until
from toolkit.files.writing import python_path
from toolkit.system import signals

ROOT = Path(__file__).resolve().parents[4]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """The process that decodes images, which takes as long to start as a test of it."""
    one = Decoder()
    yield one
    one.end()


@pytest.fixture
def ui(tmp_path: Path, decoder: Decoder) -> Ui:
    folders = [tmp_path / name for name in ("output", "datasets", "jobs")]
    for folder in folders:
        folder.mkdir()
    ui = Ui(*folders, token="", price_per_hour=2.0)
    ui.memory["decoder"] = decoder
    return ui


BLOCKS = (
    "article|aside|body|d[dlt]|details|dialog|div|fieldset|fig[a-z]+|footer|form|h[1-6]|"
    "head|header|html|legend|li|link|main|meta|nav|ol|optgroup|option|p|section|summary|"
    "table|tbody|t[dhr]|thead|title|ul"
)


def plain(html: str) -> str:
    """A page without the white space that nobody sees: between blocks, at the edges of
    buttons, and between attributes."""
    whole = r"(?s)(<(?:pre|textarea|script)\b.*?</(?:pre|textarea|script)>)"
    parts = re.split(whole, html)
    for index in range(0, len(parts), 2):
        text = re.sub(r"\s+", " ", parts[index]).replace(" >", ">")
        text = re.sub(rf" ?(</?(?:{BLOCKS})\b[^>]*>) ?", r"\1", text)
        parts[index] = re.sub(r"(<button[^>]*>) | (?=</button>)", r"\1", text)
    return "".join(parts)


class Client(TestClient):
    """Asks for pages as a browser shows them: `text` is `plain`."""

    def request(self, *args: Any, **options: Any) -> Any:
        answer = super().request(*args, **options)
        if "text/html" in answer.headers.get("content-type", ""):
            answer._text = plain(answer.text)
        return answer


def client_of(ui: Ui, **options: Any) -> TestClient:
    return Client(
        make_app(ui),
        base_url="http://localhost:8675",
        raise_server_exceptions=False,
        **options,
    )


@pytest.fixture
def client(ui: Ui) -> TestClient:
    return client_of(ui)


@pytest.fixture
def make_run(ui: Ui) -> Callable[..., Path]:
    """Writes the folder of a run: its status, numbers, samples, files."""

    def make(
        name: str = "one",
        steps: int = 10,
        sampled: tuple[int, ...] = (0, 10),
        **status: Any,
    ) -> Path:
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
        rows = [
            {"step": step, "loss": 1 / step, "lr": 1e-3, "step_s": 0.5}
            for step in range(1, steps + 1)
        ]
        (folder / "metrics.jsonl").write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows)
        )
        events = []
        for step in sampled:
            files = [f"{step:09d}_{index}.png" for index in range(2)]
            for file in files:
                Image.new("RGB", (32, 24), (step * 20 % 255, 90, 90)).save(
                    folder / "samples" / file
                )
            prompts = ["a photo", "a <b>bold</b> photo"]
            events.append(
                {
                    "time": "2026-11-01T10:00:00Z",
                    "event": "sample",
                    "step": step,
                    "files": files,
                    "prompts": prompts,
                }
            )
        (folder / "events.jsonl").write_text(
            "".join(f"{json.dumps(event)}\n" for event in events)
        )
        (folder / f"{folder.name}.safetensors").write_bytes(
            b"\x02\0\0\0\0\0\0\0{}" + bytes(range(90))
        )
        (folder / "log.txt").write_text(
            "one (sd_trainer)\n  the plan\ndevice cpu\nstep 1\n"
        )
        (folder / "config.yaml").write_text(
            f"job: extension\nconfig:\n  name: {folder.name}\n  process: []\n"
        )
        return folder

    return make


@pytest.fixture
def processes() -> None:
    """For tests of the processes that the page asks: they are started."""


@pytest.fixture(autouse=True)
def asked_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page asks of `run.py`, and of the declarations of the tools, is answered
    in this process, which has imported everything."""
    if "processes" in request.fixturenames:
        return
    for module in (commands, datasets, run, system):
        monkeypatch.setattr(module, "run_py", run_here)
    monkeypatch.setattr(tools, "ask", ask_here)
    monkeypatch.setattr(signals, "install", lambda *_: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def run_here(
    *arguments: str, cwd: str | None = None, **_: object
) -> tuple[int, str, str]:
    """As `commands.run_py`; the schema, which is the same each time, is made once."""
    if arguments in _ANSWERS:
        return _ANSWERS[arguments]
    with (
        _in_turn,
        chdir(cwd or "."),
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
    ):
        code = program.main(arguments)
    answer = code, out.getvalue(), err.getvalue()
    if arguments == ("--print-schema",):
        _ANSWERS[arguments] = answer
    return answer


def ask_here(asked: Mapping[str, Any] | None = None) -> Any:
    """As `forms.ask`; the forms, which are the same each time, are made once."""
    return json.loads(
        json.dumps(forms.mistakes(**asked), default=str) if asked else _forms()
    )


@cache
def _forms() -> str:
    return json.dumps(forms.forms(), default=str)


_ANSWERS: dict[tuple[str, ...], tuple[int, str, str]] = {}
_in_turn = threading.Lock()


@pytest.fixture
def address(ui: Ui) -> Iterator[str]:
    """The page in a thread of this process, served."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_app(ui), port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://localhost:{port}"
    server.should_exit = True
    thread.join(10)


class Served:
    """The page in a process of its own, which can be killed and started again at the
    same address."""

    def __init__(
        self, folder: Path, token: str = "", makes_token: bool = False
    ) -> None:
        self.folder, self.port, self.token = folder, free_port(), token
        self.makes_token = makes_token
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the page answers."""
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            "ui",
            "--port",
            str(self.port),
            "--jobs",
            "jobs",
            *([] if self.token or self.makes_token else ["--no-token"]),
        ]
        environment = {
            **os.environ,
            "APP_AUTH": self.token,
            "PYTHONPATH": python_path(),
        }
        log = (self.folder / "page.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{self.address}/healthz", timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, (
                    self.folder / "page.log"
                ).read_text()
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)


@pytest.fixture
def served(ui: Ui) -> Iterator[Served]:
    page = Served(ui.output.parent)
    yield page
    page.stop(signal.SIGKILL)

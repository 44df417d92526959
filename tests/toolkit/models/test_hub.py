"""Against a small hub on this machine: the client library runs in a process of its own, as it does for a user."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, child_environment
from toolkit.errors import UserError
from toolkit.models import hub

NAME = "someone/model"
COMMIT = "a" * 40
FILES = {
    "model_index.json": b'{"_class_name": "QwenImageEditPlusPipeline"}',
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"weights" * 1000,
    "preview.png": b"never wanted",
}

CALL = """
import sys
from toolkit.errors import UserError
from toolkit.models.hub import download
try:
    print("path", download(sys.argv[1], sys.argv[2] or None, lambda text: print("note", text)))
except UserError as error:
    print("error", error)
"""


@dataclass
class Hub:
    """What the server answers, and what it was asked."""

    url: str = ""
    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer about the model."""

    break_after: int | None = None
    """Bytes of a large file after which the connection breaks."""

    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Hub]:
    state = Hub()
    blob_ids = {name: f"{index:040x}" for index, name in enumerate(FILES)}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            state.asked.append(self.path)
            path = self.path.split("?")[0]
            if state.refusal:
                status, code = state.refusal
                return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused by the test"})
            if "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": blob_ids[name]}
                    for name, data in FILES.items()
                ]
                return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            if path.startswith("/api/models/"):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
                info = {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in FILES:
                missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
                return self.send(404, b"", missing, with_body)
            data = FILES[name]
            headers = {"ETag": f'"{blob_ids[name]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            start = 0
            if wanted := self.headers.get("Range"):
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206 if start else 200, data[start:], headers, with_body)

        def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and self.command == "GET":
                broken = state.break_after if len(body) > 1000 else None
                self.wfile.write(body[:broken])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def ask(tmp_path: Path):
    """Calls `download` in a fresh process with this environment; returns what it printed, by the first word."""

    def call(revision: str = "", name: str = NAME, **environment: str) -> dict[str, str]:
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        result = subprocess.run(
            [sys.executable, "-c", CALL, name, revision],
            cwd=ROOT,
            env=child_environment({**settings, **environment}),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert result.returncode == 0, result.stderr
        return dict(line.split(" ", 1) for line in result.stdout.splitlines())

    return call


def write_snapshot(home: Path) -> Path:
    """The model in the cache layout that the client library writes."""
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for name, data in FILES.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_offline_without_the_model_names_the_line_that_downloads_by_hand(ask) -> None:
    said = ask(HF_HUB_OFFLINE="1")
    assert "path" not in said
    assert f"hf download {NAME}" in said["error"] and "model.name_or_path" in said["error"]


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_a_snapshot_that_is_here_is_used_offline(ask, tmp_path: Path, revision: str) -> None:
    snapshot = write_snapshot(tmp_path / "hf")
    assert ask(revision, HF_HUB_OFFLINE="1") == {"path": str(snapshot)}


def test_a_snapshot_that_is_here_asks_no_hub(ask, server: Hub, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "hf")
    assert "path" in ask(HF_ENDPOINT=server.url)
    assert server.asked == []


def test_a_revision_that_is_not_here_is_not_replaced_by_another(ask, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "hf")
    assert "error" in ask("b" * 40, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize(
    "refusal", [(403, "GatedRepo"), (401, "GatedRepo"), (401, "RepoNotFound"), (404, "RepoNotFound")], ids=str
)
def test_a_refusal_names_the_token(ask, server: Hub, refusal: tuple[int, str]) -> None:
    server.refusal = refusal
    said = ask(HF_ENDPOINT=server.url)
    assert "HF_TOKEN" in said["error"] and NAME in said["error"]


def test_an_unknown_revision_is_named(ask, server: Hub) -> None:
    server.refusal = (404, "RevisionNotFound")
    assert ask("v9", HF_ENDPOINT=server.url)["error"] == f"model.name_or_path: {NAME}: has no revision 'v9'."


def test_a_name_that_no_hub_model_can_have_is_a_mistake(ask) -> None:
    assert "neither a local folder nor a model id" in ask(name="my models/edit 2509")["error"]


def test_a_hub_that_cannot_be_reached_names_the_line_that_downloads_by_hand(ask) -> None:
    assert f"hf download {NAME}" in ask(HF_ENDPOINT="http://127.0.0.1:9")["error"]


def test_a_download_says_size_and_target_and_brings_what_is_needed(ask, server: Hub, tmp_path: Path) -> None:
    said = ask(HF_ENDPOINT=server.url)
    assert said["note"].startswith(f"downloading {NAME}: 0.0 GB to {tmp_path / 'hf' / 'hub'} (")
    folder = Path(said["path"])
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(FILES) - {"preview.png"}
    assert (folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() == b"weights" * 1000


def test_a_download_that_broke_off_is_finished_by_the_next_run(ask, server: Hub) -> None:
    server.break_after = 3000
    assert "error" in ask(HF_ENDPOINT=server.url)
    server.break_after = None
    server.asked.clear()
    folder = Path(ask(HF_ENDPOINT=server.url)["path"])
    assert (folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() == b"weights" * 1000
    # Whole files are not fetched again.
    assert {path.rsplit("/", 1)[1] for path in server.asked if "/resolve/" in path} == {
        "diffusion_pytorch_model.safetensors"
    }


def test_too_little_space_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [SimpleNamespace(rfilename=name, size=10 * 10**9) for name in ("transformer/a.safetensors", "preview.png")]
    info = SimpleNamespace(siblings=files)
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "not there yet"))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=10.1 * 10**9))
    notes: list[str] = []
    with pytest.raises(UserError, match=r"needs 10\.0 GB, .* has 10\.1 GB free.*HF_HOME"):
        hub._announce(NAME, None, notes.append)
    assert "10.0 GB" in notes[0]
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=10.3 * 10**9))
    hub._announce(NAME, None, notes.append)


CALL_FOR_FILE = """
import sys
from toolkit.errors import UserError
from toolkit.models.hub import download_file
try:
    print("path", download_file(sys.argv[1], "model.key", lambda text: print("note", text)))
except UserError as error:
    print("error", error)
"""


@pytest.fixture
def ask_for_file(ask, monkeypatch: pytest.MonkeyPatch):
    """Calls `download_file` as `ask` calls `download`."""
    monkeypatch.setattr(sys.modules[__name__], "CALL", CALL_FOR_FILE)
    return lambda file, **environment: ask(name=f"{NAME}/{file}", **environment)


def test_one_file_is_brought_once(server: Hub, ask_for_file) -> None:
    first = ask_for_file("transformer/config.json", HF_ENDPOINT=server.url)
    assert Path(first["path"]).read_bytes() == FILES["transformer/config.json"]
    assert first["note"] == "downloading transformer/config.json of someone/model"
    assert not any("preview" in path for path in server.asked)
    server.asked.clear()
    assert ask_for_file("transformer/config.json", HF_ENDPOINT=server.url) == {"path": first["path"]}
    assert server.asked == []


def test_a_file_that_cannot_be_brought_says_why(server: Hub, ask_for_file) -> None:
    absent = ask_for_file("none.safetensors", HF_ENDPOINT=server.url)
    assert absent["error"] == "model.key: someone/model/none.safetensors: someone/model has no such file."
    server.refusal = 401, "RepoNotFound"
    assert "the hub has no such repository, or it is private" in ask_for_file("a.bin", HF_ENDPOINT=server.url)["error"]
    offline = ask_for_file("a.bin", HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
    assert "Download the file by hand and give its path." in offline["error"]

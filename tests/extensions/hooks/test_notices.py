"""The callbacks `run` and `webhook`: what a command and a server are told of a run."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import yaml
from pydantic import ValidationError

from extensions.hooks.config import ALLOWED, CommandConfig, WebhookConfig
from extensions.hooks.notices import CommandCallback, WebhookCallback
from tests.docs.pages import blocks
from tests.http_server import QuietHandler, serving
from tests.running import lines, run_job
from toolkit.extension import discover
from toolkit.files.redact import redact_text
from toolkit.train.run import Run, Saved

SECRET = "T0123456/B0123456/swordfish"


class Server(QuietHandler):
    """Keeps what is posted; answers with `status`, or not before `waits` is set."""

    posted: list[dict] = []  # noqa: RUF012 - the list of a test
    status = 200
    waits: Event | None = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append(json.loads(body))
        if self.waits:
            self.waits.wait()
        self.send_response(self.status, "as asked")
        if self.status in (302, 307):
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.posted.append({"event": "a redirect was followed"})
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"posted": []})
    with serving(handler) as address:
        yield f"{address}/services/{SECRET}", handler


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, "1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run("maya", tmp_path, 100, grad_accum_steps=1, seed=1, roles={})
    run.state.step = 50
    return run


def posts(run: Run, callback: WebhookCallback | CommandCallback) -> None:
    """A save, and an end."""
    callback.on_start(run)
    callback.on_save(run, Saved(50, 2, (run.folder / "maya.safetensors",)))
    callback.on_end(run, False)


@pytest.mark.slow
def test_a_command_and_a_server_are_told_of_a_whole_run(
    server, trainer, make_pictures, write_job, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARGET", "http://127.0.0.1:9/x/planted77")
    section = trainer(
        make_pictures(tmp_path / "photos", "a", "b"),
        train={"steps": 3},
        save={"dtype": "float32", "save_every": 2},
        callbacks=[
            {
                "type": "run",
                "command": "cat >> told; echo >> told; echo ${TARGET} >&2; exit 3",
                "on": ["end"],
            },
            {"type": "webhook", "url": server[0]},
            {"type": "webhook", "url": server[0], "on": ["encoded", "start"]},
        ],
    )
    run_job(write_job(section))
    (told,) = lines(tmp_path / "told")
    assert told["event"] == "end" and told["finished"] is True
    events = [(one["event"], one["step"]) for one in server[1].posted]
    begins, saves = [("encoded", 0), ("start", 0)], [("save", 2), ("save", 3)]
    assert sorted(events) == sorted([*begins, *saves, ("end", 3)])
    posted = {(one["event"], one["step"]): one for one in server[1].posted}
    assert posted["encoded", 0]["items"] == 2
    first = posted["save", 2]
    folder = tmp_path / "output" / "job"
    assert first["files"] == [str(folder / "job_000000002.safetensors")]
    assert first["text"] == first["content"] == "job: saved step 2 of 3"
    files = [path for path in folder.rglob("*") if path.is_file()]
    secrets = (b"swordfish", b"planted77")
    assert not [p for p in files if any(one in p.read_bytes() for one in secrets)]
    assert "the command ended with 3 <redacted>" in redact_text(caplog.text)
    assert "${TARGET}" in (folder / "config.yaml").read_text()


def warned(caplog: pytest.LogCaptureFixture) -> str:
    """The one warning."""
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    return record.getMessage()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "answers 404 as asked"),
        (500, "answers 500 as asked"),
        (302, "has moved this address (302): give the new one"),
        (307, "has moved this address (307): give the new one"),
    ],
)
def test_a_server_that_refuses_is_reported_once_without_its_address(
    server, run: Run, caplog, status: int, told: str
) -> None:
    server[1].status = status
    posts(run, WebhookCallback(WebhookConfig(type="webhook", url=server[0])))
    assert [one["event"] for one in server[1].posted] == ["save", "end"]
    assert told in warned(caplog)
    assert "swordfish" not in caplog.text


def test_a_server_that_is_not_there_or_does_not_answer_is_reported_once(
    server, run: Run, caplog
) -> None:
    def tried(**keys: object) -> str:
        caplog.clear()
        posts(run, WebhookCallback(WebhookConfig(type="webhook", **keys)))
        return warned(caplog)

    assert "127.0.0.1 cannot be reached" in tried(url="http://127.0.0.1:9/x" + SECRET)
    server[1].waits = Event()
    assert "'webhook' failed: " in tried(url=server[0], timeout_s=0.05)
    server[1].waits.set()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo no share >&2; exit 3", "ended with 3 no share"),
        ("exit 3", "the command ended with 3"),
        ("no_such_command", "not found"),
        ("sleep 100 & sleep 100", "not done within 0.05 s"),
        (f"{sys.executable} -c 'import os; os.abort()'", "ended with"),
    ],
)
def test_a_command_that_fails_is_reported_once_with_its_last_line(
    run: Run, caplog, command: str, told: str
) -> None:
    config = CommandConfig(type="run", command=command, timeout_s=5)
    if "sleep" in command:
        config = config.model_copy(update={"timeout_s": 0.05})
    posts(run, CommandCallback(config))
    assert told in warned(caplog)
    assert "exit 3" not in caplog.text


def test_a_command_that_reads_nothing_and_leaves_a_process_behind_is_fine(
    run: Run, caplog
) -> None:
    run.name = "long" * 50_000  # more than a pipe holds
    posts(run, CommandCallback(CommandConfig(type="run", command="sleep 30 >&2 &")))
    assert caplog.records == []


def test_an_error_is_told_without_the_secrets_in_it(server, run: Run) -> None:
    callback = WebhookCallback(WebhookConfig(type="webhook", url=server[0]))
    callback.on_end(run, False)  # the source of batches failed: both are told
    callback.on_error(run, OSError("https://anna:swordfish@host/x cannot be read"))
    end, error = server[1].posted
    assert (end["event"], end["finished"]) == ("end", False)
    assert error["error"] == "OSError: https://<redacted>@host/x cannot be read"
    assert error["text"].startswith("maya: failed at step 50 of 100: OSError")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"url": "slack.com/x"}, "Write https://HOST/PATH"),
        ({"url": "ftp://host/x"}, "Write https://HOST/PATH"),
        ({"url": "https://"}, "Write https://HOST/PATH"),
        ({"url": "https://host:port/x"}, "Write https://HOST/PATH"),
        ({"url": "https://host/a b"}, "Write https://HOST/PATH"),
        ({"url": "file:///etc/passwd"}, "Write https://HOST/PATH"),
        ({"url": "https://me:word@host/x"}, "Leave out what stands before '@'"),
        (
            {"url": "<redacted>"},
            "a saved job has lost the address. Write 'url: ${WEBHOOK_URL}'",
        ),
        ({"url": "http://host", "on": ["step"]}, "'encoded', 'start', 'sample'"),
        ({"url": "http://host", "on": []}, "at least 1"),
        ({"url": "http://host", "timeout_s": 0}, "greater than 0"),
    ],
)
def test_keys_of_a_webhook_are_checked(keys: dict, told: str) -> None:
    with pytest.raises(ValidationError) as error:
        WebhookConfig(type="webhook", **keys)
    assert told in str(error.value)


def test_the_address_of_a_webhook_is_a_secret() -> None:
    url = "https://discord.com/api/webhooks/1234/abcd"
    WebhookConfig(type="webhook", url=url)
    assert redact_text(f"POST {url}") == "POST <redacted>"


@pytest.mark.slow
def test_a_command_needs_the_word_of_who_starts_the_job(
    run_py: Callable, trainer, make_pictures, write_job, tmp_path: Path
) -> None:
    section = trainer(
        make_pictures(tmp_path / "photos", "a"),
        callbacks=[{"type": "run", "command": "touch there"}],
    )
    job = write_job(section)
    result = run_py(job, "--dry-run", env={ALLOWED: ""})
    assert result.returncode == 2
    assert f"if you trust this job: export {ALLOWED}=1" in result.stderr
    assert "callbacks" in result.stderr
    assert run_py(job, "--dry-run", env={ALLOWED: "1"}).returncode == 0


def test_the_block_of_the_page_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk in the place of a bucket, which needs another package."""
    monkeypatch.setenv("ATELIER_COMMANDS", "1")
    (block,) = blocks("docs/callbacks.md", "yaml")
    text = block.text.replace("s3://", "memory://").replace(" on:", ' "on":')
    entries = yaml.safe_load(text.replace("${WEBHOOK_URL}", "https://host/hook"))
    assert [
        discover().find_callback_config(entry["type"]).model_validate(entry).type
        for entry in entries["callbacks"]
    ] == ["webhook", "run", "upload"]

"""With which settings a run goes on: those of the file that it came from, or its copy."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from extensions.tools.ui.queue import STOPPED, Queue
from extensions.tools.ui.state import Ui
from tests.conftest import ROOT

MODEL = "config/examples/tiny_mascots"


@pytest.fixture
def text(ui: Ui) -> str:
    """A job that writes to `output/quickstart` of the page."""
    job = (ROOT / "config/examples/quickstart.yaml").read_text("utf-8")
    return job.replace(MODEL, str(ROOT / MODEL))


@pytest.fixture
def queue(
    ui: Ui, text: str, make_run, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> Queue:
    """Of a stopped run that an entry of the file `work/mine.yaml` has started."""
    folder = ui.output.parent
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Queue, "start_runner", lambda self: None)
    client.follow_redirects = False
    run = make_run("quickstart", status="stopped", step=4)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    queue = Queue(ui.own / "queue")
    entry = queue.add(["mine.yaml", "--restart"], "quickstart")
    queue.save(entry, state=STOPPED, runs=(str(run),), attempts=1)
    return queue


def said(client: TestClient) -> str:
    """What the page of the run says of its file."""
    page = client.get("/runs/quickstart").text
    found = re.search(
        r'(?s)class="(?:card origin"><p>(.*?)</ul>|notice">(.*?)</p>)', page
    )
    words = re.sub("<[^>]*>", " ", found[1] or found[2]) if found else ""
    return " ".join(html.unescape(words).split())


def resumed(client: TestClient, queue: Queue, **form: str) -> tuple[str, ...]:
    """The command that Resume puts into the queue, which is taken out again."""
    answer = client.post("/runs/quickstart/resume", data=form)
    assert answer.status_code == 303, answer.text
    entry = queue.entry(answer.headers["location"].rpartition("/")[2])
    again = client.post("/runs/quickstart/resume", data=form)
    assert again.status_code == 409 and "in the queue already" in again.text
    queue.remove(entry.id)
    return entry.argv


def test_a_run_goes_on_with_its_file_as_it_is_now(
    client: TestClient, ui: Ui, queue: Queue, text: str
) -> None:
    file, copy = Path("mine.yaml"), str(ui.output / "quickstart" / "config.yaml")
    assert said(client) == "" and resumed(client, queue) == (copy,)
    file.write_text("# mine\n" + text.replace("steps: 240", "steps: 300"))
    told = "mine.yaml has changed since this run began: train.steps : 240 → 300"
    assert said(client) == told, "no other key differs"
    assert resumed(client, queue) == ("mine.yaml",)
    assert resumed(client, queue, job="saved") == (copy,)
    file.write_text(text.replace("steps: 240", "steps: 240\n        max_grad_norm: 2"))
    assert said(client).endswith("train.max_grad_norm : – → 2")
    file.write_text(text.replace("steps: 240", "steps: many"))
    refused = client.post("/runs/quickstart/resume")
    assert refused.status_code == 409 and "'many' is not a whole number" in refused.text
    assert resumed(client, queue, job="saved") == (copy,)

    queue.remove("000001")  # as if it had been started from a terminal
    named = ui.jobs / "quickstart.yaml"
    named.write_text(text.replace("steps: 240", "steps: 260"))
    assert said(client).endswith("train.steps : 240 → 260")
    assert resumed(client, queue) == ("jobs/quickstart.yaml",)


def test_a_run_that_was_started_elsewhere_goes_on_with_its_file(
    client: TestClient, ui: Ui, queue: Queue, text: str, tmp_path: Path
) -> None:
    """As a run in a terminal records it; the page and its queue have never seen it."""
    queue.remove("000001")
    (tmp_path / "far").mkdir()
    file = tmp_path / "far" / "mine.yaml"
    file.write_text(text.replace("steps: 240", "steps: 270"))
    run = ui.output / "quickstart"
    status = json.loads((run / "run.json").read_text())
    status["origin"] = {"file": str(file), "cwd": str(Path.cwd())}
    (run / "run.json").write_text(json.dumps(status))
    assert said(client).endswith("train.steps : 240 → 270")
    assert resumed(client, queue) == ("far/mine.yaml",)
    for origin in ({}, {"file": 3}, "mine.yaml", None):
        (run / "run.json").write_text(json.dumps(status | {"origin": origin}))
        assert resumed(client, queue) == (str(run / "config.yaml"),)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("mine.yaml", None, "cannot be read: mine.yaml: No such file"),
        ("mine.yaml", b"\xff\xfe", "cannot be read: mine.yaml"),
        ("mine.yaml", b"config: [", "mine.yaml is not valid YAML"),
        ("mine.yaml", b"config: {name: cat}", "mine.yaml is the job of cat by now"),
        ("mine.toml", b'output_name = "x"', "mine.toml is of another program"),
        ("mine.json", b'{"--model": "x"}', "mine.json is of another program"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_the_copy_goes_on(
    client: TestClient,
    ui: Ui,
    queue: Queue,
    name: str,
    content: bytes | None,
    told: str,
) -> None:
    Path("mine.yaml").unlink()
    if content is not None:
        Path(name).write_bytes(content)
    queue.save(queue.entry("000001"), argv=(name,))
    assert told in said(client)
    copy = str(ui.output / "quickstart" / "config.yaml")
    assert resumed(client, queue) == (copy,)


def test_a_run_without_memory_goes_on_with_the_first_key_that_saves_some(
    client: TestClient, ui: Ui, queue: Queue, text: str
) -> None:
    """One sentence and one button; the key is in the saved job and in that of its name,
    and the page says what it costs."""
    run = ui.output / "quickstart"
    named = ui.jobs / "quickstart.yaml"
    named.write_text(text)
    status = json.loads((run / "run.json").read_text())
    error = "OutOfMemory: out of memory with cat.png. To save memory: all this"
    failed = {"status": "failed", "error": error, "step": 1200}
    (run / "run.json").write_text(json.dumps(status | failed))
    page = client.get("/runs/quickstart").text
    notice = re.search(r'(?s)class="notice failed".*?</div>', page)
    assert notice and "It ran out of memory at step 1,200." in notice[0]
    assert "cat.png" in notice[0].partition("<details")[2]
    main = re.findall(r'(?s)action="([^"]+)"><button class="main"', page)
    assert main == ["/runs/quickstart/less"]
    answer = client.post(main[0])
    assert answer.status_code == 303, answer.text
    entry = queue.entry(answer.headers["location"].rpartition("/")[2])
    # of gradient_checkpointing: auto the planner says that it saves nothing here
    keys = ("--set=model.quantize=true", "--set=model.qtype=int8")
    assert entry.argv == (str(run / "config.yaml"), *keys)
    again = client.post(main[0])
    assert again.status_code == 409 and "in the queue already" in again.text
    for path in (named, run / "config.yaml"):
        assert "qtype: int8" in path.read_text(), path
    queue.save(entry, state=STOPPED, runs=(str(run),), attempts=3)
    page = html.unescape(client.get("/runs/quickstart").text)
    said = "With model.quantize: true, model.qtype: int8 it needs less memory. A step"
    assert f"{said} takes about as long" in page
    assert "this is start 3." in page

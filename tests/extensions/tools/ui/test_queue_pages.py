"""The pages Queue, Tools and System, asked as a browser asks."""

from __future__ import annotations

import json
import os
import re
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui import queue as module
from extensions.tools.ui.forms import ask
from extensions.tools.ui.queue import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Queue,
    planned,
)
from extensions.tools.ui.state import Ui
from tests.conftest import ROOT
from tests.extensions.tools.ui.conftest import client_of
from toolkit.errors import UserError
from toolkit.train.lock import run_lock

HTML = {"accept": "text/html"}
MODEL = "config/examples/tiny_mascots"
NASTY = '<script>alert("1")</script> "\'&'


@pytest.fixture
def ui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ui:
    """In an own working directory; nothing starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Queue, "start_runner", lambda queue: None)
    return Ui(tmp_path / "output", tmp_path / "datasets", tmp_path / "config", "", 0.0)


@pytest.fixture
def client(ui: Ui) -> TestClient:
    return client_of(ui, headers=HTML, follow_redirects=False)


@pytest.fixture
def queue(ui: Ui) -> Queue:
    return Queue(ui.own / "queue")


def made_run(ui: Ui, name: str, **status: object) -> Path:
    """The folder of a run as its files tell of it."""
    folder = ui.output / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(
            {"name": name, "step": 3, "steps": 10, "status": "stopped", **status}
        )
    )
    return folder


def test_the_queue_shows_what_runs_waits_and_has_ended(ui, client, queue):
    assert "The queue is empty" in client.get("/queue").text
    ids = [queue.add(["inspect", NASTY], f"{name} {NASTY}").id for name in "abc"]
    run = made_run(ui, "a", status="running")
    queue.save(
        queue.entry(ids[0]), state=RUNNING, runs=(str(run),), gpu="1", attempts=2
    )
    queue.save(queue.entry(ids[2]), state=FAILED, why=NASTY, exit_code=1, attempts=1)
    queue.log(ids[2]).write_text(f"line {NASTY} hf_abcdefghijklmnopqrstuvwx\n")
    (queue.folder / "000009.json").write_text("{")
    assert "The queue is not being processed" not in client.get("/queue").text, (
        "a runner may be about to start"
    )
    queue.save(queue.entry(ids[1]), not_before="2999-01-01T00:00:00Z")
    for path in queue.folder.glob("*.json"):
        os.utime(path, (0, 0))
    page = client.get("/queue").text
    assert (
        "<script>alert" not in page
        and "hf_abcdef" not in page
        and "a &lt;script&gt;" in page
    )
    for text in (
        'href="/runs/a"',
        "GPU 1",
        "start 2",
        "Waiting (1)",
        "starts at 2999-01-01 00:00:00 UTC",
        "Ended (2)",
        "damaged",
        "The queue is not being processed",
    ):
        assert text in page
    log = client.get(f"/queue/{ids[2]}/log")
    assert (
        log.headers["content-type"].startswith("text/plain")
        and "<redacted>" in log.text
        and NASTY in log.text
    )


def test_buttons_move_remove_retry_and_stop(client, queue):
    first, second = (queue.add(["merge", "--output", name], name).id for name in "ab")
    assert client.post(f"/queue/{second}/up").headers["location"] == "/queue"
    assert [entry.id for entry in queue.entries()] == [second, first]
    assert client.post(
        f"/queue/{second}/down", headers={"accept": "application/json"}
    ).json() == {"ok": True}
    assert [entry.id for entry in queue.entries()] == [first, second]
    assert client.post(f"/queue/{first}/stop").status_code == 409  # it does not run
    queue.save(queue.entry(first), state=STOPPED)
    assert (
        client.post(f"/queue/{first}/retry").status_code == 303
        and queue.entry(first).state == WAITING
    )
    assert client.post(f"/queue/{first}/remove").status_code == 303
    # on another page, a moment ago
    assert client.post(f"/queue/{first}/remove").status_code == 409
    assert client.post(f"/queue/{second}/start_runner").status_code == 404
    queue.save(queue.entry(second), state=STOPPED)
    assert client.post("/queue/clear").status_code == 303 and queue.entries() == ()


@pytest.mark.parametrize(
    "id_",
    ["..", "..%2f..%2fetc", "lock", "runner", "000001%00", "%d9%a0" * 6, "000001"],
)
def test_an_id_is_that_of_an_entry(client, id_):
    assert client.get(f"/queue/{id_}/log").status_code == 404
    assert client.post(f"/queue/{id_}/remove").status_code in (404, 405, 409)


@pytest.mark.slow
def test_every_tool_is_a_form_of_its_declaration(client, monkeypatch):
    with monkeypatch.context() as patch:
        # in a separate process, as the page asks
        patch.setattr("extensions.tools.ui.views.tools.ask", ask)
        page = client.get("/tools").text
    for uid in ("generate", "convert", "publish", "caption", "lint", "cache"):
        assert f'href="/tools/{uid}"' in page
        form = client.get(f"/tools/{uid}").text
        assert form.count("<label") > 2 and "<details>" in form, uid
    assert (
        'href="/tools/ui"' not in page and client.get("/tools/queue").status_code == 404
    )
    merge = client.get("/tools/merge?lora=a.safetensors&lora=b.safetensors").text
    assert 'name="lora" value="b.safetensors"' in merge and 'max="65536"' in merge
    assert (
        merge.index('name="output"')
        < merge.index("<details>")
        < merge.index('name="rank"')
    )


def test_an_entry_leads_to_its_run_and_says_until_then_what_it_waits_for(
    ui, client, queue
):
    first, second = (queue.add(["inspect", name], name) for name in ("one", "two"))
    page = client.get(f"/queue/{second.id}").text
    assert (
        "Waits for 1 before it" in page
        and "<li>one " in page
        and f'data-live="/queue/{second.id}"' in page
    )
    assert "Begins in a moment" in client.get(f"/queue/{first.id}").text
    run = made_run(ui, "a")  # as it was stopped before
    queue.save(queue.entry(first.id), state=RUNNING, runs=(str(run),), attempts=1)
    queue.log(first.id).write_text("reading the images\n")
    with (queue.folder / "runner.lock").open("a") as file:
        assert module.try_lock(file)  # as a runner that works on the queue
        page = client.get(f"/queue/{first.id}")
        assert (
            page.status_code == 200
            and "Loading" in page.text
            and "reading the images" in page.text
        )
    assert "Interrupted" in client.get("/queue").text.title()
    (run / "run.json").write_text(
        json.dumps({"name": "a", "step": 3, "steps": 10, "status": "running"})
    )
    with run_lock(run):
        answer = client.get(f"/queue/{first.id}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/a")
    queue.save(queue.entry(second.id), state=FAILED, why=NASTY, exit_code=1, attempts=1)
    page = client.get(f"/queue/{second.id}").text
    assert "&lt;script&gt;" in page and "<script>alert" not in page
    assert f'data-live="/queue/{second.id}"' not in page
    assert client.get("/queue/999999").status_code == 404


def test_a_form_with_mistakes_is_shown_again_and_a_right_one_waits(client, ui, queue):
    (ui.output.parent / "pictures").mkdir()
    typed = {"lora": ["none.safetensors", ""], "output": NASTY, "rank": "-3"}
    answer = client.post("/tools/merge", data=typed)
    assert answer.status_code == 400 and queue.entries() == ()
    for text in (
        "must be &gt;= 0",
        "is not a file",
        'value="none.safetensors"',
        'value="-3"',
        "must end in",
    ):
        assert text in answer.text
    assert "<script>alert" not in answer.text
    assert (
        answer.text.index('name="rank"')
        < answer.text.index("<details>")
        < answer.text.index('name="overwrite"')
    )
    assert "is required" in client.post("/tools/merge", data={"rank": "2"}).text
    boxes = {"file": "x", "as_json": ["false", "true"]}
    assert (
        'value="true" aria-describedby="f-as_json-about" checked'
        in client.post("/tools/inspect", data=boxes).text
    )
    answer = client.post(
        "/tools/lint",
        data={"path": "pictures", "as_json": ["false", "true"], "preview": "false"},
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/queue")
    [entry] = queue.entries()
    assert (entry.argv, entry.name) == (
        ("lint", "--path=pictures", "--json=true"),
        "lint pictures",
    )


def test_a_value_that_looks_like_a_flag_is_a_value(client, queue):
    client.post("/tools/lint", data={"path": "--output=/etc/x"})
    assert queue.entries() == ()
    answer = client.post("/tools/inspect", data={"file": "--help"})
    assert answer.status_code == 400 and "&#39;--help&#39; is not a file" in answer.text


@pytest.mark.usefixtures("processes")
def test_the_machine_is_told_and_no_secret(client, ui, monkeypatch, write_extension):
    monkeypatch.setenv("APP_HOSTS", "me.example")
    monkeypatch.setenv(
        "EXTENSIONS_PATH", str(write_extension("torn", "import no_such_module").parent)
    )
    ui.token = "a-long-secret-token"
    authorized = {"authorization": f"Bearer {ui.token}"}
    monkeypatch.delenv("APP_AUTH", raising=False)
    assert "made at this start" in client.get("/system", headers=authorized).text
    monkeypatch.setenv("APP_AUTH", ui.token)
    page = client.get("/system", headers=authorized).text
    for text in (
        "me.example",
        "torch",
        "sd_trainer",
        "set by APP_AUTH",
        "free of",
        "Main memory",
        "no_such_module",
    ):
        assert text in page
    assert ui.token not in page


def test_the_price_is_kept(client, ui):
    assert client.post("/system/price", data={"price": "0,44"}).status_code == 303
    assert ui.price_per_hour == 0.44 and json.loads(ui.settings.read_text()) == {
        "price_per_hour": 0.44
    }
    for wrong in ("-1", "nan", "inf", NASTY):
        assert client.post("/system/price", data={"price": wrong}).status_code == 400
    from extensions.tools.ui.config import UiConfig

    assert Ui.of(UiConfig(type="ui", output=str(ui.output)), "").price_per_hour == 0.44
    ui.settings.write_text("{")
    assert (
        Ui.of(
            UiConfig(type="ui", output=str(ui.output), price_per_hour=2.0), ""
        ).price_per_hour
        == 2.0
    )


def test_the_cache_is_pruned_by_the_queue(client, ui, queue):
    run = made_run(ui, "a")
    assert client.post("/system/prune", data={"run": "a"}).status_code == 409
    (run / "config.yaml").write_text("x")
    assert client.post("/system/prune", data={"run": "../a"}).status_code == 404
    assert client.post("/system/prune", data={"run": "a"}).status_code == 303
    assert queue.entries()[0].argv == (
        "cache",
        str(run / "config.yaml"),
        "--prune=true",
    )


def test_a_run_is_resumed_where_its_job_owns_its_folder(client, ui, queue):
    text = (
        (ROOT / "config/examples/quickstart.yaml")
        .read_text("utf-8")
        .replace(MODEL, str(ROOT / MODEL))
    )
    for name in ("quickstart", "moved"):
        (made_run(ui, name) / "config.yaml").write_text(text, encoding="utf-8")
    made_run(ui, "bare")
    assert client.post("/runs/bare/resume").status_code == 409
    refused = client.post("/runs/moved/resume", headers={"accept": "text/plain"})
    assert (
        refused.status_code == 409
        and "not to" in refused.text
        and str(ui.output / "moved") in refused.text
    )
    answer = client.post("/runs/quickstart/resume")
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        f"/queue/{queue.entries()[0].id}",
    )
    assert client.post("/runs/quickstart/resume").status_code == 409  # it waits already
    assert [entry.argv for entry in queue.entries()] == [
        (str(ui.output / "quickstart" / "config.yaml"),)
    ]
    assert client.post("/runs/none/resume").status_code == 404


def test_a_request_reaches_a_run_that_runs_and_no_other(client, ui):
    run = made_run(ui, "a")
    assert client.post("/runs/a/control", data={"request": "stop"}).status_code == 409
    with run_lock(run):
        for wanted in ("stop", "save_now", "sample_now"):
            answer = client.post("/runs/a/control", data={"request": wanted})
            assert answer.status_code == 303 and answer.headers["location"] == "/runs/a"
        assert (
            client.post("/runs/a/control", data={"request": "../x"}).status_code == 400
        )
    assert sorted(path.name for path in (run / "control").iterdir()) == [
        "sample_now",
        "save_now",
        "stop",
    ]


@pytest.mark.parametrize("kind", ["ui", "queue"])
def test_a_job_that_never_ends_is_not_queued(
    client: TestClient, ui: Ui, kind: str
) -> None:
    job = f"job: extension\nconfig:\n  name: x\n  process:\n  - type: {kind}\n"
    answer = client.post("/new", data={"yaml": job, "action": "start"})
    assert answer.status_code == 400 and "never ends" in answer.text
    assert not list(ui.own.glob("queue/*.json"))
    ui.jobs.mkdir(exist_ok=True)
    file = ui.jobs / "x.yaml"
    file.write_text(job)
    with pytest.raises(UserError, match="never ends"):
        planned([str(file)], str(ui.jobs))


def test_what_a_tool_has_said_is_shown_and_a_run_has_a_page_for_it(ui, client, queue):
    tool, job = (
        queue.add(["inspect", "a"], "tool").id,
        queue.add(["inspect", "b"], "job").id,
    )
    queue.save(queue.entry(tool), state=DONE)
    queue.save(
        queue.entry(job), state=DONE, runs=(str(made_run(ui, "b", status="finished")),)
    )
    for id_ in (tool, job):
        queue.log(id_).write_text(f"wrote {id_}.png\n")
    page = client.get("/queue").text
    assert f"wrote {tool}.png" in page and f"wrote {job}.png" not in page


def test_why_a_run_failed_is_told_as_on_its_page(ui, client, queue):
    error = "OutOfMemory: out of memory with a.jpg"
    run = made_run(ui, "big", status="failed", step=12, error=error)
    entry = queue.add(["inspect", "a"], "big")
    queue.save(entry, state=FAILED, exit_code=1, attempts=1, runs=(str(run),))
    page = client.get("/queue").text
    assert "It ran out of memory at step 12." in page and "exit code 1" not in page


def test_the_images_that_a_tool_has_written_are_on_the_page(
    ui, client, queue, tmp_path
):
    from PIL import Image

    tool, folder = queue.add(["inspect", "a"], "tool").id, tmp_path / "generated"
    folder.mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "a 1.png")
    (folder / "no image.png").write_text("text")
    queue.save(queue.entry(tool), state=DONE, cwd=str(tmp_path))
    queue.log(tool).write_text(
        "1/3 generated/a 1.png\n2/3 generated/no image.png\n3/3 generated/gone.png\n"
    )
    assert client.get("/queue").text.count("?side=400") == 2
    answer = client.get(f"/queue/{tool}/images/0")
    assert Image.open(BytesIO(answer.content)).size == (64, 48)
    # no image, none there, no other size
    for place, status in (
        ("1", 415),
        ("2", 404),
        ("0?side=9999", 200),
    ):
        assert client.get(f"/queue/{tool}/images/{place}").status_code == status
    assert client.get("/queue/000099/images/0").status_code == 404


@pytest.fixture
def job(ui: Ui) -> Path:
    """A job of a dataset of three images."""
    (ui.datasets / "owl").mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (64, 48)).save(ui.datasets / "owl" / f"{name}.png")
    path = ui.jobs / "owl.yaml"
    path.parent.mkdir()
    path.write_text(
        "job: extension\nconfig:\n  name: owl\n  process:\n  - type: sd_trainer\n"
        f"    datasets:\n    - folder_path: {ui.datasets / 'owl'}\n    train: {{steps: 240}}\n"
    )
    return path


def test_an_entry_has_pictures_and_a_sentence_instead_of_its_command(
    ui, client, queue, job
):
    queue.add([str(job)], "owl")
    samples = made_run(ui, "fox", status="finished") / "samples"
    samples.mkdir()
    for step in (0, 10):
        Image.new("RGB", (32, 24)).save(samples / f"{step:09d}_0.png")
    words = ["generate", "--prompt=a <fox>", "--output=output/fox/tried"]
    tried = queue.add(words, "Try it: fox")
    page = client.get("/queue").text
    owl, fox = re.findall(r'(?s)<li class="card entry">.*?</li>', page)
    assert "Training, 240 steps with the images of owl." in owl
    assert re.findall(r"/thumbs/(\w)", owl) == ["a", "b"]
    assert "Images of “a &lt;fox&gt;”." in fox and 'href="/runs/fox"' in fox
    assert re.findall(r"fox/samples/(\d+)_0", fox) == ["000000000", "000000010"]
    assert "--output" not in page and "owl.yaml" not in page
    log = client.get(f"/queue/{tried.id}/log").text
    assert "generate '--prompt=a <fox>' --output=output/fox/tried" in log


def test_the_path_and_the_images_are_there_from_the_click_on(ui, client, queue, job):
    entry = queue.add([str(job)], "owl")
    page = client.get(f"/queue/{entry.id}").text
    assert "Begins in a moment" in page and page.count("/datasets/owl/thumbs/") == 3
    assert re.search(
        r'(?s)<nav class="path".*?<li class="now"><a[^>]*>.*?Training ?</a>', page
    )
    assert re.findall(r'<li class="(?:now|done)"><i', page) == []
    # its folder is there before the copy of its job
    run = made_run(ui, "owl", status="running", step=None, now={"phase": "reading"})
    queue.save(entry, state=RUNNING, runs=(str(run),), attempts=1)
    queue.log(entry.id).write_text("waiting for the extension x. run.py --without x\n")
    with (queue.folder / "runner.lock").open("a") as file:
        assert module.try_lock(file)
        assert "--without" not in client.get(f"/queue/{entry.id}").text
    with run_lock(run):
        page = client.get("/runs/owl").text
    assert page.count("/datasets/owl/thumbs/") == 3
    assert 'href="/datasets/owl"' in page

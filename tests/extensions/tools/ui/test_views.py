"""The pages of runs: what they show of folders that are whole, hostile, damaged and
gone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.shared.feed import log_since
from extensions.tools.shared.html_page import PAGES, texts
from extensions.tools.ui.queue import Queue, planned
from extensions.tools.ui.state import HERE, Ui
from extensions.tools.ui.views.queue import queue_of
from toolkit.files.now import Now
from toolkit.train.lock import run_lock

HOSTILE = "<script>alert(1)</script>\"'`{{7*7}}"
SECRET = "hf_abcdefghijklmnopqrstuvwxyzABCDEF12"


def test_runs_are_listed_the_running_and_the_latest_first(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("old", updated="2026-11-01T10:00:00Z")
    make_run("new", updated="2026-11-02T10:00:00Z")
    make_run("job/process", status="stopped", step=5)
    found = client.get("/", headers={"accept": "application/json"}).json()
    assert [(row["id"], row["status"], row["step"]) for row in found] == [
        ("new", "finished", 10),
        ("old", "finished", 10),
        ("job:process", "stopped", 5),
    ]
    text = client.get("/?q=OL").text
    assert "/runs/old" in text and "/runs/new" not in text
    text = client.get("/?q=stop+pro").text
    assert text.count("<article") == 1 and "process</a>" in text
    assert "about 0.00 so far" in text  # 10 steps of 0.5 s at 2 per hour


def test_every_page_is_whole_html_without_a_defect(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one"), make_run("two")
    addresses = ("/", "/runs/one", "/compare?run=one&run=two@0", "/no", "/runs/none")
    for path in addresses:
        text = client.get(path, headers={"accept": "text/html"}).text
        assert text.rstrip().endswith("</html>"), path
        own = text.replace("http://localhost:8675", "")
        for bad in ("style=", "onclick", "http://", "https://"):
            assert bad not in own, path
        has_image = re.search(r"<img [^>]*00000010_0\.png", text)
        assert bool(has_image) == (path in addresses[:3]), "without its script"


def test_the_page_of_a_run_shows_what_its_folder_holds(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    text = client.get("/runs/one").text
    for shown in (
        "000000010_0.png",
        "a photo",
        "one.safetensors",
        "the plan",
        "step 1",
        "name: one",
        "0.25",
    ):
        assert shown in text
    assert "samples/000000000_0.png" in client.get("/runs/one?step=0").text.replace(
        "%2F", "/"
    )
    assert client.get("/runs/one?step=nothing").status_code == 200


def test_news_of_a_run_have_all_facts_as_the_page_shows_them(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    ui.price_per_hour = 2.0
    make_run("one", steps=6000, step_s=2.0, epoch=59, samples=6000, lr=5e-5, skipped=2)
    page, facts = (
        client.get("/runs/one").text,
        client.get("/runs/one/news").json()["status"]["facts"],
    )
    assert (facts["epoch"], facts["cost"], facts["time"]) == ("60", "6.67", "50m00s")
    for key, text in facts.items():
        assert (f'<dd data-fact="{key}">{text}</dd>' in page) == bool(text)


def test_what_looks_wrong_is_a_notice(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    row = {
        "time": "2026-11-01T10:00:00Z",
        "event": "warning",
        "step": 7,
        "kind": "step_time",
    }
    rows = [
        row
        | {
            "message": f"message {number} {HOSTILE}",
            "cause": "a cause",
            "remedy": SECRET,
        }
        for number in range(7)
    ]
    rows += [{"event": "warning", "step": [], "message": {}}]
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in rows)
    text = client.get("/runs/one").text
    notices = text.partition('id="notices"')[2].partition("</section>")[0]
    assert (
        notices.count('class="notice"') == 5
        and "message 6" in notices
        and "message 2" not in notices
    )
    assert (
        "step 7" in notices
        and "a cause" in notices
        and "<script>" not in notices
        and SECRET not in notices
    )


def test_a_run_that_ended_early_says_why_and_which_files_are_as_good(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", steps=40, reason=f"no later step will be better {SECRET}")
    assert "As good by validation" not in client.get("/runs/one").text
    for step in (10, 20, 30):
        shutil.copy(folder / "one.safetensors", folder / f"one_{step:09d}.safetensors")
    rows = [
        {
            "step": step,
            "of": "x",
            "losses": {str(i): [mean + i + 0.001 * (i * step % 7)] for i in range(9)},
        }
        for step, mean in ((10, 0.5), (20, 0.4), (30, 0.4), (40, 0.6))
    ]
    path = folder / "validation_images.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = (
        client.get("/runs/one")
        .text.partition('<dl class="facts')[2]
        .partition("</dl>")[0]
    )
    for words in (
        "no later step",
        "steps 20, 30 (95% interval, 9 images)",
        "one_000000020.safetensors",
        "20 of 40",
    ):
        assert words in facts
    assert SECRET not in facts
    for damaged in (
        path.read_bytes()[:300],
        bytes(range(256)) * 20,
        b'{"step": 1, "losses": {"a": [1e999]}}\n',
    ):
        path.write_bytes(damaged)
        assert client.get("/runs/one").status_code == 200


def test_samples_and_files_come_whole_small_and_by_ranges(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    whole = client.get("/runs/one/samples/000000010_0.png")
    assert whole.content == (folder / "samples" / "000000010_0.png").read_bytes()
    small = client.get("/runs/one/samples/000000010_0.png?side=16")
    assert Image.open(BytesIO(small.content)).format == "WEBP"
    weights = (folder / "one.safetensors").read_bytes()
    part = client.get(
        "/runs/one/files/one.safetensors", headers={"range": "bytes=10-19"}
    )
    assert (part.status_code, part.content) == (206, weights[10:20])
    answer = client.get("/runs/one/files/one.safetensors")
    assert answer.content == weights
    assert answer.headers["content-disposition"].startswith("attachment")
    assert len(client.get("/runs/one/files/one.safetensors?hash=1").text) == 64


@pytest.mark.slow
def test_a_prompt_over_the_steps_is_an_animation(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    """In order of steps, each image with its step, made once, of one size."""
    samples = make_run("one", sampled=(0, 5, 10)) / "samples"
    for step, green in ((0, 90), (5, 200), (10, 20)):
        size = (160, 120) if step else (160, 160)
        image = Image.new("RGB", size, (10, green, 90))
        image.save(samples / f"{step:09d}_1.png")
    page = client.get("/runs/one").text
    for kind in ("webp", "gif"):
        address = f"/runs/one/animations/1.{kind}"
        assert f'href="{address}" download' in page
        answer = client.get(address)
        assert f"one_1.{kind}" in answer.headers["content-disposition"]
        with Image.open(BytesIO(answer.content)) as film:
            assert (film.n_frames, film.size, film.info["loop"]) == (3, (160, 160), 0)
            frames = []
            for frame in range(3):
                film.seek(frame)
                frames.append(film.convert("RGB"))
        greens = [image.getpixel((80, 60))[1] for image in frames]
        assert greens == pytest.approx([90, 200, 20], abs=8)
        corners = [image.crop((0, 130, 80, 160)) for image in frames]
        assert all(corner.convert("L").getextrema()[1] > 220 for corner in corners)
        assert len({corner.tobytes() for corner in corners}) == 3
    for bad in ("2.webp", "1.png", "..webp"):
        assert client.get(f"/runs/one/animations/{bad}").status_code == 404
    (samples / "000000005_1.png").write_bytes(b"cut")
    assert client.get("/runs/one/animations/1.gif").status_code == 415
    make_run("two", sampled=(10,))
    assert "/animations/" not in client.get("/runs/two").text


def test_a_name_leads_nowhere_else(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    outside = ui.output.parent / "outside"
    shutil.copytree(folder, outside)
    (ui.output / "link").symlink_to(outside)
    (folder / "samples" / "000000010_9.png").symlink_to("/etc/hostname")
    for path in (
        "/runs/%2e%2e", "/runs/..%2f..%2fetc", "/runs/one%00", "/runs/one:..", "/runs/%E2%80%A5",
        "/runs/one/samples/..%2frun.json", "/runs/one/samples/run.json", "/runs/one/samples/000000010_0.png%00.html",
        "/runs/one/files/run.json", "/runs/one/files/../run.json", "/runs/one/files/config.yaml",
        "/runs/one/files/..%2f..%2fsecret.safetensors", "/runs/one/files//etc/passwd", "/runs/link",
        "/runs/one:samples", "/runs/one/references/0/0", "/runs/one/references/-1/0",
        "/runs/one/samples/000000010_9.png",
    ):  # fmt: skip
        assert client.get(path).status_code == 404, path


def test_hostile_text_is_shown_as_text_and_secrets_are_not(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="failed", error=f"{HOSTILE} {SECRET}")
    event = {
        "event": "sample",
        "step": 10,
        "files": ["000000010_0.png"],
        "prompts": [HOSTILE],
        "time": HOSTILE,
    }
    with (folder / "events.jsonl").open("a") as file:
        file.write(
            json.dumps(event)
            + "\n"
            + json.dumps({"event": HOSTILE, "step": 4, "token": SECRET})
            + "\n"
        )
    (folder / "log.txt").write_text(f"{HOSTILE} {SECRET}\n")
    (folder / "config.yaml").write_text(f"{HOSTILE}\ntoken: {SECRET}\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 1.0}) + "\n")
    for path in (
        "/",
        "/runs/one",
        "/compare?run=one",
        "/runs/one/news",
        "/runs/one/curves",
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        if answer.headers["content-type"].startswith("text/html"):
            assert "<script>alert" not in answer.text
            assert "49" not in answer.text.split("<h1>")[1].split("</h1>")[0]


@pytest.mark.slow
def test_damage_of_any_file_leaves_a_page(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    # without it and without run.json there is no run
    (folder / "run.lock").write_text("")

    def is_shown(*damage: object) -> None:
        for address in ("/", "/runs/one", "/runs/one/curves", "/compare?run=one"):
            assert client.get(address).status_code == 200, (damage, address)

    for name in ("run.json", "metrics.jsonl", "events.jsonl", "log.txt", "config.yaml"):
        path, whole = folder / name, (folder / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], bytes(range(256)) * 20):
            path.write_bytes(damaged)
            is_shown(name, damaged[:9])
        path.unlink()
        is_shown(name, "missing")
        path.mkdir()
        is_shown(name, "a folder")
        path.rmdir()
        path.write_bytes(whole)
    shutil.rmtree(folder / "samples")
    is_shown("samples")


ODD = {
    "no number": {"loss": float("nan"), "step_s": float("inf")},
    "too large": {"status": "running", "step": 9, "steps": 10**400, "loss": 1e308},
    "too far": {"step": 10**400},
    "surrogates": {"name": "\ud800", "error": "\udfff"},
    "other types": {
        "name": [1],
        "status": 5,
        "step": "x",
        "steps": {},
        "error": {"a": 1},
        "updated": 5,
    },
}


@pytest.mark.parametrize("kind", [*ODD, "deep", "folder"])
def test_no_run_takes_the_pages_away(
    client: TestClient, ui: Ui, make_run: Callable[..., Path], kind: str
) -> None:
    """Nor those of all runs, where one of them is odd."""
    folder = make_run("one")
    make_run("two")
    status = json.loads((folder / "run.json").read_text()) | ODD.get(kind, {})
    (folder / "run.json").write_text(json.dumps(status))
    odd = {
        **ODD.get(kind, {}),
        "a": json.loads("[" * 900 + "]" * 900) if kind == "deep" else [float("nan")],
    }
    (folder / "events.jsonl").write_text(
        json.dumps({"event": "save", "\ud800": "\ud800", **odd, "step": 1}) + "\n"
    )
    if kind == "folder":
        (ui.output / "\udcff").mkdir()
        shutil.copy(folder / "run.json", ui.output / "\udcff")
    for path in (
        "/",
        "/runs/one",
        "/runs/one/news",
        "/runs/one/curves",
        "/runs/one/log",
        "/compare?run=one&run=two",
    ):
        for kinds in ("text/html", "application/json"):
            answer = client.get(path, headers={"accept": kinds})
            assert answer.status_code == 200, path
            if answer.headers["content-type"] == "application/json":
                json.loads(answer.text, parse_constant=pytest.fail)
    text = client.get("/runs/one").text.split('id="data">')[1].split("</script>")[0]
    json.loads(text, parse_constant=pytest.fail)


def test_a_run_whose_name_is_not_utf_8_has_its_page(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    shutil.copytree(make_run("two"), ui.output / "caf\udce9" / "\udcff")
    found = client.get("/", headers={"accept": "application/json"}).json()
    assert {row["id"] for row in found} == {"two", r"caf\xe9:\xff"}
    address = "/runs/caf%5Cxe9%3A%5Cxff"
    assert f'href="{address}"' in client.get("/").text
    links = re.findall(rf'(?:href|src)="({address}/[^"#]+)"', client.get(address).text)
    assert len(links) >= 7 and {client.get(link).status_code for link in links} == {200}
    assert (
        client.get(f"/compare?run=two&run={address.rpartition('/')[2]}").status_code
        == 200
    )


def test_a_run_whose_file_leads_elsewhere_shows_nothing_of_it(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    folder, outside = make_run("one"), ui.output.parent / "outside.txt"
    names = ("run.json", "log.txt", "config.yaml", "metrics.jsonl", "events.jsonl")
    for name in names:
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        for path in ("/runs/one", "/runs/one/log", "/compare?run=one", "/new?from=one"):
            assert client.get(path).status_code == 404, (name, path)
        (folder / name).unlink()
        outside.rename(folder / name)


def test_a_pipe_is_not_waited_for(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    image = "samples/000000010_0.png"
    for name in ("log.txt", "config.yaml", "events.jsonl", "metrics.jsonl", image):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    assert client.get("/runs/one").status_code == 200
    for path in (image, f"{image}?side=160"):
        assert client.get(f"/runs/one/{path}").status_code == 415, path


def test_a_run_that_vanishes_is_said_to_be_gone(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    cursor = client.get("/runs/one/news").json()["cursor"]
    shutil.rmtree(folder)
    for path in (f"/runs/one/news?since={cursor}", "/runs/one"):
        assert client.get(path).status_code == 404, path


@pytest.mark.slow
def test_a_config_that_no_job_has_is_not_read(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    (folder / "config.yaml").write_text("a: " + "x" * 2**19)
    assert "is not shown" in client.get("/runs/one").text
    assert client.get("/new?from=one").status_code == 413


def test_what_is_new_comes_once_and_in_order(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="running")
    first = client.get("/runs/one/news").json()
    assert "rows" not in first and len(first["events"]) == 2
    seen, steps, lines = first["cursor"], [], []
    for step in range(11, 31):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 0.1}) + "\n")
        with (folder / "log.txt").open("a") as file:
            file.write(f"line {step}\nhalf")
        if step % 3 == 0:
            news = client.get(f"/runs/one/news?since={seen}").json()
            seen, steps = (
                news["cursor"],
                [*steps, *(row["step"] for row in news.get("rows", []))],
            )
            lines.append(news["log"])
        with (folder / "log.txt").open("r+") as file:
            file.truncate(os.path.getsize(folder / "log.txt") - len("half"))
    assert steps == list(range(11, 31))
    assert "".join(lines) == "".join(f"line {step}\n" for step in range(11, 31))
    assert client.get(f"/runs/one/news?since={seen}").json().keys() == {
        "status",
        "cursor",
    }


def test_a_cursor_of_anything_is_survived(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    metrics, *rest = client.get("/runs/one/news").json()["cursor"].split("_")
    no_digits = (
        "_".join([metrics.rpartition("-")[0] + "-²", *rest]),
        f"{metrics}_{rest[0]}_²",
    )
    for odd in (
        "x",
        "_",
        "__",
        "1-2_3_4",
        "9" * 400,
        *no_digits,
        "1-1_1-1-0000000000000000_99999999999",
        "é_é_é",
    ):
        assert client.get("/runs/one/news", params={"since": odd}).status_code == 200
    assert client.get("/compare", params={"run": "one@²"}).status_code == 404


def test_a_log_is_shown_from_its_end_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {number}\n" for number in range(20_000)) + "half")
    text, end = log_since(log)
    assert (
        text.startswith("line ")
        and text.endswith("line 19999\n")
        and len(text) < 66_000
    )
    assert log_since(log, str(end)) == ("", end)
    log.write_text("anew\n")
    assert log_since(log, str(end)) == ("anew\n", 5)


def test_a_file_is_marked_and_the_mark_survives(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    answer = client.post(
        "/runs/one/favourite", data={"file": "one.safetensors"}, follow_redirects=False
    )
    assert answer.status_code == 303
    assert "★" in client.get("/runs/one").text
    assert 'name="marked" value="true"' in client.get("/runs/one").text
    client.post(
        "/runs/one/favourite", data={"file": "one.safetensors", "marked": "true"}
    )
    assert "★" not in client.get("/runs/one").text
    assert client.post("/runs/one/favourite", data={"file": "../x"}).status_code == 404


def test_settings_that_differ_are_shown(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    folder = make_run("two")
    (folder / "config.yaml").write_text(
        "job: extension\nconfig:\n  name: two\n  process:\n    - {lr: 0.5}\n"
    )
    assert "+  name: one" in client.get("/runs/one?diff=two").text
    text = client.get("/compare?run=one&run=two").text
    assert "process.0.lr" in text and "0.5" in text
    assert client.get("/compare?" + "&".join(["run=one"] * 7)).status_code == 400


def test_each_picture_of_a_comparison_stands_beside_its_own_prompt(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    for name, prompts in (("one", ["owl", "cat"]), ("two", ["cat", "a drawing"])):
        events = make_run(name) / "events.jsonl"
        rows = [json.loads(line) for line in events.read_text().splitlines()]
        events.write_text(
            "".join(f"{json.dumps(row | {'prompts': prompts})}\n" for row in rows)
        )
    text = client.get("/compare?run=one&run=two").text
    rows = re.findall(r'(?s)<tr><th class="prompt">(.*?)</th>(.*?)</tr>', text)
    assert [
        (
            prompt,
            re.findall(r"(?s)(one|two)/samples/\w+_(\d)\.png\?.*?alt=\"(.*?)\"", cells),
        )
        for prompt, cells in rows
    ] == [
        ("cat", [("one", "1", "one: cat"), ("two", "0", "two: cat")]),
        (
            "Each with its own prompt",
            [("one", "0", "one: owl"), ("two", "1", "two: a drawing")],
        ),
    ]
    assert re.findall(r'<p class="faint">(.*?)</p>', rows[1][1]) == ["owl", "a drawing"]


def test_the_report_is_a_file_to_keep(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    answer = client.get("/runs/one/report")
    assert answer.status_code == 200
    assert (
        answer.headers["content-disposition"] == "attachment; filename*=utf-8''one.html"
    )
    assert b"Content-Security-Policy" in answer.content


def test_all_words_are_in_one_file() -> None:
    """Every text that a template names is there: a page of them all would fail
    otherwise, but a branch may be rare."""
    import re

    for template in (*(HERE / "templates").glob("*.j2"), *PAGES.glob("*.j2")):
        for path in re.findall(r"\bt\.((?:[a-z_]+\.)*[a-z_]+)", template.read_text()):
            node = texts()
            for key in path.split("."):
                if isinstance(node, str) or key in ("format", "items", "get"):
                    break
                assert key in node, f"{template.name}: {path}"
                node = node[key]


def test_a_run_that_was_killed_says_what_it_did_last(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    now = Now("sampling", 2, 3, left_s=50.0, share=0.4).to_json()
    make_run("one", status="running", now=now, step=120, steps=2000)
    text = client.get("/runs/one").text
    state = text.partition('id="state"')[2].partition("</p>")[0]
    assert "killed" in state and "last: sampling 2 of 3" in state
    assert "120 / 2,000" in text and 'class="doing"' not in state
    assert "last: sampling 2 of 3" in client.get("/").text


def test_a_run_that_was_asked_to_stop_says_so(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run(status="running")
    (folder / "control").mkdir()
    with run_lock(folder):
        assert "stopping after a save" not in client.get("/runs/one").text
        (folder / "control" / "stop").touch()
        page = client.get("/runs/one").text
        assert re.search(r"disabled><svg.*</svg> stopping after a save", page)


def test_the_workflow_for_comfyui_is_a_download(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    assert "one_comfyui.json" not in client.get("/runs/one").text
    assert client.get("/runs/one/files/one_comfyui.json").status_code == 404
    (folder / "one_comfyui.json").write_text('{"nodes": []}', encoding="utf-8")
    assert (
        'href="/runs/one/files/one_comfyui.json" download'
        in client.get("/runs/one").text
    )
    answer = client.get("/runs/one/files/one_comfyui.json")
    assert (
        answer.json() == {"nodes": []}
        and "attachment" in answer.headers["content-disposition"]
    )
    assert client.get("/runs/one/files/run.json").status_code == 404


def test_a_warning_is_a_sentence_with_its_numbers_under_why(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", steps=40, sampled=(0, 10, 20))
    row = {"event": "warning", "step": 20, "kind": "texture", "message": "texture 0.23"}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    sentence, _, why = (
        client.get("/runs/one")
        .text.partition('id="notices"')[2]
        .partition("Why</summary>")
    )
    assert "From step 20 the samples look grainy." in sentence
    assert "/compare?run=one@10&amp;run=one@20" in sentence and "0.23" not in sentence
    assert why.startswith("texture 0.23")


def test_samples_of_no_training_are_called_the_model_alone(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    alone = '<span class="faint alone">This is the model before'
    for query, is_alone in (("", False), ("?step=0", True), ("?step=10", False)):
        page = client.get(f"/runs/one{query}").text
        assert (alone in page) is is_alone, query
        links = re.findall(r'href="/runs/one\?step=(\d+)#samples"', page)
        assert links == ["0", "10"]


def test_the_first_page_shows_what_the_program_makes_and_starts_the_mascots(
    client: TestClient, ui: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Queue, "start_runner", lambda queue: None)
    page = client.get("/").text
    assert "Teach an image model your character." in page
    places = re.findall(r'<img src="(/static/mascot[^"]+)"', page)
    assert len(places) == 10
    assert {client.get(place).status_code for place in places} == {200}
    answer = client.post("/start", follow_redirects=False)
    [entry] = queue_of(ui).entries()
    assert answer.headers["location"] == f"/queue/{entry.id}"
    folders = planned(entry.argv, entry.cwd)["folders"]
    assert folders == [str(ui.output / "quickstart")]
    (ui.output / "quickstart").mkdir()
    again = client.post("/start", follow_redirects=False)
    assert again.headers["location"] == "/runs/quickstart"

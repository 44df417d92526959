"""Votes on the page: which images are shown, what a click keeps, and the job that
learns from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.shared.candidates import Group, add_groups
from extensions.tools.shared.image_files import write_picture
from extensions.tools.ui import preference_job as jobs
from extensions.tools.ui.commands import Checked, Message
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.queue import DONE, Queue
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views import votes
from tests.conftest import ROOT
from tests.model_folders import write_header
from tests.running import lines
from toolkit.config import load_job
from toolkit.extension import discover

HTML = {"accept": "text/html"}
QUICKSTART = ROOT / "config" / "examples" / "quickstart.yaml"


def shown(page: str) -> dict[str, str]:
    """The fields of the pair that a page shows."""
    return dict(
        re.findall(
            r'<input type="hidden" name="(left|right|count)" value="([^"]*)">', page
        )
    )


@pytest.fixture
def voted(ui: Ui) -> Path:
    """A dataset with two images each of a prompt and of an edit."""
    folder = ui.datasets / "cats_votes"
    folder.mkdir()
    for name, colour in zip(
        ("a", "b", "c", "d", "photo"),
        ("teal", "red", "lime", "navy", "gold"),
        strict=True,
    ):
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    edit = Group(
        "make it <night>",
        ("photo.png",),
        "",
        (1, 2),
        ((), ()),
        files=("c.png", "d.png"),
    )
    add_groups(
        folder,
        [Group("a cat", seed=(1, 2), lora=((), ()), files=("a.png", "b.png")), edit],
    )
    return folder


def test_samples_of_a_run_are_voted_on_without_a_script(
    client: TestClient, ui: Ui, make_run: Callable[..., Path]
) -> None:
    folder = make_run(sampled=(0, 5, 10))
    assert "/votes/runs/one" in client.get("/runs/one").text
    page = client.get("/votes/runs/one", headers=HTML).text
    assert "0 of 6 pairs" in page and "a photo" in page
    more = f"source={folder}&amp;output={ui.datasets}/one_votes&amp;prompt=a+photo&amp;prompt=a+%3Cb".replace(
        "/", "%2F"
    )
    assert f'href="/tools/prefer?{more}' in page
    pair = shown(page)
    assert {
        re.fullmatch(r"0000000(\d\d)_0\.png", pair[side])[1]
        for side in ("left", "right")
    } == {"10", "05"}
    for side in ("left", "right"):
        assert (
            client.get(f"/votes/runs/one/images/{pair[side]}").headers["content-type"]
            == "image/png"
        )
    answer = client.post("/votes/runs/one", data=pair | {"vote": "right"}, headers=HTML)
    assert (
        answer.history[0].status_code == 303
        and "1 of 6 pairs, 1 to learn from" in answer.text
    )
    client.post("/votes/runs/one", data=pair | {"vote": "left"})  # pressed twice
    (row,) = lines(folder / "samples" / "votes.jsonl")
    assert row == {
        "better": pair["right"],
        "worse": pair["left"],
        "prompt": "a photo",
        "control": [],
    }
    assert (
        shown(answer.text)["left"] not in pair.values()
        and "a &lt;b&gt;bold" in answer.text
    )
    # of a page that is not the latest
    client.post("/votes/runs/one", data={"vote": "undo", "count": "0"})
    assert lines(folder / "samples" / "votes.jsonl") == [row]
    assert (
        shown(client.post("/votes/runs/one", data={"vote": "undo", "count": "1"}).text)
        == pair
    )


def test_edits_are_shown_with_what_they_edit(client: TestClient, voted: Path) -> None:
    assert "/votes/datasets/cats_votes" in client.get("/datasets/cats_votes").text
    for choice in ("same", "both bad"):
        page = client.get("/votes/datasets/cats_votes").text
        client.post("/votes/datasets/cats_votes", data=shown(page) | {"vote": choice})
    assert (
        "make it &lt;night&gt;" in page
        and f"/control/{votes.digest('photo.png')}" in page
    )
    answer = client.get(
        f"/votes/datasets/cats_votes/control/{votes.digest('photo.png')}"
    )
    assert answer.headers["content-type"] == "image/webp"
    done = client.get("/votes/datasets/cats_votes").text
    assert "Every pair has a vote" in done and "2 of 2 pairs, 0 to learn from" in done
    assert re.search(r'<button class="main" disabled>Train', done)
    assert [row["control"] for row in lines(voted / "votes.jsonl")] == [
        [],
        ["photo.png"],
    ]


def test_images_of_a_tool_are_voted_on_from_the_queue(
    client: TestClient, ui: Ui
) -> None:
    queue, folder = Queue(ui.output / ".ui" / "queue"), ui.output.parent / "grid"
    entry = queue.add(["grid", "--prompt=x"], "a grid", ui.output.parent)
    base = {
        "prompt": "tea",
        "reference": [],
        "model": {"name_or_path": "m"},
        "base": {},
        "steps": 1,
        "cfg": 1,
    }
    base |= {"negative": "", "width": 32, "height": 32, "flow_shift": None}
    for seed, name in ((1, ""), (2, "x"), (3, "y")):
        lora = [str(ui.output.parent / f"{name}.safetensors")] if name else []
        settings = base | {
            "seed": seed,
            "lora": [{"path": path, "strength": 1, "sha256": "0"} for path in lora],
        }
        write_picture(
            folder / f"{seed}{len(lora)}.png",
            Image.new("RGB", (32, 32), (seed, 0, 0)),
            settings,
        )
    Image.new("RGB", (32, 32)).save(folder / "mine.png")
    assert client.get(f"/votes/queue/{entry.id}").status_code == 404
    queue.save(entry, state=DONE)
    queue.log(entry.id).write_text(f"1/1 {folder / '31.png'}\n")
    assert f"/votes/queue/{entry.id}" in client.get("/queue").text
    page = client.get(f"/votes/queue/{entry.id}").text
    pair = shown(page)
    assert "0 of 3 pairs" in page and {pair["left"], pair["right"]} <= {
        "10.png",
        "21.png",
        "31.png",
    }
    for name in ("old", "x", "y"):
        (ui.output.parent / f"{name}.safetensors").touch()
    while pair:  # the images of y are always better
        side = max(
            ("left", "right"), key=lambda side: (pair[side] == "31.png", pair[side])
        )
        pair = shown(
            client.post(f"/votes/queue/{entry.id}", data=pair | {"vote": side}).text
        )
        pair = pair if "left" in pair else {}
    assert lines(folder / "votes.jsonl")[0]["prompt"] == "tea"
    files = re.findall(
        r"<option>(.*?)</option>", client.get(f"/votes/queue/{entry.id}").text
    )
    assert [Path(file).name for file in files] == ["y.safetensors", "x.safetensors"]
    assert client.get(f"/votes/queue/{entry.id}/images/mine.png").status_code == 404


def test_nothing_else_is_shown_or_written(
    client: TestClient, ui: Ui, voted: Path
) -> None:
    (ui.output.parent / "secret.png").write_bytes((voted / "a.png").read_bytes())
    (ui.output.parent / "secret.txt").write_text("secret")
    bad = Group(
        "x",
        ("../../secret.txt",),
        "",
        (1, 2),
        ((), ()),
        files=("../../secret.png", "linked.png"),
    )
    add_groups(voted, [bad])
    (voted / "linked.png").symlink_to(ui.output.parent / "secret.png")
    for place in (
        "runs/none",
        "queue/000001",
        "queue/x",
        "datasets/none",
        "datasets/..",
        "datasets/.trash",
        "jobs/x",
    ):
        assert client.get(f"/votes/{place}").status_code == 404, place
    here = "/votes/datasets/cats_votes"
    for name in (
        "photo.png",
        "votes.jsonl",
        "..%2F..%2Fsecret.png",
        "%2Fetc%2Fpasswd",
        "linked.png",
    ):
        assert client.get(f"{here}/images/{name}").status_code == 404, name
    secret = votes.digest("../../secret.txt")
    # not an image
    assert client.get(f"{here}/control/{secret}").status_code == 415
    assert client.get(f"{here}/control/{secret}x").status_code == 404
    for left, right in (
        ("a.png", "c.png"),
        ("a.png", "photo.png"),
        ("a.png", ""),
        ("a.png", "a.png"),
    ):
        client.post(here, data={"left": left, "right": right, "vote": "left"})
    assert not (voted / "votes.jsonl").exists()
    assert (
        client.post(f"{here}/train", data={"lora": ""}).text
        == "No pair has a better image yet.\n"
    )
    client.post(here, data={"left": "a.png", "right": "b.png", "vote": "left"})
    assert client.post(f"{here}/train", data={"lora": "/etc/passwd"}).text.startswith(
        "This LoRA file is gone, or did"
    )
    (voted / "candidates.jsonl").write_text("mine\n")
    answer = client.get(here, headers=HTML)
    assert (
        answer.status_code == 409
        and "candidates.jsonl:1: was not written by this program" in answer.text
    )
    assert not list(ui.jobs.iterdir())


# ---------------------------------------------------------------- the job


def test_the_job_goes_on_from_the_job_of_the_lora(tmp_path: Path) -> None:
    lora = tmp_path / "one.safetensors"
    lora.write_bytes(b"")
    more = (
        "trigger_word: pipo\n      validation: {fraction: 0.1}\n      training_folder"
    )
    text = QUICKSTART.read_text().replace("training_folder", more)
    text = jobs.preference_job(
        JobText(text.replace("a pipo mascot", "a [trigger]")),
        "two",
        "v/votes.jsonl",
        "one.safetensors",
        45,
    )
    (tmp_path / "two.yaml").write_text(text)
    job = load_job(tmp_path / "two.yaml", discover().find_config, check_files=False)
    (entry,) = job.processes
    section = entry.section
    assert (job.name, section.train.batch_size, section.train.steps) == ("two", 4, 113)
    assert (section.save.save_every, section.sample.sample_every) == (29, 29)
    assert (
        section.network.pretrained_lora_path,
        section.train.preference.reference,
    ) == ("one.safetensors",) * 2
    assert [(each.captions_file, each.resolution) for each in section.datasets] == [
        ("v/votes.jsonl", (128,))
    ]
    assert (
        section.validation is None
        and section.trigger_word == ""
        and section.network.linear == 16
        and section.train.lr == 0.02
    )
    assert (
        section.all_pictures()[0].prompt.startswith("a pipo, ")
        and "[trigger]" not in text
    )
    again = text.replace("preference:", "preference:\n        beta: 500")
    alone = JobText(
        jobs.preference_job(JobText(again), "three", "v.jsonl", "", 3)
    ).data(("config", "process", 0))
    assert "pretrained_lora_path" not in alone["network"] and alone["train"][
        "preference"
    ] == {"beta": 500}
    assert alone["train"]["batch_size"] == 4  # it was for pairs already
    assert alone["train"]["steps"] == jobs.LEAST_STEPS


@pytest.mark.parametrize("matrix", ["lora_{}.weight", "lora_{}.default.weight"])
def test_a_lora_without_a_run_gets_a_new_job_of_its_rank(
    tmp_path: Path, tiny_model: Path, matrix: str
) -> None:
    lora, layer = (
        tmp_path / "mine.safetensors",
        "diffusion_model.transformer_blocks.0.attn.to_q",
    )
    write_header(
        {
            f"{layer}.{matrix.format('A')}": (6, 32),
            f"{layer}.{matrix.format('B')}": (32, 6),
        },
        lora,
    )
    job = jobs.base_job(None, str(lora), str(tiny_model), tmp_path, ["a cat", "a dog"])
    section = job.data(("config", "process", job.trainer))
    assert section["model"]["name_or_path"] == str(tiny_model)
    assert (section["network"]["linear"], section["network"]["linear_alpha"]) == (6, 6)
    assert job.prompts() == ["a cat", "a dog"]


def test_the_button_writes_the_job_and_puts_it_into_the_queue(
    client: TestClient,
    ui: Ui,
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run("one", sampled=(0, 10))
    config = json.dumps(
        {"job": "extension", "config": {"name": "one", "process": [PROCESS]}}
    )
    (folder / "config.yaml").write_text(config)
    monkeypatch.setattr(Queue, "start_runner", lambda self: None)
    found = Checked(
        errors=[Message((), "gone.png: is named in votes.jsonl:1 and is not an image")]
    )
    monkeypatch.setattr(votes, "check_job", lambda ui, text, *_: found)
    client.post(
        "/votes/runs/one",
        data=shown(client.get("/votes/runs/one").text) | {"vote": "left"},
    )
    page = client.get("/votes/runs/one").text
    lora = re.search(r"<option>(.*?one\.safetensors)</option>", page)[1]
    assert "Below 10 pairs" in page
    answer = client.post("/votes/runs/one/train", data={"lora": lora})
    assert (
        answer.status_code == 400 and "votes.jsonl:1 and is not an image" in answer.text
    )
    assert (
        '<a href="/jobs/one_voted.yaml">' in answer.text
        and not Queue(ui.output / ".ui" / "queue").entries()
    )
    # the file is as it was written, and is taken up again
    found = Checked(plan={"job": "one_voted", "processes": []})
    answer = client.post(
        "/votes/runs/one/train", data={"lora": lora}, follow_redirects=False
    )
    assert answer.headers["location"] == "/queue"
    (entry,) = Queue(ui.output / ".ui" / "queue").entries()
    assert (entry.argv, entry.name) == ((str(ui.jobs / "one_voted.yaml"),), "one_voted")
    data = JobText((ui.jobs / "one_voted.yaml").read_text()).data(
        ("config", "process", 0)
    )
    assert (
        data["network"]["pretrained_lora_path"]
        == data["train"]["preference"]["reference"]
        == lora
    )
    assert (
        Path(data["datasets"][0]["captions_file"]) == folder / "samples" / "votes.jsonl"
    )
    # it has been trained: the next one is another run
    (ui.output / "one_voted").mkdir()
    found = Checked(plan={"job": "one_voted_2", "processes": []})
    client.post("/votes/runs/one/train", data={"lora": lora}, follow_redirects=False)
    assert [entry.name for entry in Queue(ui.output / ".ui" / "queue").entries()] == [
        "one_voted",
        "one_voted_2",
    ]


PROCESS = {
    "type": "sd_trainer",
    "training_folder": "output",
    "datasets": [{"folder_path": "gone", "resolution": 64}],
    "train": {"steps": 2},
    "model": {"name_or_path": "m"},
}

"""New job: the form and the YAML are one job, what the command line says of it is
shown, nothing is overwritten."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.new.config import NewConfig
from extensions.tools.shared.html_page import texts
from extensions.tools.ui import commands
from extensions.tools.ui.commands import keys_of
from extensions.tools.ui.datasets import keep_view, open_dataset
from extensions.tools.ui.queue import Queue
from extensions.tools.ui.state import Ui, linked
from extensions.tools.ui.views.new import NUMBERS, TEXTS, plain
from tests.conftest import ROOT
from tests.extensions.tools.ui.conftest import client_of
from tests.html_browser import Browser
from tests.processes import until
from toolkit.files.writing import short
from toolkit.memory.estimate import GB
from toolkit.system.nvidia import TO_TRY

EXAMPLES = ROOT / "config" / "examples"
PHOTOS = EXAMPLES / "photos" / "40_photo"
EDIT = "Qwen/Qwen-Image-Edit-2509"
STEPS, FOLDER, NAME, MODEL = (
    "key:train.steps",
    "key:datasets[].folder_path",
    "key:config.name",
    "key:model.name_or_path",
)


class Form(HTMLParser):
    """What a browser without a script would send of the page's form, and the text of
    the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.text = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if given.get("type") == "radio" and "checked" not in given:
            return
        is_field = (
            tag in ("input", "select", "textarea") and given.get("name", "") != ""
        )
        assert not is_field or given["name"] not in self.fields, (
            f"two fields are named {given['name']}"
        )
        if tag == "input" and given.get("name") and given.get("type") != "file":
            self.fields[given["name"]] = given.get("value", "")
        if tag in ("select", "textarea") and given.get("name"):
            self._open, self.fields[given["name"]] = given["name"], ""
        if tag == "option" and "selected" in given:
            self.fields[self._open] = given["value"]

    def handle_endtag(self, tag: str) -> None:
        self._open = "" if tag in ("select", "textarea") else self._open

    def handle_data(self, data: str) -> None:
        if self._open and self.lasttag == "textarea":
            self.fields[self._open] += (
                data.removeprefix("\n") if not self.fields[self._open] else data
            )
        self.text += data


class Page:
    """A tab of a browser without a script."""

    def __init__(self, client: TestClient, address: str) -> None:
        self.client, self.answer = client, client.get(address)
        self.form = Form(self.answer.content.decode())

    def press(self, action: str, **changes: str) -> Page:
        """Presses a button after changing fields; no redirect is followed but the one to
        the draft, which is the form as it was sent."""
        self.form.fields |= {
            key.replace("__", ":"): value for key, value in changes.items()
        }
        # as browsers send it
        sent = {
            key: value.replace("\n", "\r\n") for key, value in self.form.fields.items()
        }
        self.answer = self.client.post("/new", data=sent | {"action": action})
        draft = self.answer.headers.get("location", "")
        if draft.startswith("/new?draft="):
            self.answer = self.client.get(draft)
        if self.answer.status_code != 303:
            self.form = Form(self.answer.content.decode())
        return self

    def fill(self, fields: dict[str, str], action: str = "check") -> Page:
        self.form.fields |= fields
        return self.press(action)

    @property
    def yaml(self) -> str:
        return self.form.fields["yaml"]

    def errors(self) -> list[str]:
        """As they are listed, each in one line."""
        listed = re.search(r'(?s)<ul class="errors">(.*?)</ul>', self.answer.text)
        items = re.findall("(?s)<li>(.*?)</li>", listed[1]) if listed else []
        return [" ".join(Form(item).text.split()) for item in items]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images, as the small model may be offered for."""
    folder = tmp_path_factory.mktemp("small") / "40_photo"
    shutil.copytree(PHOTOS, folder)
    for photograph in folder.glob("*.jpg"):
        with Image.open(photograph) as image:
            image.thumbnail((256, 256))
            image.save(photograph.with_suffix(".png"))
        photograph.unlink()
    return folder


@pytest.fixture
def ui(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Ui:
    """In an own working directory, with small images as a dataset and without a GPU;
    nothing starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("extensions.tools.ui.views.new.least_memory", lambda: 0)
    shutil.copytree(photos, tmp_path / "datasets" / "40_photo")
    return Ui(Path("output"), Path("datasets"), Path("config"), "", 2.0)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """What was put into the queue."""
    found: list[tuple[list[str], str]] = []
    entry = SimpleNamespace(id="000001")
    monkeypatch.setattr(
        Queue,
        "add",
        lambda queue, argv, name, *_, **__: found.append((list(argv), name)) or entry,
    )
    monkeypatch.setattr(Queue, "start_runner", lambda queue: None)
    return found


@pytest.fixture
def client(ui: Ui) -> TestClient:
    return client_of(ui, headers={"accept": "text/html"}, follow_redirects=False)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on the check: nothing is run, and each job is fine."""
    plan = {"job": "any", "processes": []}
    monkeypatch.setattr(
        "extensions.tools.ui.views.new.check_job",
        lambda *_: commands.Checked(plan=plan),
    )


@pytest.mark.parametrize(
    ("begin", "word"),
    [
        ("mirax, at sea", "mirax"),
        ("mirax", "mirax"),
        ("Zoë-7: at sea", "Zoë-7"),
        ("no, at sea", "mr"),  # a word of every language
        ("[trigger], at sea", "mr"),  # the job's own word is put there
        ("", "mr"),
    ],
)
def test_the_trigger_word_is_the_one_that_the_captions_begin_with(
    client: TestClient, ui: Ui, begin: str, word: str
) -> None:
    folder = ui.datasets / "mira"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{begin}" if number else "", "utf-8")
    page = Page(client, "/new?dataset=mira")
    assert page.form.fields["key:trigger_word"].startswith(word)
    proposed = yaml.safe_load(page.yaml)["config"]["process"][0]["trigger_word"]
    assert proposed == page.form.fields["key:trigger_word"]


def test_the_usual_keys_become_a_job_that_is_checked_saved_and_started(
    client: TestClient, ui: Ui, queued: list[tuple[list[str], str]]
) -> None:
    page = Page(client, "/new?dataset=40_photo")
    assert (page.form.fields[NAME], page.form.fields[FOLDER]) == (
        "photo",
        "datasets/40_photo",
    )
    page.fill(
        {STEPS: "90", NAME: "zuzu", "prompts": "[trigger] at sea\n[trigger], a hat"}
    )
    assert (
        "Ready to start" in page.form.text
        and "A new run in output/zuzu" in page.form.text
    )
    assert (
        'name: "zuzu"' in page.yaml and "steps: 90" in page.yaml and page.errors() == []
    )
    assert page.form.fields["prompts"] == "[trigger] at sea\n[trigger], a hat"
    assert page.press("start").answer.headers["location"] == "/queue/000001"
    assert queued == [(["config/zuzu.yaml"], "zuzu")]
    assert Path("config/zuzu.yaml").read_text(encoding="utf-8") == page.yaml


@pytest.mark.usefixtures("unchecked")
def test_a_field_changes_its_line_and_a_line_its_field(client: TestClient) -> None:
    page = Page(client, "/new?example=quickstart.yaml")
    before = page.yaml
    page.fill({STEPS: "77"})
    changed = [
        pair
        for pair in zip(before.splitlines(), page.yaml.splitlines(), strict=True)
        if pair[0] != pair[1]
    ]
    assert changed == [("        steps: 240", "        steps: 77")]
    page.fill({"yaml": page.yaml.replace("steps: 77", "steps: 55   # mine")})
    assert page.form.fields[STEPS] == "55" and "steps: 55   # mine" in page.yaml
    assert (
        "        sample_every: 9\n" in page.fill({"key:sample.sample_every": "9"}).yaml
    )
    page.fill({"yaml": page.yaml.replace("linear: 16", "linear: 8"), STEPS: "56"})
    assert (page.form.fields[STEPS], page.form.fields["key:network.linear"]) == (
        "56",
        "8",
    )
    assert "steps: 56   # mine" in page.yaml and "linear: 8" in page.yaml, (
        "both sides were changed at once"
    )


@pytest.mark.slow
def test_a_training_begins_from_a_lora_of_a_run_or_of_a_path(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    """The file stays when images and model change, and the check reads it."""
    START, KEY = "network.pretrained_lora_path", "key:network.pretrained_lora_path"
    file = make_run("zuzu") / "zuzu.safetensors"
    file.write_bytes(b"no LoRA")
    page = Page(client, "/new?dataset=40_photo")
    assert page.form.fields[KEY] == "" and START.split(".")[1] not in page.yaml
    assert f'<option value="{short(file)}">zuzu: zuzu.safetensors' in page.answer.text
    page.fill({KEY: short(file)})
    assert f"pretrained_lora_path: {short(file)}\n" in page.yaml
    (error,) = (each for each in page.errors() if "Begin from a LoRA" in each)
    assert "zuzu.safetensors" in error
    page.fill({MODEL: EDIT, "card": "24"})
    assert page.form.fields[KEY] == short(file) and "qtype: int4" in page.yaml
    page.fill({f"other:{START}": "gone #1.safetensors"})
    (error,) = (each for each in page.errors() if "Begin from a LoRA" in each)
    assert "'gone #1.safetensors' does not exist" in error
    assert "pretrained" not in page.fill({KEY: "", f"other:{START}": ""}).yaml


@pytest.mark.slow
def test_errors_are_those_of_the_command_line_with_their_lines_and_at_their_fields(
    client: TestClient,
) -> None:
    page = Page(client, "/new?dataset=40_photo").fill(
        {STEPS: "many", FOLDER: "datasets/nowhere"}
    )
    lines = page.yaml.splitlines()
    said = (
        ("Steps:", "steps", "'many' is not a whole number."),
        ("Images:", "folder_path", "does not exist"),
    )
    for label, key, value in said:
        (error,) = (line for line in page.errors() if label in line)
        number = int(error.split()[1])
        assert value in error and key in lines[number - 1]
    assert page.answer.text.count('aria-invalid="true"') == 2
    assert page.form.fields[STEPS] == "many", "what was typed stays"
    page.fill(
        {
            "yaml": page.yaml.replace("steps: many", "steps: 9\n        stepps: 3"),
            FOLDER: "datasets/40_photo",
        }
    )
    (error,) = page.errors()
    assert "Did you mean 'steps'?" in error and page.form.fields[STEPS] == "9"


def test_a_text_that_is_no_yaml_loses_nothing(client: TestClient, ui: Ui) -> None:
    page = Page(client, "/new?dataset=40_photo")
    good, broken = page.yaml, page.yaml.replace("network:", "network: [", 1)
    page.fill({"yaml": broken, STEPS: "33"})
    assert (
        page.yaml == broken
        and page.form.fields[STEPS] == "33"
        and "not valid YAML" in page.errors()[0]
    )
    assert (
        page.press("start").answer.status_code == 400
        and page.yaml == broken
        and not ui.jobs.exists()
    )
    page.fill({"yaml": good})
    assert "steps: 33" in page.yaml, (
        "the field was changed, and that is done once it can be"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_another_model_or_card_writes_what_it_needs_and_keeps_what_is_ones_own(
    client: TestClient,
) -> None:
    page = Page(client, "/new?dataset=40_photo").fill({"prompts": "[trigger], mine"})
    page.fill({MODEL: EDIT, "card": "24"})
    assert (
        "qtype: int4" in page.yaml
        and "resolution: [1024]" in page.yaml
        and "folder_path: datasets/40_photo" not in page.yaml
    )
    assert (
        page.form.fields["prompts"] == "[trigger], mine" and "drinks" not in page.yaml
    )
    page.fill({"card": "80"})
    assert "quantize: false" in page.yaml and "bf16 throughout" in page.yaml, (
        "the comments are those of the card"
    )
    page.fill({"yaml": page.yaml.replace("lr: 0.0002", "lr: 0.0001") + "# mine\n"})
    page.fill({"card": "16"})
    assert "lr: 0.0001" in page.yaml and page.yaml.endswith("# mine\n")
    assert "qtype: int4" in page.yaml and "blocks_to_swap: 4" in page.yaml


def test_the_plan_is_drawn_against_cards(client: TestClient, ui: Ui) -> None:
    """Commands and keys in what it says lead to their page, field or search."""
    (ui.datasets / "40_photo" / "coffee.txt").unlink()
    page = Page(client, "/new?dataset=40_photo").fill(
        {MODEL: EDIT, "card": "24", "key:trigger_word": ""}
    )
    cards = re.findall(r'<li class="(fits|small)"><span>(\d+) GB', page.answer.text)
    small, fits = ("4", "6", "8"), ("12", "16", "24", "32", "48", "80")
    assert cards == [
        *(("small", size) for size in small),
        *(("fits", size) for size in fits),
    ]
    text = " ".join(page.form.text.split())
    for part in (
        "This training needs a GPU with 12 GB or more, and this machine has none.",
        "no such device",
        "3 × 40",
        "224×224 1",
        "images are small for this size, and will look soft. Why",
        "smaller than half of",
        "The start first downloads 57.7 GB",
    ):
        assert part in text
    assert re.search(
        r"Memory of the GPU [\d.]+ GB of 24 GB at the peak, while training", text
    )
    parts = re.findall(
        r'<rect class="(model|step|lora)" x="[\d.]+" width="([\d.]+)"', page.answer.text
    )
    assert [part for part, _ in parts] == ["model", "step", "lora"]
    assert 300 < sum(float(width) for _, width in parts) < 1000, "of 1000"
    # The form that it opens puts the command into the queue.
    link = re.search(
        r'The start first downloads 57\.7 GB\. <a href="([^"]+)">Download the',
        page.answer.text,
    )
    assert link and link[1] == f"/tools/download?model={EDIT}"
    assert f'value="{EDIT}"' in client.get(link[1]).text
    assert '<a href="/tools/lint">lint</a> shows the crops' in page.answer.text
    key = '<a href="#f-instruction">&#x27;default_caption&#x27;</a>'
    assert key in page.answer.text and 'id="f-instruction"' in page.answer.text
    assert "search:default_caption" not in page.answer.text
    page.press("search:caption_dropout_rate")
    assert page.form.fields["wanted"] == "caption_dropout_rate"
    assert "key:datasets[].caption_dropout_rate" in page.form.fields


def test_time_and_cost_are_those_of_the_plan(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(client, "/new?dataset=40_photo").press("check")
    checked = commands.check_job(client.app.state.ui.memory, page.yaml, "a.yaml", "")  # type: ignore[attr-defined]
    assert (
        checked.plan
        and checked.plan["processes"][0]["time"] is None
        and "How long it takes is known after the first steps." in page.form.text
    )
    time = {
        "steps": 240,
        "step_s": 30.0,
        "seconds": 7200.0,
        "card": "an RTX 4070",
        "measured": False,
        "assumed": True,
        "parts": {},
    }
    process = checked.plan["processes"][0]
    monkeypatch.setattr("extensions.tools.ui.views.new.check_job", lambda *_: checked)
    for given, said in (
        ({"time": time}, "3 images, 240 steps, about 2 h on an RTX 4070. This machine"),
        (
            {"time": time | {"measured": True}},
            "about 2 h on an RTX 4070. As measured on this machine.",
        ),
        (
            {"time": None, "no_time": "GTX 1 is not there"},
            "3 images, 240 steps. How long it takes is known after the first steps; GTX 1 is not there.",
        ),
    ):
        process.update(given)
        text = " ".join(page.press("check").form.text.split())
        assert said in text and ("about 4.00" in text) == bool(given["time"])
    process["time"] = time
    monkeypatch.setattr("extensions.tools.ui.views.new.least_memory", lambda: 12 * GB)
    text = " ".join(page.press("check").form.text.split())
    done = datetime.now(UTC) + timedelta(hours=2)
    ends = {f"{done + timedelta(minutes=late):%H:%M} UTC" for late in (-1, 0)}
    said = "about 2 h on your RTX 4070. Started now, it finishes at about"
    assert any(f"{said} {end}." in text for end in ends)


@pytest.mark.slow
def test_the_time_is_that_of_the_chosen_card(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(client, "/new?dataset=40_photo")
    for card, name in (("24", "RTX 4090"), ("48", "L40S")):
        text = " ".join(page.fill({MODEL: EDIT, "card": card}).form.text.split())
        assert f"on an {name}. An estimate, not measured." in text
    assert page.fill({"card": "RTX 4090"}).answer.is_success, "it is no number"
    asked: list[str] = []

    def check(
        ui: object, text: str, name: str, tab: str, card: str
    ) -> commands.Checked:
        asked.append(card)
        return commands.Checked()

    monkeypatch.setattr("extensions.tools.ui.views.new.check_job", check)
    monkeypatch.setattr("extensions.tools.ui.views.new.least_memory", lambda: 24 * GB)
    for card in ("24", "48"):
        page.fill({"card": card}).press("check")
    assert {"24", "48"} & set(asked) == {"48"} and "" in asked, (
        "the card here is looked up by its name"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_keys_are_found_set_and_taken_out(client: TestClient) -> None:
    page = Page(client, "/new?dataset=40_photo").press("search", wanted="dropout")
    found = [
        key for key in page.form.fields if key.startswith("key:") and "dropout" in key
    ]
    assert (
        "key:datasets[].caption_dropout_rate" in found
        and "key:train.lr" not in page.form.fields
    )
    before = page.yaml
    page.fill({"key:datasets[].caption_dropout_rate": "0.25"})
    assert "          caption_dropout_rate: 0.25\n" in page.yaml
    assert page.fill({"key:datasets[].caption_dropout_rate": ""}).yaml == before
    assert "No key matches" in page.press("search", wanted="no such thing").form.text
    page = Page(client, "/new?dataset=40_photo").press("search")
    assert len([key for key in page.form.fields if key.startswith("key:")]) > 200
    assert page.form.fields["key:train.optimizer"] == "muon"
    assert (
        " steps: 8\n" in page.fill({STEPS: "8", "key:train.optimizer": "adamw"}).yaml
        and "optimizer: adamw " in page.yaml
    )


@pytest.mark.usefixtures("unchecked")
def test_a_file_that_another_has_changed_is_not_replaced(
    client: TestClient, ui: Ui
) -> None:
    Page(client, "/new?dataset=40_photo").fill({NAME: "zuzu"}, "save")
    page = Page(client, "/jobs/zuzu.yaml")
    path = ui.jobs / "zuzu.yaml"
    assert (
        page.fill({STEPS: "5"}, "save").answer.headers["location"] == "/jobs/zuzu.yaml"
    )
    page, mine = Page(client, "/jobs/zuzu.yaml"), Page(client, "/jobs/zuzu.yaml")
    assert page.fill({STEPS: "6"}, "save").answer.status_code == 303
    assert mine.fill({STEPS: "7"}, "save").answer.status_code == 409
    assert "steps: 6" in path.read_text() and "steps: 7" in mine.yaml, (
        "theirs is in the file, mine on the page"
    )
    assert "steps: 6" in mine.form.text and "steps: 7" in mine.form.text, (
        "both are shown"
    )
    assert mine.press("save").answer.status_code == 409, "nor at the second press"
    mine.fill({"file": "mine.yaml"}, "save")
    assert "steps: 7" in (ui.jobs / "mine.yaml").read_text()
    assert (
        Page(client, "/new?dataset=40_photo")
        .fill({"file": "zuzu.yaml"}, "save")
        .answer.status_code
        == 409
    )


@pytest.mark.usefixtures("unchecked")
def test_a_job_file_lies_in_its_folder_under_a_plain_name(
    client: TestClient, ui: Ui
) -> None:
    page = Page(client, "/new?dataset=40_photo")
    for file in (
        "../x.yaml",
        "a/b.yaml",
        ".hidden.yaml",
        "x.txt",
        "x.py",
        "-n.yaml",
        "x\0.yaml",
        ".yaml",
    ):
        page.fill({"file": file, NAME: "a"}, "save")
        assert page.answer.status_code in (400, 404) and "name:" in page.yaml, file
        assert not list(ui.jobs.glob("*"))
        assert client.get("/new", params={"job": file}).status_code == 404
        assert client.get("/new", params={"example": file}).status_code == 404


@pytest.mark.usefixtures("unchecked")
def test_jobs_runs_and_templates_are_cloned_under_names_of_their_own(
    client: TestClient, ui: Ui
) -> None:
    Page(client, "/new?dataset=40_photo").fill({NAME: "zuzu"}, "save")
    assert Page(client, "/new?job=zuzu.yaml").form.fields[NAME] == "zuzu_2"
    run = ui.output / "zuzu"
    run.mkdir(parents=True)
    (run / "run.lock").write_text("")
    saved = (ui.jobs / "zuzu.yaml").read_text()
    (run / "config.yaml").write_text(saved)
    page = Page(client, "/new?from=zuzu")
    assert (
        page.form.fields[NAME] == "zuzu_2"
        and page.yaml.split() == saved.replace('"zuzu" ', '"zuzu_2" ', 1).split()
    )
    copy = Page(client, "/new?example=quickstart.yaml")
    assert copy.form.fields[NAME] == "quickstart"
    (ui.output / "quickstart").mkdir()
    copy = Page(client, "/new?example=quickstart.yaml").yaml
    assert "output/quickstart_2/" in copy, "its own folder, in comments too"
    assert "output/quickstart/" not in copy
    assert 'href="/jobs/zuzu.yaml"' in page.answer.text
    assert client.get("/new?from=nothing").status_code == 404


@pytest.mark.usefixtures("unchecked")
def test_a_job_that_is_a_link_out_of_its_folder_is_not_shown(
    client: TestClient, ui: Ui, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text("job: of another\n")
    run = ui.output / "one"
    for folder in (run, ui.jobs):
        folder.mkdir(parents=True)
    (run / "run.lock").write_text("")
    (run / "config.yaml").symlink_to(outside)
    (ui.jobs / "a.yaml").symlink_to(outside)
    for address in ("/new?from=one", "/new?job=a.yaml", "/jobs/a.yaml"):
        answer = client.get(address)
        assert answer.status_code == 404 and "of another" not in answer.text
    assert (
        Page(client, "/new?dataset=40_photo")
        .fill({"file": "a.yaml"}, "save")
        .answer.status_code
        == 404
    )
    assert outside.read_text() == "job: of another\n"
    (ui.jobs / "b.yaml").write_bytes(b"name: \xff")
    assert client.get("/jobs/b.yaml").status_code == 400


def test_models_of_this_machine_are_offered(
    client: TestClient, ui: Ui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "extensions.tools.ui.views.new.hub_cache", lambda: tmp_path / "hub"
    )
    cached = tmp_path / "hub" / "models--Qwen--Qwen-Image-2.1" / "snapshots" / "1"
    for folder in (Path("models/mine"), ui.output / "run" / "made", cached):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    (tmp_path / "hub" / "models--other--interrupted").mkdir()
    here, published = client.get("/new").text.split('<optgroup label="Published')
    for name in ("models/mine", "output/run/made", "Qwen/Qwen-Image-2.1"):
        assert f'value="{name}"' in here and f'value="{name}"' not in published
    assert EDIT in published and "other/interrupted" not in here + published


def test_variables_stay_and_secrets_are_in_no_answer(
    client: TestClient, ui: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_HF_TOKEN", "hf_QwErTyUiOpAsDfGhJkLzXcVbNm012345")
    page = Page(client, "/new?dataset=40_photo")
    page.fill(
        {
            "yaml": page.yaml.replace("folder_path: datasets/40_photo", "").replace(
                '"datasets/40_photo"', '"nowhere/${MY_HF_TOKEN}"'
            )
        }
    )
    assert (
        "nowhere/${MY_HF_TOKEN}" in page.yaml
        and page.errors()
        and "hf_QwE" not in page.answer.text
    )
    page.fill({"file": "secret.yaml"}, "save")
    assert "${MY_HF_TOKEN}" in (ui.jobs / "secret.yaml").read_text()
    (ui.jobs / "secret.yaml").write_text(
        page.yaml + "  hf_token: hf_zYxWvUtSrQpOnMlKjIhGfEdCbA543210\n"
    )
    page = Page(client, "/jobs/secret.yaml")
    assert "hf_zYx" not in page.answer.text and "contains a secret" in page.form.text
    assert (
        page.press("save").answer.status_code == 409
        and "hf_zYx" in (ui.jobs / "secret.yaml").read_text()
    )
    assert "hf_zYx" not in page.answer.text


@pytest.mark.usefixtures("unchecked")
def test_another_programs_file_becomes_a_job(client: TestClient) -> None:
    page = Page(client, "/new")
    dit = EXAMPLES / "tiny_mascots" / "transformer"
    command = f"python qwen_image_train_network.py --dit {dit} --output_name theirs --edit_plus --dataset_config"
    before = page.yaml
    page.fill({"import_text": f"{command} no.toml --network_dim 8"}, "import")
    assert (
        "no.toml" in page.form.text
        and page.form.fields["import_text"].startswith(command)
        and page.yaml == before
    )
    Path("data.toml").write_text(
        '[[datasets]]\nimage_directory = "datasets/40_photo"\nnum_repeats = 3\n'
    )
    page.fill(
        {"import_text": f"{command} data.toml --network_dim 8 --max_train_steps 50"},
        "import",
    )
    assert (page.form.fields["key:network.linear"], page.form.fields[STEPS]) == (
        "8",
        "50",
    ), page.form.text
    assert page.form.fields[FOLDER] == "datasets/40_photo"
    fluxflow = (EXAMPLES / "fluxflow.yaml").read_bytes()
    answer = client.post(
        "/new",
        data=page.form.fields | {"action": "import"},
        files={"import_file": ("a.yaml", fluxflow)},
        follow_redirects=True,
    )
    assert "# Made from imported.yaml" in Form(answer.text).fields["yaml"]
    page.fill({"import_text": "[[datasets]]\nimage_directory = 'x'\n"}, "import")
    assert "It is a dataset file" in page.form.text


@pytest.mark.usefixtures("unchecked")
def test_what_is_typed_is_shown_as_text(client: TestClient) -> None:
    nasty = "</textarea><script>alert(1)</script>\"'&"
    page = Page(client, "/new?dataset=40_photo").fill(
        {STEPS: nasty, "prompts": nasty, "wanted": nasty, "file": nasty}
    )
    assert "<script>alert" not in page.answer.text
    assert (
        page.form.fields[STEPS],
        page.form.fields["prompts"],
        page.form.fields["file"],
    ) == (nasty, nasty, nasty)
    assert json.loads(page.form.fields["shown"])["prompts"] == nasty


@pytest.mark.usefixtures("processes")
def test_the_newest_check_of_a_tab_wins(
    ui: Ui, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "run.py"
    slow.write_text(
        "import sys, time\ntime.sleep(60 if 'slow' in open(sys.argv[1]).read() else 0)\nprint('{}')"
    )
    monkeypatch.setattr(commands, "RUN_PY", slow)
    found: list[str] = []

    def check(tab: str) -> None:
        found.append(tab + commands.check_job(ui.memory, "slow", "a.yaml", tab).fault)

    threads = [threading.Thread(target=check, args=(tab,)) for tab in ("one:", "two:")]
    for thread in threads:
        thread.start()
    until(lambda: len(ui.memory.get("commands", {})) == 2)
    assert commands.check_job(ui.memory, "quick", "a.yaml", "one:").plan == {}
    threads[0].join(20)
    assert found == ["one:replaced"] and list(ui.memory["commands"]) == ["two:"], (
        "the other tab's goes on"
    )
    monkeypatch.setattr(commands, "LIMIT_S", 0.2)
    assert commands.check_job(ui.memory, "slow", "a.yaml", "two:").fault == "late"
    threads[1].join(20)
    assert ui.memory["commands"] == {}


@pytest.mark.usefixtures("unchecked")
def test_a_form_that_was_sent_is_found_as_it_was(
    client: TestClient, ui: Ui, queued: list[tuple[list[str], str]]
) -> None:
    page = Page(client, "/new?dataset=40_photo")
    assert 'class="drafts"' not in page.answer.text
    page.fill({STEPS: "1234", NAME: "zuzu", "wanted": "dropout"}, "search")
    draft = page.answer.url.raw_path.decode()
    page.fill({"yaml": page.yaml.replace("network:", "network: [", 1), STEPS: "9"})
    page.fill({"file": "../zuzu.yaml"}, "start")
    assert page.answer.status_code == 400, "a refused start is told at each look"
    shown = page.form.fields
    assert "Not a valid name for a job file" in page.form.text
    again = client_of(  # the page was started again, and the tab was closed
        Ui(ui.output, ui.datasets, ui.jobs, "", 2.0),
        headers={"accept": "text/html"},
        follow_redirects=False,
    )
    for found in (client.get(draft), again.get(draft)):
        assert found.status_code == 400 and Form(found.text).fields == shown
    offer = again.get("/new").text
    assert f'<a href="{draft}">' in offer
    assert Form(again.get("/new").text).fields[STEPS] != "9", "it is only offered"

    good = Page(again, draft).fill({"yaml": Page(client, "/new").yaml, "file": ""})
    assert good.press("start").answer.headers["location"] == "/queue/000001"
    assert draft not in client.get("/new").text, "what was started is not offered"
    assert Page(client, draft).yaml == good.yaml, "and the way back finds it"
    Page(client, "/new").fill({STEPS: "5"})
    (discard,) = re.findall('value="(discard:[^"]+)"', client.get("/new").text)
    assert client.post("/new", data={"action": discard}).headers["location"] == "/new"
    assert "discard:" not in client.get("/new").text
    gone = client.get(f"/new?draft={discard[8:]}")
    assert gone.status_code == 404 and "not kept any more" in gone.text


@pytest.mark.usefixtures("unchecked")
def test_a_form_with_a_secret_is_answered_and_not_kept(
    client: TestClient, ui: Ui
) -> None:
    page = Page(client, "/new?dataset=40_photo")
    token = "hf_" + "a" * 34
    for text in (
        page.yaml + f"# {token}\n",
        page.yaml.replace("meta:", "meta:\n  token: abcdefgh12345678"),
    ):
        answer = client.post(
            "/new", data=page.form.fields | {"yaml": text, "action": "check"}
        )
        assert answer.status_code == 200 and "This form is not kept" in answer.text
        assert Form(answer.text).fields["yaml"] == text.replace("\r", "")
    assert not list(ui.own.rglob("*.json"))


def typed(browser: Browser, selector: str, value: str) -> None:
    """Puts a value into a control, and tells the page."""
    browser.run(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        value,
    )


@pytest.mark.slow
def test_a_job_is_made_and_corrected_in_a_browser(
    browser: Browser, address: str, ui: Ui
) -> None:
    browser.open(f"{address}/new")
    keys = [key.name for key in keys_of({}, "sd_trainer")]
    others = len({*keys} - {*TEXTS, *NUMBERS})
    browser.click("details.keys > summary")
    browser.wait_for(f"document.querySelectorAll('.key').length == {others}")
    assert "draft=" not in browser.run("return location.search"), "it was only seen"
    browser.click("details.keys > summary")
    typed(browser, "#f-folder", "datasets/40_photo")
    typed(browser, "#f-name", "zuzu")
    browser.wait_for(
        "document.querySelector('#ready .good')"
        " && document.querySelector('.sentence').textContent.trim().startsWith('3 images, 240 steps')"
    )
    assert 'folder_path: "datasets/40_photo"' in browser.run(
        "return document.getElementById('yaml').value"
    )
    browser.click("details.text > summary")
    typed(
        browser,
        "#yaml",
        browser.run(
            "return document.getElementById('yaml').value.replace('steps: 240', 'steps: lots  # mine')"
        ),
    )
    browser.wait_for("document.querySelector('.errors [data-line]')")
    assert "'lots' is not a whole number" in browser.text("#checked")
    assert browser.run(
        "return document.querySelector('.gutter .bad').textContent"
    ) in browser.text(".errors a")
    assert (
        "lots" in browser.text("#f-1-bad")
        and browser.run("return document.getElementById('f-1').value") == "lots"
    )
    browser.click(".errors a")
    assert (
        browser.run("return getSelection().toString()") == "        steps: lots  # mine"
    )
    browser.press("Tab")
    assert browser.run("return document.activeElement.id") != "yaml", (
        "Tab leaves the editor"
    )
    typed(browser, "#f-1", "3")
    browser.wait_for("document.querySelector('#ready .good')")
    assert "steps: 3     # mine" in browser.run(
        "return document.getElementById('yaml').value"
    )
    browser.click("details.keys > summary")
    browser.wait_for(f"document.querySelectorAll('.key').length == {others}")
    typed(browser, "[name=wanted]", "caption_dropout_rate")
    browser.wait_for("document.querySelectorAll('.key').length < 5")
    typed(browser, ".key input", "0.5")
    browser.wait_for(
        "document.getElementById('yaml').value.includes('caption_dropout_rate: 0.5')"
    )
    assert browser.errors() == [] and browser.requests_elsewhere() == []


def draw(folder: Path, *names: str) -> None:
    """Images of one colour."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 96), "red").save(folder / f"{name}.png")


def at_fields(page: Page) -> dict[str, str]:
    """Id of a field -> what is told at it."""
    told = re.findall(r'(?s)id="f-([a-z0-9]+)-bad" data-part>([^<]+)', page.answer.text)
    return {name: html.unescape(text) for name, text in told}


def test_an_error_stands_at_its_field_in_its_words(client):
    for changes, field, words, listed in (
        ({FOLDER: ""}, "folder", "Choose a folder of images.", "Images: Choose"),
        (
            {NAME: ""},
            "name",
            "Give the training a name.",
            "Name: Give the training a name.",
        ),
        ({MODEL: ""}, "model", "Choose a model.", "Model: Choose a model."),
        (
            {"key:datasets[].control_path": "none"},
            "control",
            "'none' does not exist",
            "Control images: 'none'",
        ),
    ):
        page = Page(client, "/new?dataset=40_photo").fill(changes, "start")
        assert page.answer.status_code == 400
        assert list(at_fields(page)) == [field] and words in at_fields(page)[field]
        (error,) = page.errors()
        assert listed in error and f'<a href="#f-{field}">' in page.answer.text
        (chosen,) = re.findall(
            r"<(?:input|select|textarea)[^>]*autofocus", page.answer.text
        )
        assert f'id="f-{field}"' in chosen and 'aria-invalid="true"' in chosen


def test_images_that_cannot_be_used_are_named_at_the_field_of_the_images(client, ui):
    draw(ui.datasets / "eyes", "before/a", "after/a", "after/b")
    page = Page(client, "/new?dataset=eyes").press("check")
    told = at_fields(page)
    assert (
        list(told) == ["folder"]
        and "b.png: has no control image 'b' in 'datasets/eyes/before'"
        in told["folder"]
    )


def test_a_warning_is_one_sentence_and_the_plan_is_its_why() -> None:
    """Each sentence of the page is for lines that the program writes."""
    folder = "datasets/40_photo: "
    for line, said in (
        (f"{folder}cropped to the buckets: 17.8% of an image", "The edges of some"),
        (
            f"{folder}1 of 3 images are smaller than half of 'res",
            "1 of 3 images is small",
        ),
        (
            f"{folder}7 of 1,030 images are smaller than half of",
            "7 of 1,030 images are",
        ),
        (f"{folder}1 of 30 images has no caption (a.png) and", "1 of 30 images has no"),
        (
            f"{folder}7 of 30 images have no caption (a.png, b.",
            "7 of 30 images have no",
        ),
        ("sample: 1 of 2 prompts without the trigger word", "Some sample prompts do"),
        (
            f"{folder}9 of 9 captions begin with 'mira', and there is no trigger_word",
            "The captions begin with 'mira'",
        ),
        ("a line that no sentence is for: 12 of 30", ""),
    ):
        short = plain(line)
        assert short.startswith(said) and bool(short) == bool(said), line
    rooms = [ROOT / "toolkit" / room for room in ("data", "plan", "memory")]
    code = "".join(
        path.read_text(encoding="utf-8")
        for room in rooms
        for path in room.rglob("*.py")
    )
    for pattern in texts()["new"]["plain"]:
        words = max(re.split(r"[^\w ,]+|\\\w", pattern), key=len).strip(" d,")
        assert words in code, pattern


@pytest.mark.usefixtures("unchecked")
def test_one_dial_sets_steps_saves_and_samples(client: TestClient, ui: Ui) -> None:
    """A number of one's own, in its field or in the YAML, belongs to no position."""
    numbers = (STEPS, "key:save.save_every", "key:sample.sample_every")
    page = Page(client, "/new?dataset=40_photo")

    def shown() -> list[str]:
        return [page.form.fields.get("effort", ""), *map(page.form.fields.get, numbers)]

    usual = shown()
    assert usual[:2] == ["usual", "240"]
    page.press("check", effort="quick")
    assert shown()[:2] == ["quick", "60"] and "steps: 60" in page.yaml
    page.fill({"key:config.name": "zuzu"})
    assert shown()[:2] == ["quick", "60"]
    page.fill({MODEL: EDIT})
    assert shown() == ["quick", "500", "125", "125"], "also of another model"
    page.fill({STEPS: "77"})
    assert shown() == ["", "77", "125", "125"]
    page.press("check", effort="careful")
    assert shown() == ["careful", "4000", "500", "500"]
    page.fill({"yaml": page.yaml.replace("steps: 4000", "steps: 9")})
    assert shown()[:2] == ["", "9"]
    page.fill({"effort": "usual", MODEL: str(EXAMPLES / "tiny_mascots")})
    assert shown() == usual
    page.press("check", effort="no such position")
    assert shown()[1:] == usual[1:]
    for number in range(97):
        draw(ui.datasets / "many", str(number))
    assert Page(client, "/new?dataset=many").form.fields[STEPS] == "466"
    page.press("save", effort="quick")
    assert "effort" not in Page(client, page.answer.headers["location"]).form.fields


@pytest.mark.usefixtures("unchecked")
def test_the_small_model_says_what_it_draws_and_is_not_the_first_for_photographs(
    client, ui
):
    named = f'<option value="{EXAMPLES / "tiny_mascots"}">Tiny mascots: draws flat mascots only; for trying out'
    assert (
        named.replace('">', '" selected>') in client.get("/new?dataset=40_photo").text
    )
    shutil.copytree(PHOTOS, ui.datasets / "camera")
    page = Page(client, "/new?dataset=camera")
    assert page.form.fields[MODEL] == EDIT and named in page.answer.text
    assert "photographs become mush" not in page.answer.text
    page.fill({"other:model.name_or_path": str(EXAMPLES / "tiny_mascots")}, "search")
    assert (
        "The small model draws flat mascots only: photographs become mush."
        in page.answer.text
    )
    # drawings as large as photographs are more than it can draw too
    for number in range(3):
        (ui.datasets / "drawn").mkdir(exist_ok=True)
        Image.new("RGB", (600, 400), "red").save(
            ui.datasets / "drawn" / f"{number}.png"
        )
    assert Page(client, "/new?dataset=drawn").form.fields[MODEL] == EDIT


def test_a_plan_that_needs_a_gpu_offers_the_small_model(client, ui, queued):
    """Where there is none: the error says how, and a button does it."""
    shutil.copytree(PHOTOS, ui.datasets / "camera")
    page = Page(client, "/new?dataset=camera")
    assert page.form.fields["card"] == "" and "no GPU here" in page.answer.text
    page.press("check")
    text = " ".join(page.form.text.split())
    assert "on an RTX 4090. An estimate, not measured." in text, "the card of the job"
    assert "GB of 24 GB at the peak" in text
    # on a small disk there is no room for the model either: that alone is an error
    assert not any("no such device" in error for error in page.errors())
    (calm,) = re.findall('(?s)<div class="calm">.*?</div>', page.answer.text)
    assert TO_TRY in html.unescape(calm) and "bad" not in calm
    assert (
        '<button name="action" value="small" class="main big">Try it with the small model</button>'
        in page.answer.text
    )
    page.press("small")
    assert (
        page.form.fields[MODEL] == str(EXAMPLES / "tiny_mascots")
        and "Ready to start" in page.form.text
    )
    assert (
        page.form.fields["key:datasets[].resolution"] == "128"
        and 'value="small"' not in page.answer.text
    )
    assert page.press("start").answer.headers["location"] == "/queue/000001"


@pytest.mark.slow
def test_the_name_of_a_finished_run_is_taken_and_the_next_free_one_is_offered(
    client, ui, queued
):
    (ui.output / "zuzu").mkdir(parents=True)
    document = {"name": "zuzu", "status": "finished", "step": 240, "steps": 240}
    (ui.output / "zuzu" / "run.json").write_text(json.dumps(document))
    (ui.output / "zuzu" / "zuzu.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    page = Page(client, "/new?dataset=40_photo")
    without = re.sub(
        r"(?m)^( +)save_every: ", r"\1states: never\n\1save_every: ", page.yaml
    )
    page.fill({"yaml": without, NAME: "zuzu"}, "save")
    page = Page(client, "/jobs/zuzu.yaml")
    for action in ("check", "start"):
        page.press(action)
        assert (
            page.errors() == ["The name zuzu is taken by a finished training."]
            and "Ready to start" not in page.form.text
        )
    assert page.answer.status_code == 400 and queued == []
    assert (
        '<button name="action" value="rename">Name it zuzu_2</button>'
        in page.answer.text
    )
    page.press("rename")
    assert page.form.fields[NAME] == "zuzu_2" and "Ready to start" in page.form.text
    assert "Name it" not in page.form.text
    assert page.press("start").answer.status_code == 303 and queued == [
        (["config/zuzu_2.yaml"], "zuzu_2")
    ]
    assert 'name: "zuzu"' in (ui.jobs / "zuzu.yaml").read_text(encoding="utf-8"), (
        "its own file stays"
    )


def test_a_new_job_has_a_free_name_and_a_word_that_no_model_knows(client, ui):
    """Of a folder named after a person too; the command line takes each name."""
    (ui.output / "photo").mkdir(parents=True)
    for dataset, proposed in (
        ("40_photo", ("photo_2", "phtx")),
        ("20_Anna Smith", ("Anna_Smith", "annsmt")),
        ("zumi my owl", ("zumi_my_owl", "zmmywl")),
        ("12_été (1)!", ("été_1", "t1xx")),
        ("…", ("my_character", "mychrc")),
    ):
        if dataset != "40_photo":
            draw(ui.datasets, f"{dataset}/a")
        fields = Page(client, f"/new?dataset={dataset}").form.fields
        assert (fields[NAME], fields["key:trigger_word"]) == proposed
        name = fields[NAME]
        assert NewConfig(type="new", job_name=name, folder="datasets").job_name == name


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_dataset_of_the_menu_brings_what_create_a_job_brings(client, ui):
    """Name, trigger word and what was chosen on its page, as long as nobody has typed
    into these fields."""
    for name, asked in {
        "20_zumi owl": {"trigger": "zumi", "resolution": 768},
        "other": {},
    }.items():
        shutil.copytree(ui.datasets / "40_photo", ui.datasets / name)
        keep_view(open_dataset(ui, name), asked)
    page = Page(client, "/new")
    assert (page.form.fields[NAME], page.form.fields["key:trigger_word"]) == (
        "my_character",
        "mychrc",
    )
    for name in ("20_zumi owl", "other", "20_zumi owl"):
        page.fill({FOLDER: f"datasets/{name}"})
        assert page.yaml.split() == Page(client, f"/new?dataset={name}").yaml.split(), (
            name
        )
    assert (page.form.fields[NAME], page.form.fields["key:trigger_word"]) == (
        "zumi_owl",
        "zumi",
    )
    assert page.form.fields["key:datasets[].resolution"] == "768"
    page.fill({NAME: "mine", "key:datasets[].resolution": "256"})
    page.fill({FOLDER: "datasets/other"})
    assert (page.form.fields[NAME], page.form.fields["key:trigger_word"]) == (
        "mine",
        "othr",
    )
    assert page.form.fields["key:datasets[].resolution"] == "256"
    page = Page(client, "/new").fill(
        {FOLDER: "datasets/other", "key:trigger_word": "own"}
    )
    assert (page.form.fields[NAME], page.form.fields["key:trigger_word"]) == (
        "other",
        "own",
    ), "typed at the same time"
    page = Page(client, "/new?example=quickstart.yaml").fill({FOLDER: "datasets/other"})
    assert page.form.fields[NAME] == "quickstart"


@pytest.mark.usefixtures("unchecked")
def test_datasets_that_cannot_be_read_hide_no_form(client, ui, monkeypatch):
    """As root, for whom every folder can be read, the disk says it."""

    is_dir = Path.is_dir

    def denied(path: Path) -> bool:
        if path == ui.datasets:
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", denied)
    answer = client.get("/datasets")
    assert answer.status_code == 403 and "Permission denied" in answer.text
    page = Page(client, "/new")
    assert page.answer.status_code == 200 and "name:" in page.yaml


def dataset_of(page: Page) -> dict[str, object]:
    """The first dataset of the job that is shown, with the trigger word."""
    process = yaml.safe_load(page.yaml)["config"]["process"][-1]
    return {"trigger_word": process["trigger_word"], **process["datasets"][0]}


@pytest.mark.usefixtures("unchecked")
def test_every_choice_on_the_page_of_a_dataset_reaches_the_job(client, ui, queued):
    rows = (
        ("view", "references", "before", {"control_path": "datasets/before"}),
        (
            "view",
            "references",
            f"{ui.datasets.resolve()}/before",
            {"control_path": "datasets/before"},
        ),
        ("view", "references", "_ref", {"control_suffix": ["_ref"]}),
        ("view", "masks", "masks", {"mask_path": "datasets/masks"}),
        ("view", "masks", "_mask", {"mask_suffix": "_mask"}),
        ("view", "resolution", "256", {"resolution": 256}),
        ("captioning", "trigger-word", "ohwx", {"trigger_word": "ohwx"}),
    )
    for number, (address, field, value, keys) in enumerate(rows):
        name = f"pipo{number}"
        draw(
            ui.datasets,
            f"{name}/a",
            f"{name}/a_ref",
            f"{name}/a_mask",
            "before/a",
            "masks/a",
        )
        answer = client.post(f"/datasets/{name}/{address}", data={field: value})
        assert answer.status_code == 303, answer.text
        found = dataset_of(Page(client, f"/new?dataset={name}"))
        assert {key: found.get(key) for key in keys} == keys, (field, value)
        assert found["folder_path"] == f"datasets/{name}"


@pytest.mark.usefixtures("unchecked")
def test_names_of_pairs_need_no_choice_and_another_dataset_brings_its_own(client, ui):
    draw(ui.datasets, "named/x_start", "named/x_end", "both/source/x", "both/target/x")
    page = Page(client, "/new?dataset=named")
    found = dataset_of(page)
    assert (found["image_suffix"], found["control_suffix"]) == ("_end", ["_start"])
    assert found["trigger_word"] == ""
    found = dataset_of(page.fill({FOLDER: "datasets/both/target"}))
    assert (found["folder_path"], found["control_path"], found["trigger_word"]) == (
        "datasets/both/target",
        "datasets/both/source",
        "",
    )
    found = dataset_of(page.fill({FOLDER: "datasets/40_photo"}))
    assert "control_path" not in found and found["trigger_word"] == "phtx"


@pytest.mark.usefixtures("unchecked")
def test_the_other_rank_key_follows_where_it_is_equal(client, ui):
    page = Page(client, "/new?dataset=40_photo")
    page.fill(
        {
            "yaml": page.yaml.replace("linear_alpha: 32", "linear_alpha: 16"),
            "key:network.linear": "16",
        }
    )
    page.fill({"key:network.linear": "8"})
    assert "linear: 8\n" in page.yaml and "linear_alpha: 8\n" in page.yaml
    page.fill({"yaml": page.yaml.replace("linear_alpha: 8", "linear_alpha: 4")}).fill(
        {"key:network.linear": "32"}
    )
    assert "linear: 32\n" in page.yaml and "linear_alpha: 4\n" in page.yaml


def test_a_key_in_a_message_leads_to_its_field_or_to_the_search():
    fields = {
        "datasets[].default_caption": "f-instruction",
        "model.name_or_path": "f-model",
    }
    for said, leads in (
        ("default_caption", 'href="#f-instruction"'),
        ("datasets[].default_caption", 'href="#f-instruction"'),
        (
            "sample.default_caption",
            'value="search:default_caption" formaction="/new#keys"',
        ),
        ("caption_ext: json", 'value="search:caption_ext" formaction="/new#keys"'),
    ):
        assert leads in linked(f"or give '{said}'", fields)
    assert 'value="search:default_caption"' in linked("or give 'default_caption'")


@pytest.mark.slow
def test_the_way_back_a_reload_and_leaving_lose_nothing(
    browser: Browser, address: str, queued: list[tuple[list[str], str]]
) -> None:
    def is_guarded() -> bool:
        return browser.run(
            "const leaving = new Event('beforeunload', {cancelable: true});"
            "dispatchEvent(leaving); return leaving.defaultPrevented"
        )

    steps, model = (
        f"document.getElementById('f-{name}')?.value" for name in (1, "model")
    )
    browser.open(f"{address}/new?dataset=40_photo")
    assert not is_guarded()
    typed(browser, "#f-1", "1234")
    assert is_guarded(), "the server does not have it yet"
    typed(browser, "#f-model", EDIT)
    typed(browser, "#file", "mine.yaml")
    browser.wait_for("document.querySelector('[value=small]')")
    assert not is_guarded() and browser.run("return location.search").startswith(
        "?draft="
    )
    for action, elsewhere in (
        ("", "/system"),
        ("[value=small]", "/system"),
        ("[value=start]", "/queue/000001"),
    ):
        if action:
            browser.click(action)
            browser.wait_for(
                f"{model}?.includes('tiny') || location.pathname != '/new'"
            )
        if elsewhere == "/system":
            browser.click("nav [href='/system']")
        browser.wait_for(f"location.pathname == '{elsewhere}'")
        browser.run("history.back()")
        browser.wait_for(f"{steps} == '1234'")
        browser.run("location.reload()")
        browser.wait_for(
            f"{steps} == '1234' && document.querySelector('#ready').textContent"
        )
        name = browser.run("return document.getElementById('file').value")
        assert name == "mine.yaml"
    typed(browser, "#f-1", "1235")
    browser.wait_for("document.getElementById('yaml').value.includes('steps: 1235')")
    browser.open(f"{address}/new")
    browser.click(".drafts a")
    browser.wait_for(f"{steps} == '1235'")
    assert browser.requests_elsewhere() == []

"""The path from images to a LoRA on the pages of a dataset, a job and a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui.datasets import keep_view, open_dataset, read_dataset
from extensions.tools.ui.state import Ui
from toolkit.files.writing import write_json

STEPS = ["Images", "Captions", "Check", "Settings", "Training", "Use"]


def steps(client: TestClient, address: str) -> tuple[list[str], str, dict[str, str]]:
    """The steps that are done, the present one, and the link of each."""
    page = client.get(address, headers={"accept": "text/html"}).text
    (path,) = re.findall(r'<nav class="path".*?</nav>', page, re.DOTALL)
    found = re.findall(
        r'<li class="(\w*)"><a href="([^"]*)"( aria-current="step")?>.*?</i>(\w+)', path
    )
    assert [title for *_, title in found] == STEPS
    (now,) = [title for kind, _, current, title in found if current and kind == "now"]
    done = [title for kind, *_, title in found if kind == "done"]
    return done, now, {title: address for _, address, _, title in found}


@pytest.fixture
def mira(ui: Ui) -> Path:
    folder = ui.datasets / "20_mi ra"
    folder.mkdir()
    return folder


def test_a_dataset_shows_what_is_done_and_the_next_step(
    client: TestClient, ui: Ui, mira: Path
) -> None:
    here = "/datasets/20_mi%20ra"
    assert steps(client, here)[:2] == ([], "Images")
    for name in "ab":
        Image.new("RGB", (64, 64)).save(mira / f"{name}.png")
    (mira / "a.txt").write_text("mira")
    done, now, links = steps(client, here)
    assert (done, now) == (["Images"], "Captions")
    assert links["Captions"] == f"{here}?only=missing#filter"
    (mira / "b.txt").write_text("mira")
    assert steps(client, here)[:2] == (["Images", "Captions"], "Check")
    found = {"state": read_dataset(ui, mira.name).state, "images": 2, "findings": []}
    write_json(ui.own / "lint" / f"{mira.name}.json", found)
    done, now, links = steps(client, here)
    assert (done, now) == (STEPS[:3], "Settings")
    for title in STEPS:
        assert client.get(links[title]).status_code == 200, title
    assert "<details open><summary>Check" in client.get(links["Check"]).text
    assert links["Training"] == "/?q=mi_ra", "as a new job of it is named"
    (mira / "b.txt").write_text("another text")
    assert steps(client, here)[:2] == (["Images", "Captions"], "Check"), "it is old"


def test_pairs_with_an_instruction_are_captioned(client: TestClient, ui: Ui) -> None:
    for side in ("before", "after"):
        (ui.datasets / "pairs" / side).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(ui.datasets / "pairs" / side / "a.png")
    assert steps(client, "/datasets/pairs")[1] == "Captions"
    keep_view(open_dataset(ui, "pairs"), {"instruction": "make it blue"})
    assert steps(client, "/datasets/pairs")[1] == "Check"


def test_the_form_knows_the_dataset_of_its_folder(
    client: TestClient, mira: Path
) -> None:
    Image.new("RGB", (64, 64)).save(mira / "a.png")
    assert steps(client, "/new")[:2] == ([], "Settings")
    done, now, links = steps(client, "/new?dataset=20_mi+ra")
    assert (done, now) == (["Images"], "Settings")
    assert links["Images"] == "/datasets/20_mi%20ra"


@pytest.mark.parametrize(
    ("status", "folder", "now", "images"),
    [
        ("finished", "{sets}/20_mi ra", "Use", "/datasets/20_mi%20ra"),
        ("stopped", "{sets}/20_mi ra/sub", "Training", "/datasets/20_mi%20ra"),
        ("failed", "/elsewhere", "Training", "/datasets"),
        ("finished", "{sets}/../x", "Use", "/datasets"),
        ("finished", "{sets}", "Use", "/datasets"),
        ("finished", "{sets}/.trash", "Use", "/datasets"),
        ("finished", "{sets}/gone", "Use", "/datasets"),
        ("finished", '"a\\0b"', "Use", "/datasets"),
    ],
)
def test_a_run_leads_back_to_its_dataset(
    client: TestClient,
    ui: Ui,
    mira: Path,
    make_run: Callable[..., Path],
    status: str,
    folder: str,
    now: str,
    images: str,
) -> None:
    run = make_run("one", status=status)
    (run / "config.yaml").write_text(
        "job: extension\nconfig:\n  name: one\n  process:\n  - type: sd_trainer\n"
        f"    datasets:\n    - folder_path: {folder.format(sets=ui.datasets)}\n"
    )
    done, present, links = steps(client, "/runs/one")
    assert present == now and links["Images"] == images
    assert "Check" not in done and "Settings" in done
    assert client.get(links["Settings"]).status_code == 200
    write_json(ui.own / "lint" / f"{mira.name}.json", {})
    assert ("Check" in steps(client, "/runs/one")[0]) == (images != "/datasets")


def test_a_run_without_a_job_has_the_path_too(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    (make_run("one") / "config.yaml").unlink()
    assert steps(client, "/runs/one")[1] == "Use"


def test_a_job_or_a_run_of_a_dataset_ticks_its_step(
    client: TestClient, ui: Ui, mira: Path, make_run: Callable[..., Path]
) -> None:
    """By the folder that a job names, whatever it is called."""
    here, text = (
        "/datasets/20_mi%20ra",
        "datasets:\n- folder_path: {}\n  resolution: 1\n",
    )
    Image.new("RGB", (64, 64)).save(mira / "a.png")
    other = ui.jobs / "other.yaml"
    for folder, is_its in (
        (f'"{mira}"', True),
        (mira, True),
        (f"{mira}_2", False),
        (f'"{mira}/sub"', False),
        ("20_mi ra", False),
    ):
        other.write_text(text.format(folder))
        assert ("Settings" in steps(client, here)[0]) == is_its, folder
    other.write_bytes(b"\xff")
    assert "Settings" not in steps(client, here)[0]
    make_run("mi_ra")
    assert "Settings" in steps(client, here)[0]

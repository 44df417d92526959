"""What a run's page begins with, in Chromium: the best sample, the file, and what to do with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.shared.image_files import read_settings
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser

pytestmark = pytest.mark.slow

WIDTHS = ((1200, 300), (390, 500))
"""Width of a window, and how far down the download may end, in CSS pixels."""


def bottom(browser: Browser, selector: str) -> float:
    """Where an element ends, in pixels from the top of the page."""
    return browser.run("return document.querySelector(arguments[0]).getBoundingClientRect().bottom + scrollY", selector)


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 1344), (1344, 768)])
@pytest.mark.parametrize(("width", "most"), WIDTHS)
def test_the_download_is_seen_at_once(
    browser: Browser, served: Served, make_run: Callable[..., Path], width: int, most: int, shape: tuple[int, int]
) -> None:
    folder = make_run(
        "a_character_with_a_long_name_of_her_own", steps=2000, sampled=(1000, 2000), reason="no step is better"
    )
    for image in (folder / "samples").iterdir():
        Image.effect_noise(shape, 60).convert("RGB").save(image)
    for step in range(200, 2000, 200):
        (folder / f"{folder.name}_{step:09d}.safetensors").write_bytes(
            (folder / f"{folder.name}.safetensors").read_bytes()
        )
    (folder / "best.json").write_text(json.dumps({"recommended": f"{folder.name}_000001000.safetensors"}))
    for dark in (False, True):
        browser.open(f"{served.address}/runs/{folder.name}", width=width, height=800, dark=dark)
        browser.wait_for("document.querySelector('#first img').naturalWidth")
        assert bottom(browser, "#download") <= most
        assert browser.run("return document.querySelector('#first img').src").find("000001000_0.png") > 0
        assert browser.run("return document.querySelector('#download').href").endswith("_000001000.safetensors")
        assert browser.is_as_wide_as_the_window() and browser.errors() == []


@pytest.fixture
def trained(run_py, write_job, trainer, tmp_path: Path, ui: Ui) -> Path:
    """A run of four steps on the tiny model, with pairs: two files, samples with a control image."""
    for folder, colours in (("before", ("teal", "navy")), ("after", ("olive", "coral"))):
        (ui.datasets / folder).mkdir()
        for index, colour in enumerate(colours):
            Image.new("RGB", (64, 64), colour).save(ui.datasets / folder / f"{index}.png")
    controls = [f"datasets/before/{index}.png" for index in range(2)]
    samples = [{"prompt": "[trigger] in a hat", "ctrl_img_1": control} for control in controls]
    section = trainer(
        "datasets/after",
        train={"steps": 4},
        save={"dtype": "float32", "save_every": 2},
        trigger_word="pipo",
        sample={"sample_every": 2, "width": 64, "height": 64, "sample_steps": 2, "samples": samples},
    )
    section["datasets"][0] |= {"control_path": "datasets/before", "default_caption": "pipo in a hat"}
    assert run_py(write_job(section, name="pairs")).returncode == 0
    return ui.output / "pairs"


def fill(browser: Browser, selector: str, text: str) -> None:
    """Types over what a field holds."""
    browser.click(selector)
    browser.run("document.activeElement.select()")
    browser.type(selector, text)


def test_a_file_is_tried_with_control_images_and_voted_on(
    browser: Browser, served: Served, trained: Path, tmp_path: Path
) -> None:
    browser.open(f"{served.address}/runs/pairs")
    field = "return document.querySelector(arguments[0]).value"
    values = [browser.run(field, f"[name={name}]") for name in ("prompt", "width", "height", "strength", "file")]
    assert values == ["pipo in a hat", "64", "64", "1", "pairs.safetensors"]
    assert browser.run("return document.querySelectorAll('#controls .shot').length") == 2

    fill(browser, "#try-strength", "strong")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelector('#try-strength[aria-invalid]')")
    assert "Write a number" in browser.text("#try-strength-bad") and not (trained / "tried").exists()
    assert len(browser.errors()) == 1  # the answer to the mistake
    fill(browser, "#try-strength", "0.5")
    browser.run("document.getElementById('try-count').value = '2'")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 2", 90)
    browser.wait_for("[...document.querySelectorAll('#tried img')].every(image => image.naturalWidth)")
    assert "pipo in a hat" in browser.text("#tried") and "pairs.safetensors × 0.5, seed 43" in browser.text("#tried")
    assert browser.run(field, "#try-strength") == "0.5"  # the form stays as it was

    own = tmp_path / "mine.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(own)
    browser.type("[name=image]", str(own))
    assert browser.run("return document.querySelector('[name=control][value=send]').checked")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 4", 90)
    assert browser.run("return document.querySelector('[name=control]:checked').value") == "control:mine.png"
    settings = [read_settings(path) for path in (trained / "tried").glob("*.png")]
    references = {one["path"] for image in settings for one in image["reference"]}
    assert references == {"datasets/before/0.png", "output/pairs/tried/control/mine.png"}

    browser.click("#tried .button")
    browser.wait_for("document.querySelector('#pair .two img')?.naturalWidth")
    browser.press("ArrowLeft")
    browser.wait_for("document.querySelector('.counts').innerText.startsWith('1 of 2')")
    vote = json.loads((trained / "tried" / "votes.jsonl").read_text())
    assert vote["prompt"] == "pipo in a hat" and {vote["better"], vote["worse"]} < {
        *map(str, os.listdir(trained / "tried"))
    }
    assert browser.errors() == [] and browser.requests_elsewhere() == []


def test_all_files_are_compared_by_one_button(browser: Browser, served: Served, trained: Path) -> None:
    browser.open(f"{served.address}/runs/pairs")
    browser.click("#first form button")
    browser.wait_for("location.hash == '#compared'")
    browser.wait_for("document.querySelectorAll('#outcome .cells img').length == 6", 120)  # 2 prompts, 2 files, no file
    browser.wait_for("document.querySelector('#outcome .numbers .marked')", 120)
    recommended = json.loads((trained / "best.json").read_text())["recommended"]
    assert browser.text("#outcome .numbers .marked td") == recommended
    assert "failed" not in browser.text("#outcome")
    browser.open(f"{served.address}/runs/pairs")
    assert recommended in browser.text("#first") and "recommends" in browser.text("#first")
    assert browser.errors() == [] and browser.is_as_wide_as_the_window()

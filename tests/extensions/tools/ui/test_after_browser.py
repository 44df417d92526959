"""What a run's page begins with, in Chromium: the best sample, the file, and what to do
with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from extensions.tools.shared.image_files import read_settings
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser
from toolkit.train.lock import run_lock

pytestmark = pytest.mark.slow

WIDTHS = ((1200, 300), (390, 500))
"""Width of a window, and how far down the download may end, in CSS pixels."""


def bottom(browser: Browser, selector: str) -> float:
    """Where an element ends, in pixels from the top of the page."""
    return browser.run(
        "return document.querySelector(arguments[0]).getBoundingClientRect().bottom + scrollY",
        selector,
    )


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 1344), (1344, 768)])
@pytest.mark.parametrize(("width", "most"), WIDTHS)
def test_the_download_is_seen_at_once(
    browser: Browser,
    served: Served,
    make_run: Callable[..., Path],
    width: int,
    most: int,
    shape: tuple[int, int],
) -> None:
    folder = make_run(
        "a_character_with_a_long_name_of_her_own",
        steps=2000,
        sampled=(1000, 2000),
        reason="no step is better",
    )
    for image in (folder / "samples").iterdir():
        Image.effect_noise(shape, 60).convert("RGB").save(image)
    for step in range(200, 2000, 200):
        (folder / f"{folder.name}_{step:09d}.safetensors").write_bytes(
            (folder / f"{folder.name}.safetensors").read_bytes()
        )
    (folder / "best.json").write_text(
        json.dumps({"recommended": f"{folder.name}_000001000.safetensors"})
    )
    for dark in (False, True):
        browser.open(
            f"{served.address}/runs/{folder.name}", width=width, height=800, dark=dark
        )
        browser.wait_for("document.querySelector('#first img').naturalWidth")
        assert bottom(browser, "#download") <= most
        assert (
            browser.run("return document.querySelector('#first img').src").find(
                "000001000_0.png"
            )
            > 0
        )
        assert browser.run("return document.querySelector('#download').href").endswith(
            "_000001000.safetensors"
        )
        assert browser.is_as_wide_as_the_window() and browser.errors() == []


@pytest.fixture
def trained(run_py, write_job, trainer, tmp_path: Path, ui: Ui) -> Path:
    """A run of four steps on the tiny model, with pairs: two files, samples with a
    control image."""
    for folder, colours in (
        ("before", ("teal", "navy")),
        ("after", ("olive", "coral")),
    ):
        (ui.datasets / folder).mkdir()
        for index, colour in enumerate(colours):
            Image.new("RGB", (64, 64), colour).save(
                ui.datasets / folder / f"{index}.png"
            )
    controls = [f"datasets/before/{index}.png" for index in range(2)]
    samples = [
        {"prompt": "[trigger] in a hat", "ctrl_img_1": control} for control in controls
    ]
    section = trainer(
        "datasets/after",
        train={"steps": 4},
        save={"dtype": "float32", "save_every": 2},
        trigger_word="pipo",
        sample={
            "sample_every": 2,
            "width": 64,
            "height": 64,
            "sample_steps": 2,
            "samples": samples,
        },
    )
    section["datasets"][0] |= {
        "control_path": "datasets/before",
        "default_caption": "pipo in a hat",
    }
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
    values = [
        browser.run(field, f"[name={name}]")
        for name in ("prompt", "width", "height", "strength", "file")
    ]
    assert values == ["pipo in a hat", "64", "64", "1", "pairs.safetensors"]
    assert (
        browser.run("return document.querySelectorAll('#controls .shot').length") == 2
    )

    fill(browser, "#try-strength", "strong")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelector('#try-strength[aria-invalid]')")
    assert (
        "Write a number" in browser.text("#try-strength-bad")
        and not (trained / "tried").exists()
    )
    assert len(browser.errors()) == 1  # the answer to the mistake
    fill(browser, "#try-strength", "0.5")
    browser.run("document.getElementById('try-count').value = '2'")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 2", 90)
    browser.wait_for(
        "[...document.querySelectorAll('#tried img')].every(image => image.naturalWidth)"
    )
    assert "pipo in a hat" in browser.text(
        "#tried"
    ) and "pairs.safetensors × 0.5, seed 43" in browser.text("#tried")
    assert browser.run(field, "#try-strength") == "0.5"  # the form stays as it was

    own = tmp_path / "mine.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(own)
    browser.type("[name=image]", str(own))
    assert browser.run(
        "return document.querySelector('[name=control][value=send]').checked"
    )
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 4", 90)
    assert (
        browser.run("return document.querySelector('[name=control]:checked').value")
        == "control:mine.png"
    )
    settings = [read_settings(path) for path in (trained / "tried").glob("*.png")]
    references = {one["path"] for image in settings for one in image["reference"]}
    assert references == {
        "datasets/before/0.png",
        "output/pairs/tried/control/mine.png",
    }

    browser.click("#blocks summary")
    fill(browser, "[name='blocks:1']", "0")
    browser.click("#blocks button")
    browser.wait_for(
        "document.getElementById('told').innerText == 'Saved as pairs_blocks_1.safetensors.'",
        60,
    )
    assert (
        browser.run(field, "#try-file") == "pairs_blocks_1.safetensors"
        and browser.run(field, "[name='blocks:1']") == "1"
    )
    assert "pairs_blocks_1.safetensors" in browser.text("#files")
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 6", 90)
    assert "pairs_blocks_1.safetensors × 0.5" in browser.text("#tried")

    browser.click("#tried .button")
    browser.wait_for("document.querySelector('#pair .two img')?.naturalWidth")
    browser.press("ArrowLeft")
    browser.wait_for("document.querySelector('.counts').innerText.startsWith('1 of ')")
    vote = json.loads((trained / "tried" / "votes.jsonl").read_text())
    assert vote["prompt"] == "pipo in a hat" and {vote["better"], vote["worse"]} < {
        *map(str, os.listdir(trained / "tried"))
    }
    assert browser.errors() == [] and browser.requests_elsewhere() == []


def test_all_files_are_compared_by_one_button(
    browser: Browser, served: Served, trained: Path
) -> None:
    browser.open(f"{served.address}/runs/pairs")
    browser.click("#first form button")
    browser.wait_for("location.hash == '#compared'")
    # 2 prompts, 2 files, no file
    browser.wait_for(
        "document.querySelectorAll('#outcome .cells img').length == 6", 120
    )
    browser.wait_for("document.querySelector('#outcome .numbers')", 120)
    assert json.loads((trained / "best.json").read_text())["recommended"] is None, (
        "no images are held out"
    )
    assert "It cannot be told which file is best" in browser.text("#outcome")
    assert "failed" not in browser.text("#outcome")
    browser.open(f"{served.address}/runs/pairs")
    assert "measures which one" not in browser.text("#first")
    assert browser.errors() == [] and browser.is_as_wide_as_the_window()


CONTRAST = r"""
const rgb = text => text.match(/[\d.]+/g).map(Number);
const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = colour => colour.slice(0, 3).map(value => linear(value / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (; element; element = element.parentElement) {
    const found = rgb(getComputedStyle(element).backgroundColor);
    if (found.length === 3 || found[3] > 0.5) return found;
  }
  return [255, 255, 255];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faults = [];
for (let node; node = walker.nextNode();) {
  const element = node.parentElement;
  if (!node.data.trim() || !element.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})) continue;
  if (element.closest('script, style, noscript, :disabled, .skip')) continue;
  const [one, two] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
  if ((one + 0.05) / (two + 0.05) < 4.5) faults.push([node.data.trim().slice(0, 40), (one + 0.05) / (two + 0.05)]);
}
return faults;
"""
"""Texts that are seen with a contrast below 4.5 to 1 (WCAG 2.2, 1.4.3)."""

CONTROLS = {
    "button",
    "link",
    "textbox",
    "combobox",
    "checkbox",
    "radio",
    "slider",
    "spinbutton",
    "DisclosureTriangle",
}


def unnamed(browser: Browser) -> list[str]:
    """The controls and images that a screen reader has no name for."""
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    asked = [
        node
        for node in nodes
        if node["role"]["value"] in {*CONTROLS, "image"} and not node["ignored"]
    ]
    assert len(asked) > 20
    return [
        node["role"]["value"] for node in asked if not node.get("name", {}).get("value")
    ]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_all_is_read_named_and_reached_by_keys(
    browser: Browser, served: Served, trained: Path, width: int, dark: bool
) -> None:
    image = "a_1_0000000000.png"
    settings = {
        "prompt": "a cat",
        "seed": 1,
        "reference": [],
        "lora": [{"path": "pairs.safetensors", "strength": 1}],
    }
    for folder, more in (
        ("tried", settings),
        ("tried", settings | {"seed": 2}),
        ("compared", settings),
    ):
        (trained / folder).mkdir(exist_ok=True)
        text = PngInfo()
        text.add_itxt("atelier", json.dumps(more))
        Image.new("RGB", (64, 64), "teal").save(
            trained / folder / f"{more['seed']}{image}", pnginfo=text
        )
    row = {"file": "pairs.safetensors", "step": 4, "loss": 0.5, "drift": 0.125}
    measured = {
        "recommended": "pairs.safetensors",
        "reason": "the lowest loss",
        "files": [row],
    }
    (trained / "best.json").write_text(json.dumps(measured))
    browser.open(f"{served.address}/runs/pairs", width=width, height=900, dark=dark)
    browser.wait_for("document.querySelector('.plot canvas')")
    for _ in range(40):  # nothing but keys, until the summary of More
        browser.press("Tab")
        if browser.run("return document.activeElement.id") == "download":
            break
    assert browser.run("return document.activeElement.id") == "download"
    browser.press("Tab", "Enter")
    assert browser.run("return location.hash") == "#try"
    browser.run("document.querySelector('#more > summary').focus()")
    browser.press("Enter")
    assert browser.run("return document.getElementById('more').open")
    browser.run(
        "for (const part of document.querySelectorAll('main details')) part.open = true"
    )
    assert browser.run(CONTRAST) == [] and unnamed(browser) == []
    assert browser.is_as_wide_as_the_window() and browser.errors() == []


def test_a_link_to_a_folded_part_opens_it_and_one_chart_marks_the_samples(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    browser.open(f"{served.address}/runs/one")
    browser.wait_for("document.querySelectorAll('.plot canvas').length >= 2")
    assert browser.run("return document.querySelectorAll('#plots .plot').length") == 1
    assert browser.text("#plots figcaption") == "Loss" and not browser.run(
        "return document.getElementById('more').open"
    )
    assert browser.run("return document.getElementById('no-curves')") is None
    browser.click("nav.parts a[href='#events']")
    browser.wait_for("document.getElementById('more').open")
    browser.wait_for(
        "document.getElementById('events').getBoundingClientRect().top < innerHeight"
    )
    assert (
        browser.run("return document.querySelector('#more-plots .plot').clientWidth")
        > 300
    )
    assert browser.errors() == []


def test_a_run_that_trains_begins_with_its_samples(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="running")
    with run_lock(folder):
        browser.open(f"{served.address}/runs/one")
        parts = (
            "return [...document.querySelectorAll('main section')].map(part => part.id)"
        )
        assert browser.run(parts)[:3] == ["samples", "curves", "files"]
        assert (
            browser.run(
                "return document.querySelector('#samples').getBoundingClientRect().top"
            )
            < 300
        )
        assert browser.run("return document.querySelector('#first')") is None
    # it has ended: the page has the result without being asked
    browser.wait_for("document.querySelector('#first')")
    assert browser.run("return document.querySelector('main section').id") == "first"

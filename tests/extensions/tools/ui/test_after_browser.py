"""What a run's page begins with, in Chromium: the best sample, the file, and what to do
with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.shared.image_files import read_settings
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.accessible import SIZES, faults
from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser
from toolkit.train.lock import run_lock

pytestmark = pytest.mark.slow


def bottom(browser: Browser, selector: str) -> float:
    """Where an element ends, in pixels from the top of the page."""
    return browser.run(
        "return document.querySelector(arguments[0]).getBoundingClientRect().bottom + scrollY",
        selector,
    )


def test_the_download_is_seen_at_once(
    browser: Browser, address: str, make_run: Callable[..., Path]
) -> None:
    name = "a_character_with_a_long_name_of_her_own"
    folder = make_run(
        name, steps=2000, sampled=(1000, 2000), reason="no step is better"
    )
    weights = (folder / f"{name}.safetensors").read_bytes()
    for step in range(200, 2000, 200):
        (folder / f"{name}_{step:09d}.safetensors").write_bytes(weights)
    recommended = {"recommended": f"{name}_000001000.safetensors"}
    (folder / "best.json").write_text(json.dumps(recommended))
    for shape, width, most in (
        ((1024, 1024), 1200, 300),
        ((1344, 768), 390, 500),
        ((768, 1344), 390, 500),
        ((768, 1344), 1200, 300),
    ):
        for image in (folder / "samples").iterdir():
            Image.new("RGB", shape, "teal").save(image)
        browser.open(f"{address}/runs/{name}", width=width, height=800)
        browser.wait_for("document.querySelector('#shots .now img').naturalWidth")
        assert bottom(browser, "#download") <= most, (shape, width)
        assert browser.is_as_wide_as_the_window() and browser.errors() == []
    first, link = browser.run(
        "return [document.querySelector('#shots .now img').src, document.querySelector('#download').href]"
    )
    assert "000001000_0.png" in first and link.endswith("_000001000.safetensors")


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


def test_a_file_is_tried_and_compared_with_the_others(
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
    own = tmp_path / "mine.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(own)
    browser.type("[name=image]", str(own))  # for the next image, not for the file
    assert browser.run(
        "return document.querySelector('[value=send]:checked') && document.querySelector('[name=image]').files.length"
    ) == 1, "the image that was chosen is still there"  # fmt: skip
    browser.click("#try-form button.main")
    browser.wait_for("document.querySelectorAll('#tried img').length == 2", 90)
    browser.wait_for(
        "[...document.querySelectorAll('#tried img')].every(image => image.naturalWidth)"
    )
    told = browser.text("#tried")
    assert "pipo in a hat" in told
    assert "pairs.safetensors × 0.5, seed 43" in told
    assert browser.run(field, "#try-strength") == "0.5"  # the form stays as it was
    assert browser.run(field, "[name=control]:checked") == "control:mine.png"
    settings = [read_settings(path) for path in (trained / "tried").glob("*.png")]
    references = {one["path"] for image in settings for one in image["reference"]}
    assert references == {"output/pairs/tried/control/mine.png"}

    browser.open(f"{served.address}/runs/pairs")
    browser.click(".head form[action$='/compare'] button")
    browser.wait_for("location.hash == '#compared'")
    # 2 prompts, 2 files, no file
    browser.wait_for(
        "document.querySelectorAll('#outcome .cells img').length == 6", 120
    )
    browser.wait_for("document.querySelector('#outcome .why')", 120)
    assert json.loads((trained / "best.json").read_text())["recommended"] is None, (
        "no images are held out"
    )
    assert "It cannot be told which file is best" in browser.text("#outcome")
    assert "failed" not in browser.text("#outcome")

    for width, dark in SIZES:
        browser.open(f"{served.address}/runs/pairs", width=width, dark=dark)
        assert "measures which one" not in browser.text("#use")
        browser.wait_for("document.querySelector('.plot canvas')")
        browser.run(
            "for (const part of document.querySelectorAll('main details')) part.open = true"
        )
        assert faults(browser, width) == []
    browser.open(f"{served.address}/runs/pairs")
    for _ in range(40):  # nothing but keys, until the summary of More
        browser.press("Tab")
        if browser.run("return document.activeElement.id") == "download":
            break
    browser.press("Tab", "Enter")
    assert browser.run("return location.hash") == "#try"
    browser.run("document.querySelector('#more > summary').focus()")
    browser.press("Enter")
    assert browser.run("return document.getElementById('more').open")
    assert browser.errors() == [] and browser.requests_elsewhere() == []


def test_a_link_to_a_folded_part_opens_it_and_one_chart_marks_the_samples(
    browser: Browser, address: str, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    browser.open(f"{address}/runs/one")
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
    browser: Browser, address: str, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="running")
    with run_lock(folder):
        browser.open(f"{address}/runs/one")
        parts = (
            "return [...document.querySelectorAll('main section')].map(part => part.id)"
        )
        assert browser.run(parts)[:4] == ["samples", "notices", "curves", "files"]
        assert (
            browser.run(
                "return document.querySelector('#samples').getBoundingClientRect().top"
            )
            < 300
        )
        assert browser.run("return document.querySelector('#use')") is None
    # it has ended: the page has the result without being asked
    browser.wait_for("document.querySelector('#use')")
    assert browser.run("return document.querySelector('main section').id") == "samples"

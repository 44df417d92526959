"""A character made from nothing by clicks and keys alone, on the tiny model: the page,
its queue and real runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser

pytestmark = pytest.mark.slow

COLOURS = ("teal", "navy", "olive", "coral")


def drawn(folder: Path) -> list[Path]:
    """Images that a camera might have called so."""
    paths = [folder / f"写真 {colour}.png" for colour in COLOURS]
    for path, colour in zip(paths, COLOURS, strict=True):
        image = Image.effect_noise((128, 128), 60).convert("RGB")
        ImageDraw.Draw(image).ellipse((24, 24, 104, 104), fill=colour)
        image.save(path)
    return paths


def fill(browser: Browser, selector: str, text: str) -> None:
    """Types over what a field holds."""
    browser.click(selector)
    browser.run("document.activeElement.select()")
    browser.type(selector, text)


def seen(browser: Browser, text: str, seconds: float = 60) -> None:
    browser.wait_for(f"document.body.innerText.includes({text!r})", seconds)


def click_when(browser: Browser, selector: str, seconds: float = 30) -> None:
    """Clicks on what is about to appear."""
    browser.wait_for(f"document.querySelector({selector!r})", seconds)
    browser.click(selector)


def test_a_character_is_made_from_nothing(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    sent, loaded = tmp_path / "sent", tmp_path / "loaded"
    sent.mkdir(), loaded.mkdir()
    browser.open(served.address)
    browser.command(
        "Page.setDownloadBehavior", behavior="allow", downloadPath=str(loaded)
    )

    browser.click(".empty .main")
    browser.type("[name=name]", "pipo")
    browser.click("form.new .main")
    (sent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n of no image")
    browser.type(
        "[name=file]", "\n".join(map(str, [*drawn(sent), sent / "broken.png"]))
    )
    browser.wait_for("document.querySelectorAll('.image').length == 4", 60)
    assert "broken.png" in browser.text(".sent") and "not accepted" in browser.text(
        ".sent .bad"
    )
    assert "4 without a caption" in browser.text(".counts")
    for number, colour in enumerate(COLOURS, 1):
        browser.type(f".image:nth-of-type({number}) textarea", f"pipo, {colour}")
    browser.click("h1")
    seen(browser, "all captioned")
    folder = served.folder / "datasets" / "pipo"
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(
        path.name for path in drawn(sent)
    )
    assert {path.read_text().strip() for path in folder.glob("*.txt")} == {
        f"pipo, {colour}" for colour in COLOURS
    }

    browser.click(".head .main")
    assert browser.run("return document.getElementById('f-name').value") == "pipo"
    browser.click("#f-model option[value$=tiny_mascots]")
    fill(browser, '[name="key:train.steps"]', "many")
    seen(browser, "'many' is not a whole number")
    assert (
        browser.run("return document.activeElement.getAttribute('aria-invalid')")
        == "true"
    )
    fill(browser, '[name="key:train.steps"]', "40")
    fill(browser, '[name="key:save.save_every"]', "20")
    fill(browser, '[name="key:sample.sample_every"]', "8")
    seen(browser, "Ready to start")
    browser.click("[value=start]")

    browser.wait_for("location.pathname == '/runs/pipo'", 60)  # Start leads to the run
    browser.wait_for("document.getElementById('step')", 60)
    browser.run("window.isSame = true")
    browser.wait_for("document.getElementById('step').max >= 1", 60)
    browser.wait_for("document.querySelector('.frame.now img').naturalWidth")
    browser.wait_for(
        "document.querySelector('.plot canvas') && document.querySelector('[data-fact=loss]')"
    )
    assert 0 < float(browser.text("[data-fact=loss]")) < 5 and browser.run(
        "return window.isSame"
    )
    browser.click("[name=request][value=stop]")
    browser.wait_for("document.querySelector('#state .stopped')", 60)
    # the facts of a save may say so a moment before the page has its other buttons
    click_when(browser, ".head .main")
    browser.wait_for("location.pathname.startsWith('/queue/')")
    browser.wait_for("location.pathname == '/runs/pipo'", 60)  # and so does Resume
    browser.wait_for("document.querySelector('#state .finished')", 120)
    assert "40 / 40" in browser.text("#state")
    browser.click("#files a[href$='/pipo.safetensors']")
    made = (served.folder / "output" / "pipo" / "pipo.safetensors").read_bytes()
    deadline = time.monotonic() + 30
    while not (loaded / "pipo.safetensors").exists():
        assert time.monotonic() < deadline, list(loaded.iterdir())
        time.sleep(0.05)
    assert (loaded / "pipo.safetensors").read_bytes() == made
    browser.click("#more > summary")
    assert "step 40 of 40" in browser.text("#tail") and "resum" in browser.text("#tail")
    assert browser.errors() == [] and browser.requests_elsewhere() == []

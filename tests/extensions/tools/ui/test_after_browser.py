"""What a run's page begins with, in Chromium: the best sample, the file, and what to do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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

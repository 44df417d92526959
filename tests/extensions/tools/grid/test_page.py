"""The page of a grid, in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.grid.page import Column, Row, grid_page
from extensions.tools.shared.generation import LoraFile, Picture
from tests.html_browser import Browser
from toolkit.data.types import Size
from toolkit.train.sampling import SamplePrompt

PROMPTS = ("<b>bold</b> & a cat", "a dog", "a bird")
STRENGTHS = (None, 0.5, 1.0)


def write_grid(folder: Path, missing: tuple[int, int] | None = (2, 2), strengths=STRENGTHS) -> Path:
    """Three rows and three columns of plain pictures, of which one is not made yet."""
    columns = [Column.of([LoraFile("loras/my_char.safetensors", s, "0" * 64)] if s else []) for s in strengths]
    rows = []
    for row, prompt in enumerate(PROMPTS):
        pictures = []
        for column, strength in enumerate(strengths):
            settings = {
                "prompt": prompt,
                "seed": row,
                "lora": [{"path": "x", "strength": strength, "sha256": ""}],
                "reference": [],
                "model": {"name_or_path": "MODEL"},
                "steps": 4,
                "dtype": "float32",
            }
            picture = Picture(SamplePrompt(prompt, "", Size(96, 64), row, 4.0, 4), (), settings)
            if (row, column) != missing:
                Image.new("RGB", (96, 64), (60 * row + 60, 60 * column + 60, 120)).save(folder / picture.name)
            pictures.append(picture)
        rows.append(Row(pictures))
    path = folder / "index.html"
    path.write_text(grid_page(columns, rows, folder, "my_char"), encoding="utf-8")
    return path


def test_what_is_not_made_yet_is_blank_and_texts_are_escaped(tmp_path: Path) -> None:
    text = write_grid(tmp_path).read_text()
    assert text.count("<img src=") == 8 and text.count("not made yet") == 1
    assert "<b>bold</b> & a cat" not in text and "&lt;b&gt;bold" in text


@pytest.mark.slow
def test_a_browser_shows_it_by_keys_and_keeps_favourites(browser: Browser, tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    browser.open(path)
    large = "return document.getElementById('box').hidden ? '' : document.getElementById('told').textContent"
    browser.press("ArrowRight", "ArrowDown", "ArrowRight", "Enter")
    assert browser.run(large) == "my_char x 0.5 | cfg 4, seed 1 | a dog"
    assert browser.run("return document.getElementById('large').naturalWidth") == 96
    browser.screenshot(tmp_path / "large.png", whole=False)
    browser.press("f", "ArrowRight")
    assert browser.run(large) == "my_char x 1 | cfg 4, seed 1 | a dog"
    browser.press("ArrowDown")  # not made yet: stays
    assert browser.run(large) == "my_char x 1 | cfg 4, seed 1 | a dog"
    browser.press("ArrowUp", "f", "Escape")
    assert browser.run(large) == ""
    assert browser.text("#count") == "2 favourites"
    browser.screenshot(tmp_path / "grid.png")
    browser.run("window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:none'; }")
    browser.click("#export")
    saved = json.loads(browser.run("return window.saved.text()"))
    assert [(one["prompt"], one["strength"], one["seed"]) for one in saved] == [(PROMPTS[0], 1.0, 0), ("a dog", 0.5, 1)]
    assert saved[1]["lora"] == "loras/my_char.safetensors" and (tmp_path / saved[1]["file"]).is_file()

    seen = "return [...document.querySelectorAll('td')].filter((cell) => cell.offsetParent !== null).length"
    assert browser.run(seen) == 9
    browser.click("tbody tr:nth-child(2) .hide")
    browser.click("thead th:nth-child(3) .hide")
    assert browser.run(seen) == 4
    browser.press("ArrowLeft", "ArrowDown", "Enter")
    assert browser.run(large) == "without LoRA | cfg 4, seed 2 | a bird"
    browser.press("Escape")
    browser.click("#show")
    assert browser.run(seen) == 9
    assert browser.requests_elsewhere() == []
    for _ in range(100):  # the browser writes them down when it likes
        browser.open(path)
        if browser.text("#count") == "2 favourites":
            break
    else:
        pytest.fail("favourites do not outlive the page")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "fits"), [(1280, True), (1920, True), (700, False)])
def test_five_columns_fit_or_scroll(browser: Browser, tmp_path: Path, width: int, fits: bool) -> None:
    browser.open(write_grid(tmp_path, strengths=(None, 0.5, 0.75, 1.0, 1.25)), width=width, height=800)
    assert browser.is_as_wide_as_the_window()
    rest = browser.run("const box = document.querySelector('.wide'); return box.scrollWidth - box.clientWidth")
    assert (rest <= 0) == fits


@pytest.mark.slow
def test_a_phone_shows_it(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_grid(tmp_path), width=400, height=800)
    assert browser.is_as_wide_as_the_window()
    browser.screenshot(tmp_path / "phone.png")
    browser.click("tbody tr:nth-child(1) td:nth-child(2) .open")
    assert browser.is_as_wide_as_the_window()
    browser.click("#next")
    assert "my_char" in browser.text("#told")
    assert browser.requests_elsewhere() == [] and browser.errors() == []

"""`grid` on the tiny model: which pictures it makes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.grid.page import Column, Row, grid_page
from extensions.tools.shared import generation
from extensions.tools.shared.generation import LoraFile, Picture
from extensions.tools.shared.image_files import read_settings
from tests.conftest import ROOT
from tests.diffusers_reference import psnr
from tests.extensions.tools.generate.test_process import SMALL, write_lora
from tests.html_browser import Browser
from tests.running import run_tool, section_of
from toolkit.contracts.data import Size
from toolkit.errors import UserError
from toolkit.train.sampling import SamplePrompt


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], dict]:
    """Runs a command in `tmp_path` in this process; returns the data of the page in
    `out`."""
    monkeypatch.chdir(tmp_path)

    def grid(line: str) -> dict:
        run_tool("grid", shlex.split(line))
        page = (tmp_path / "out" / "index.html").read_text()
        return json.loads(
            re.search(r'type="application/json"[^>]*>\s*(.*?)\s*</script>', page)[1]
        )

    return grid


@pytest.mark.slow
def test_a_grid_has_a_column_for_each_file_and_strength_behind_the_model_alone(
    grid, unit_gain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("abc"):
        write_lora(unit_gain_model, tmp_path / f"{name}.safetensors", seed)
    loads: list[object] = []
    load = generation.load_base_model
    monkeypatch.setattr(
        generation,
        "load_base_model",
        lambda *given: loads.append(given) or load(*given),
    )
    line = f"--model {unit_gain_model} --prompt coffee 'tea --d 5' --seed 1 2 {SMALL.replace('--steps 2', '--steps 1')}"
    data = grid(
        f"{line} --cfg 1 --lora a.safetensors b.safetensors:-0.3 --strength 0.5 1"
    )
    assert [(column["name"], column["strength"]) for column in data["columns"]] == [
        ("without LoRA", None),
        ("a", 0.5),
        ("a", 1.0),
        ("b", -0.3),
    ]
    assert [(row["prompt"], row["cfg"], row["seed"]) for row in data["rows"]] == [
        ("coffee", 1.0, 1),
        ("coffee", 1.0, 2),
        ("tea", 1.0, 5),
    ]
    for row, names in zip(data["rows"], data["files"], strict=True):
        for column, name in zip(data["columns"], names, strict=True):
            settings = read_settings(tmp_path / "out" / name)
            lora = [(file["path"], file["strength"]) for file in settings["lora"]]
            assert lora == (
                [(column["lora"], column["strength"])] if column["lora"] else []
            )
            assert (settings["prompt"], settings["seed"]) == (
                row["prompt"],
                row["seed"],
            )
    base, *others = (Image.open(tmp_path / "out" / name) for name in data["files"][0])
    assert all(psnr(base, other) < 60 for other in others)
    assert len(loads) == 1
    # With another file all else is there already, and a column that was alone is the
    # same picture.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    more = grid(f"{line} --cfg 1 --lora a.safetensors c.safetensors")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [[row[0], row[1]] for row in more["files"]] == [
        [row[0], row[2]] for row in data["files"]
    ]
    assert len(list((tmp_path / "out").glob("*.png"))) == len(times) + 3
    # Nothing is left to do: no model is loaded.
    grid(f"{line} --cfg 1 --lora a.safetensors")
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model {m} --prompt x", "run.py grid: --lora: is required."),
        ("--model {m} --lora a.safetensors", "--prompt: is required. Or give"),
        (
            "--model {m} --prompt x --lora none.safetensors",
            "--lora: 'none.safetensors' is not a file",
        ),
        (
            "--model {m} --prompt x --lora a.safetensors --strength much",
            "--strength: 'much' is not a number",
        ),
        (
            "--model {m} --prompt x --lora a.safetensors --also notes.txt",
            "--also: 'notes.txt' cannot be read as a safetensors file",
        ),
        (
            "--model {m} --prompt x --lora a.safetensors --output other",
            "was not made by this program",
        ),
    ],
)
def test_wrong_input_is_one_line(
    line: str, message: str, tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora(tiny_model, tmp_path / "a.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<p>mine")
    with pytest.raises(UserError) as refused:
        section_of("grid", shlex.split(line.format(m=tiny_model)))
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_the_commands_of_the_page_are_understood(
    tiny_model: Path, tmp_path: Path, make_pictures, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MODEL").symlink_to(tiny_model)
    run = tmp_path / "output" / "my_char"
    run.mkdir(parents=True)
    for path in (tmp_path / "my_char", tmp_path / "lightning_8", run / "my_char_100"):
        write_lora(tiny_model, path.with_suffix(".safetensors"))
    make_pictures(tmp_path, "photo", captions=False)
    page = (ROOT / "extensions/tools/grid/README.md").read_text(encoding="utf-8")
    commands = re.findall(r"python run\.py grid ([^`\n]*)", page)
    assert len(commands) >= 6
    for line in commands:
        words = line.replace("my_char_*", "my_char_100")
        assert section_of("grid", shlex.split(words)), line


# ------------------------------------------------------------ the page


PROMPTS = ("<b>bold</b> & a cat", "a dog", "a bird")
STRENGTHS = (None, 0.5, 1.0)


def write_grid(
    folder: Path, missing: tuple[int, int] | None = (2, 2), strengths=STRENGTHS
) -> Path:
    """Three rows and three columns of plain pictures, of which one is not made yet."""
    columns = [
        Column.of([LoraFile("loras/my_char.safetensors", s, "0" * 64)] if s else [])
        for s in strengths
    ]
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
            picture = Picture(
                SamplePrompt(prompt, "", Size(96, 64), row, 4.0, 4), (), settings
            )
            if (row, column) != missing:
                Image.new("RGB", (96, 64), (60 * row + 60, 60 * column + 60, 120)).save(
                    folder / picture.name
                )
            pictures.append(picture)
        rows.append(Row(pictures))
    path = folder / "index.html"
    path.write_text(grid_page(columns, rows, folder, "my_char"), encoding="utf-8")
    return path


def test_what_is_not_made_yet_is_blank_and_texts_are_escaped(tmp_path: Path) -> None:
    text = write_grid(tmp_path).read_text()
    assert text.count('loading="lazy"') == 8 and text.count("not made yet") == 1
    assert "<b>bold</b> & a cat" not in text and "&lt;b&gt;bold" in text


@pytest.mark.slow
def test_a_browser_shows_it_by_keys_and_keeps_favourites(
    browser: Browser, tmp_path: Path
) -> None:
    path = write_grid(tmp_path)
    browser.open(path)
    large = "return document.getElementById('box').hidden ? '' : document.getElementById('told').textContent"
    browser.press("ArrowRight", "ArrowDown", "ArrowRight", "Enter")
    assert browser.run(large) == "my_char x 0.5 | cfg 4, seed 1 | a dog"
    browser.wait_for("document.getElementById('large').naturalWidth == 96")
    browser.press("f", "ArrowRight")
    assert browser.run(large) == "my_char x 1 | cfg 4, seed 1 | a dog"
    browser.press("ArrowDown")  # not made yet: stays
    assert browser.run(large) == "my_char x 1 | cfg 4, seed 1 | a dog"
    browser.press("ArrowUp", "f", "Escape")
    assert browser.run(large) == ""
    assert browser.text("#count") == "2 favourites"
    browser.run(
        "window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:none'; }"
    )
    browser.click("#export")
    saved = json.loads(browser.run("return window.saved.text()"))
    assert [(one["prompt"], one["strength"], one["seed"]) for one in saved] == [
        (PROMPTS[0], 1.0, 0),
        ("a dog", 0.5, 1),
    ]
    assert (
        saved[1]["lora"] == "loras/my_char.safetensors"
        and (tmp_path / saved[1]["file"]).is_file()
    )

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
@pytest.mark.parametrize(("width", "fits"), [(1280, True), (400, False)])
def test_five_columns_fit_or_scroll(
    browser: Browser, tmp_path: Path, width: int, fits: bool
) -> None:
    browser.open(
        write_grid(tmp_path, strengths=(None, 0.5, 0.75, 1.0, 1.25)),
        width=width,
        height=800,
    )
    assert browser.is_as_wide_as_the_window()
    rest = browser.run(
        "const box = document.querySelector('.wide'); return box.scrollWidth - box.clientWidth"
    )
    assert (rest <= 0) == fits
    browser.click("tbody tr:nth-child(1) td:nth-child(2) .open")
    assert browser.is_as_wide_as_the_window()
    browser.click("#next")
    assert "my_char" in browser.text("#told") and browser.errors() == []

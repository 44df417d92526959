"""The screens of the page in both themes and on a phone: what is faint, without a name,
out of reach or too wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from extensions.tools.ui.queue import FAILED, Queue
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.accessible import SIZES, faults
from tests.html_browser import Browser

pytestmark = pytest.mark.slow

COLOURS = """const style = getComputedStyle(document.body);
    return [style.backgroundColor, style.color].map(c => c.match(/\\d+/g).slice(0, 3))"""


def draw(
    folder: Path, *names: str, colour: str = "olive", eyes: bool = False
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in names]
    for path in paths:
        image = Image.new("RGB", (192, 128), "beige")
        ImageDraw.Draw(image).ellipse(
            (60, 24, 132, 104), fill="white" if eyes else colour, outline="black"
        )
        image.save(path)
    return paths


@pytest.fixture
def sets(ui: Ui) -> Ui:
    draw(ui.datasets / "pipo", "a", "b", "a_mask", "b_mask")
    for side in ("source", "target"):
        draw(ui.datasets / "both" / side, "x")
    return ui


def test_the_screens_are_easy_to_see_and_to_reach(
    browser: Browser, sets: Ui, address: str, make_run: Callable[..., Path]
) -> None:
    """Pairs, a form with faults, an entry of the queue, a run, and the machine."""
    (sets.datasets / "new" / "before").mkdir(parents=True)
    (sets.datasets / "new" / "after").mkdir()
    draw(sets.datasets / "both" / "source", "alone")
    draw(sets.datasets / "both" / "target", "alone too")
    make_run("one")
    queue = Queue(sets.own / "queue")
    waits, failed = (queue.add(["inspect", name], name).id for name in "ab")
    queue.save(
        queue.entry(failed), state=FAILED, why="no such file", exit_code=1, attempts=1
    )
    queue.log(failed).write_text("reading\n")
    for width, dark in SIZES:
        for path in (
            "/",
            "/compare?run=one",
            "/datasets",
            "/datasets/new",
            "/datasets/both",
            "/datasets/pipo",
            "/new?dataset=both",
            f"/queue/{waits}",
            f"/queue/{failed}",
            "/runs/one",
            "/system",
        ):
            browser.open(address + path, width=width, dark=dark)
            browser.run(
                "for (const each of document.querySelectorAll('.plot details, .tools details')) each.open = true"
            )
            assert (path, faults(browser, width)) == (path, [])
            back, text = browser.run(COLOURS)
            assert (sum(map(int, back)) < sum(map(int, text))) is dark, path
        assert browser.errors() == []
        browser.open(f"{address}/datasets", width=width, dark=dark)
        browser.type("[name=name]", "pipo")
        browser.click("form.new .main")
        browser.wait_for("document.querySelector('#name-bad')?.textContent")
        assert faults(browser, width) == []
        browser.open(f"{address}/datasets/pipo", width=width, dark=dark)
        browser.run(
            "document.querySelector('[name=masks]').closest('details').open = true"
        )
        browser.type("[name=masks]", "nowhere")
        browser.click("form:has(> * [name=masks]) button")
        browser.wait_for("document.querySelector('#masks-bad')?.textContent")
        assert faults(browser, width) == []
    browser.open(f"{address}/new")
    browser.wait_for("document.querySelector('.gutter').childElementCount")
    browser.click("[value=start]")
    browser.wait_for(
        "document.querySelector('#f-folder-bad')?.textContent == 'Choose a folder of images.'",
        60,
    )
    assert browser.run("return document.activeElement.id") == "f-folder"
    assert faults(browser, 1280) == []

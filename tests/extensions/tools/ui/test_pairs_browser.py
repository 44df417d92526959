"""Pairs by clicks: two drop zones, what has no partner, and a job that takes over every
choice of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from extensions.tools.ui.queue import FAILED, Queue
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.accessible import SIZES, faults
from tests.extensions.tools.ui.conftest import Served
from tests.extensions.tools.ui.test_from_nothing import fill, seen
from tests.html_browser import Browser

pytestmark = pytest.mark.slow

BEFORE, AFTER = ".drops form:nth-child(1)", ".drops form:nth-child(2)"


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


def send(browser: Browser, zone: str, paths: list[Path]) -> None:
    browser.type(f"{zone} [name=file]", "\n".join(map(str, paths)))


def test_an_edit_is_trained_by_clicks_alone(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    sent = tmp_path / "sent"
    browser.open(f"{served.address}/datasets")
    browser.run("document.querySelector('[value=character]').focus()")
    browser.press("ArrowDown")
    assert not browser.run(
        "return document.querySelector('.repeats').checkVisibility()"
    )
    browser.press("Tab", *"eyes", "Enter")
    browser.wait_for("document.querySelectorAll('.drops [data-upload]').length == 2")
    send(browser, BEFORE, draw(sent / "before", "1", "2", "odd"))
    browser.wait_for("document.querySelectorAll('.orphan').length == 3")
    assert "Drop the image “odd”" in browser.text(".orphans")
    send(browser, AFTER, draw(sent / "after", "1", "2", "3", eyes=True))
    browser.wait_for("document.querySelectorAll('.duo .side').length == 6")
    folder = served.folder / "datasets" / "eyes"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {
        *(f"before/{name}.png" for name in ("1", "2", "odd")),
        *(f"after/{name}.png" for name in ("1", "2", "3")),
    }
    beside = "[...document.querySelector('.image').querySelectorAll('img')].map(e => e.getAttribute('src'))"
    assert browser.run(f"return {beside}") == [
        f"/datasets/eyes/thumbs/{side}/1.png" for side in ("before", "after")
    ]
    assert "2 pairs, 2 without a partner" in browser.text(".counts")
    assert "No image before. Drop the image “3”" in browser.text(".hole")

    browser.run("window.confirm = () => true")
    browser.click(".orphan [name=chosen]")
    browser.click("#orphans-form button")
    browser.wait_for(
        "!document.querySelector('.orphan') && document.querySelector('.told')"
    )
    browser.run(
        "window.confirm = () => true; document.querySelector('[value=\"after/3.png\"]').click()"
    )
    browser.click(".filter [formaction$=delete]")
    browser.wait_for(
        "document.querySelectorAll('.duo .side').length == 4 && document.querySelector('.told')"
    )
    assert "2 pairs ·" in browser.text(".counts")
    browser.type("[name=instruction]", "add eyes")
    browser.click(".instruction button")
    browser.wait_for(
        "document.querySelector('[name=instruction]').defaultValue == 'add eyes'"
    )

    browser.click(".head .main")
    browser.wait_for("document.getElementById('f-control')")
    assert (
        browser.run("return document.getElementById('f-control').value")
        == "datasets/eyes/before"
    )
    assert (
        browser.run("return document.getElementById('f-prompts').value")
        == "add eyes\nadd eyes"
    )
    fill(browser, '[name="key:train.steps"]', "2")
    fill(browser, '[name="key:save.save_every"]', "2")
    fill(browser, '[name="key:sample.sample_every"]', "2")
    seen(browser, "Ready to start")
    browser.click("[value=start]")
    log = served.folder / "output" / "eyes" / "log.txt"
    browser.wait_for("location.pathname == '/runs/eyes'", 60)  # Start leads to the run
    browser.wait_for("document.querySelector('#state .finished')", 120)
    assert "control images: 2 with 1" in " ".join(log.read_text().split())
    assert browser.errors() == [] and browser.requests_elsewhere() == []


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

"""Pairs by clicks, with two drop zones and what has no partner; and the screens of the
page in both themes and on a phone: what is faint, without a name, out of reach or too
wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from extensions.tools.ui.queue import FAILED, Queue
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.accessible import SIZES, faults
from tests.extensions.tools.ui.test_from_nothing import MOST_CLICKS, Clicks
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


def test_pairs_are_made_by_clicks_alone(
    browser: Browser, ui: Ui, address: str, tmp_path: Path
) -> None:
    """Each zone fills its side. The image without a partner is deleted, and the job
    begins with the folder and the instruction. Counted: with Start and the download
    that follow, and without the orphan."""
    browser.open(address)
    click = Clicks(browser)
    click(".ways a")
    browser.wait_for("document.activeElement?.name == 'name'")
    click.type("[name=name]", "eyes")
    assert browser.run("return document.querySelector('[value=pairs]').checked")
    click("form.new .main")
    browser.wait_for("document.querySelectorAll('.drops [data-upload]').length == 2")
    same = [f"{number:02}" for number in range(8)]
    sides = {"before": (*same, "odd"), "after": same}
    for number, (side, names) in enumerate(sides.items(), 1):
        sent = draw(tmp_path / "sent" / side, *names)
        click.choose(f".drops form:nth-child({number}) [name=file]", sent)
        orphans = "document.querySelectorAll('.orphan').length"
        browser.wait_for(f"{orphans} == {9 if number == 1 else 1}", 60)
    browser.wait_for("document.querySelectorAll('.rows .duo .side').length == 16")
    for side, names in sides.items():
        found = sorted(path.stem for path in (ui.datasets / "eyes" / side).iterdir())
        assert found == sorted(names), side
    box = "const box = e => e.getBoundingClientRect();"
    heights = browser.run(
        f"{box} const all = [...document.querySelectorAll('.rows .view')].map(box);"
        "return all.filter(b => b.top === all[0].top).map(b => b.height)"
    )
    assert len(heights) >= 4 and len(heights) % 2 == 0, "both images of each pair"
    assert max(heights) - min(heights) < 1
    browser.run("window.confirm = () => true")
    browser.click(".orphan [name=chosen]")
    browser.click("#orphans-form button")
    browser.wait_for(f"{orphans} == 0 && document.querySelector('.told')")
    assert not (ui.datasets / "eyes" / "before" / "odd.png").exists()
    click.type("[name=instruction]", "add eyes")
    click(".instruction button")
    browser.wait_for(
        "document.querySelector('[name=instruction]').defaultValue == 'add eyes'"
    )
    assert browser.text(".rows .short") == "the instruction: add eyes"
    click(".head [action$='/lint'] button")
    browser.wait_for(
        "document.querySelector('.path .now')?.textContent.trim() == '4Settings'", 60
    )
    click(".head .main")
    browser.wait_for("document.getElementById('f-control')")
    control = browser.run("return document.getElementById('f-control').value")
    assert Path(control) == ui.datasets / "eyes" / "before"
    prompts = browser.run("return document.getElementById('f-prompts').value")
    assert set(prompts.splitlines()) == {"add eyes"}
    browser.wait_for("document.querySelector('.sentence')?.textContent")
    assert browser.text(".sentence").startswith("8 pairs, ")
    assert click.count + len(("Start", "Download")) <= MOST_CLICKS["edit"]
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
    """Pairs, a form with faults, an entry of the queue, and the machine."""
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

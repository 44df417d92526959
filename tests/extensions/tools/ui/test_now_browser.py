"""What a run does, in Chromium: on its page, in the list and in the queue, as it goes
on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from extensions.tools.ui.queue import RUNNING, Queue
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import TOKEN, Served
from tests.html_browser import Browser
from toolkit.files.now import Now
from toolkit.files.run_files import utc_now
from toolkit.train.lock import run_lock

pytestmark = pytest.mark.slow

PLACES = (("/runs/one", 390), ("/", 1200), ("/queue", 390))
"""Address and width of the window in CSS pixels."""


def says(folder: Path, now: Now, **more: object) -> None:
    """What a run writes while it does this."""
    document = {
        "name": "one",
        "status": "running",
        "updated": utc_now(),
        "now": now.to_json(),
    }
    (folder / "run.json").write_text(json.dumps(document | more))


@pytest.fixture
def running(ui: Ui) -> Iterator[Path]:
    """The folder of a run that a live process owns and that is in the queue; it has
    just begun."""
    folder = ui.output / "one"
    with run_lock(folder):
        queue = Queue(ui.own / "queue")
        queue.save(
            queue.add(["inspect", "x"], "one"),
            state=RUNNING,
            runs=(str(folder),),
            attempts=1,
        )
        yield folder


def line(browser: Browser) -> str:
    return browser.run(
        "return document.querySelector('.doing .line')?.textContent ?? ''"
    )


def bar(browser: Browser) -> object:
    """Its value; -1 where it has none; None where there is no bar."""
    return browser.run(
        "return document.querySelector('.doing progress')?.position ?? null"
    )


def test_it_is_shown_from_the_first_second_and_goes_on(
    browser: Browser, address: str, running: Path
) -> None:
    for path, width in PLACES:
        (running / "run.json").unlink(missing_ok=True)
        goes_on(browser, address + path, width, running)


def goes_on(browser: Browser, place: str, width: int, running: Path) -> None:
    browser.open(place, width)
    assert (line(browser), bar(browser)) == ("starting", -1)
    browser.run("window.isSame = true")
    now = Now("downloading", 12.2, 57.7, "GB", "", 2400.0, 7800.0, 0.05)
    says(running, now)
    shown = "downloading 12 of 58 GB, 40 min left; 2.2 h for everything"
    browser.wait_for(f"document.querySelector('.doing .line').textContent == {shown!r}")
    browser.wait_for(
        f"Math.abs(document.querySelector('.doing progress').position - {now.share}) < 0.001"
    )
    says(
        running, Now("step", 120, 2000, left_s=1860.0, share=0.5), step=120, steps=2000
    )
    browser.wait_for(
        "document.querySelector('.doing .line').textContent == 'step 120 of 2,000, 31 min left'"
    )
    assert browser.run("return window.isSame"), "nobody has to load the page again"
    named = (
        "return document.querySelector('.doing progress').getAttribute('aria-label')"
    )
    assert browser.run(named) == "share of everything that is done"
    assert browser.is_as_wide_as_the_window() and browser.errors() == []
    box = browser.run(
        "const b = document.querySelector('.doing').getBoundingClientRect(); return [b.left, b.right, b.top]"
    )
    assert box[0] >= 0 and box[1] <= width and box[2] < 900, box


def test_a_page_that_loses_its_server_or_its_login_says_so(
    browser: Browser, ui: Ui, running: Path
) -> None:
    says(running, Now("step", 120, 300, share=0.4), step=120, steps=300)
    page = Served(ui.output.parent, token=TOKEN)
    said = "document.getElementById('lost').textContent"
    grey = "getComputedStyle(document.querySelector('.doing progress')).filter"
    try:
        browser.open(f"{page.address}/?token={TOKEN}")
        for place in ("/runs/one", "/", "/queue"):
            browser.open(page.address + place)
            assert browser.run(f"return {grey}") == "none", place
            page.stop(signal.SIGKILL)
            browser.run("const now = Date.now; Date.now = () => now() + 11_000")
            browser.wait_for(f"/has not answered since \\d/.test({said})")
            assert browser.run(f"return {grey}") == "grayscale(1)", place
            page.start()
            browser.wait_for(f"{said} === ''")
            assert browser.run(f"return {grey}") == "none", "the same token"
            browser.command("Network.clearBrowserCookies")
            browser.wait_for(f"{said}.endsWith('Log in again')")
            assert browser.run(f"return {grey}") == "grayscale(1)", place
            # as in the tab that the link opens
            browser.run(f"return fetch('/?token={TOKEN}').then(() => 1)")
            browser.wait_for(f"{said} === ''")
    finally:
        page.stop(signal.SIGKILL)


def test_the_end_is_told_by_the_title_and_to_whoever_allows_it(
    browser: Browser, address: str, ui: Ui
) -> None:
    folder = ui.output / "one"
    with run_lock(folder):
        says(folder, Now("step", 299, 300, share=0.99), step=299, steps=300)
        browser.open(f"{address}/runs/one")
        browser.wait_for("document.title.startsWith('one')")
        assert browser.run("return document.getElementById('notify').checkVisibility()")
        # as of a person who has allowed it: what is shown outlives the page
        browser.run(
            "window.Notification = class { static permission = 'granted';"
            "constructor(text) { sessionStorage.told = text; } }"
        )
    says(folder, Now("step", 300, 300, share=1.0), step=300, status="finished")
    browser.wait_for("document.title.startsWith('✓ one')")
    assert browser.run("return sessionStorage.told") == "one: ready"

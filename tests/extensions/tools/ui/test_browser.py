"""The page in Chromium, over folders that change while it is looked at."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import TOKEN, Served
from tests.html_browser import Browser

pytestmark = pytest.mark.slow


def until(happened: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, happened.__code__.co_consts
        time.sleep(0.05)


def goes_on(folder: Path, step: int, sample: bool = False) -> None:
    """What a run writes at a step."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 0.1, "lr": 1e-3}) + "\n")
    with (folder / "log.txt").open("a") as file:
        file.write(f"step {step} of the test\n")
    if sample:
        name = f"{step:09d}_0.png"
        Image.new("RGB", (32, 24), (200, 40, 40)).save(folder / "samples" / name)
        with (folder / "events.jsonl").open("a") as file:
            file.write(
                json.dumps(
                    {
                        "event": "sample",
                        "step": step,
                        "files": [name],
                        "prompts": ["a photo"],
                    }
                )
                + "\n"
            )


def is_clean(browser: Browser) -> bool:
    """No error in the console, and nothing asked for elsewhere."""
    return browser.errors() == [] and browser.requests_elsewhere() == []


def points(browser: Browser) -> int:
    """How many steps the first diagram has."""
    return browser.run("return document.querySelectorAll('.plot canvas').length")


def test_numbers_samples_and_log_appear_while_a_run_trains(
    browser: Browser, served: Served, ui: Ui, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="running")
    browser.open(f"{served.address}/runs/one")
    until(lambda: points(browser) >= 2)
    browser.click("#more > summary")
    goes_on(folder, 11, sample=True)
    until(lambda: "step 11 of the test" in browser.text("#tail"), 3)
    until(lambda: browser.run("return document.getElementById('step').max") == "2", 3)
    assert browser.run("return document.querySelector('.frame.now').href").endswith(
        "000000011_0.png"
    )
    browser.run("document.getElementById('step').focus()")
    browser.press("ArrowLeft", "ArrowLeft")
    assert browser.run("return document.querySelector('.frame.now').href").endswith(
        "000000000_0.png"
    )
    goes_on(folder, 12, sample=True)  # whoever looks at an early step stays there
    until(lambda: browser.run("return document.getElementById('step').max") == "3", 3)
    assert browser.run("return document.querySelector('.frame.now').href").endswith(
        "000000000_0.png"
    )
    assert is_clean(browser)


def test_a_run_that_is_watched_before_its_first_step_shows_its_numbers(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    folder = make_run(
        "one", steps=0, sampled=(0,), status="running", loss=None, step=None
    )
    browser.open(f"{served.address}/runs/one")
    until(
        lambda: browser.run(
            "return performance.getEntriesByType('resource').some(e => e.name.includes('/curves?'))"
        )
    )
    time.sleep(0.5)
    assert points(browser) == 0 and not browser.run(
        "return document.querySelector('[data-fact=loss]')"
    )
    assert browser.text("#no-curves")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps(run | {"loss": 0.125, "step": 2, "steps": 9})
    )
    goes_on(folder, 1), goes_on(folder, 2)
    until(lambda: points(browser) >= 1, 5)
    until(
        lambda: (
            browser.run(
                "return document.querySelector('[data-fact=loss]')?.textContent"
            )
            == "0.125"
        ),
        5,
    )
    assert "2 / 9" in browser.text("#state") and is_clean(browser)
    assert browser.run("return document.getElementById('no-curves').hidden"), (
        "no empty card stays below the curves"
    )


def test_all_facts_of_a_run_that_trains_go_on(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    early = {"epoch": 0, "samples": 10, "lr": 1e-3, "updated": "2026-11-01T10:00:00Z"}
    folder = make_run("one", status="running", **early)
    browser.open(f"{served.address}/runs/one")
    places = "[...document.querySelectorAll('[data-fact]')]"
    shown = (
        f"return Object.fromEntries({places}.map(e => [e.dataset.fact, e.textContent]))"
    )
    assert (
        browser.run(shown).items()
        >= {"epoch": "1", "images": "10", "lr": "0.001", "time": "5s"}.items()
    )
    run = json.loads((folder / "run.json").read_text())
    later = {
        "epoch": 59,
        "samples": 6000,
        "lr": 5e-5,
        "updated": "2026-11-01T11:30:00Z",
        "step": 6000,
        "skipped": 2,
    }
    later |= {"best": {"loss": 0.125, "step": 4000}, "loss": 0.5, "step_s": 2.0}
    (folder / "run.json").write_text(json.dumps(run | later))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 11, "loss": 0.1, "step_s": 115.0}) + "\n")
    expected = {
        "epoch": "60",
        "images": "6,000",
        "lr": "5e-05",
        "time": "2m00s",
        "best": "0.125 at step 4,000",
    }
    expected |= {"loss": "0.5", "speed": "2 s per step", "skipped": "2"}
    expected |= {"updated": "2026-11-01 11:30 UTC"}
    until(lambda: browser.run(shown).items() >= expected.items(), 5)
    assert is_clean(browser)


def test_curves_have_a_name_and_a_table(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", steps=40)
    rows = [
        {"step": step, "loss": 0.5 - step / 100, "lr": 1e-3} for step in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    browser.open(f"{served.address}/runs/one")
    until(lambda: points(browser) >= 2)
    named = "return [...document.querySelectorAll('.plot canvas')].map(e => [e.getAttribute('role'), e.ariaLabel])"
    first = browser.run(named)[0]
    assert first == [
        "img",
        "Loss: loss from 0.49 at step 1 to 0.1 at step 40, lowest 0.1 at step 40",
    ]
    assert all(role == "img" and label for role, label in browser.run(named))
    browser.run("document.querySelector('.plot summary').focus()")
    browser.press("Enter")
    cells = "map(e => [...e.children].map(c => c.textContent))"
    shown = f"return [...document.querySelectorAll('.plot details tr')].{cells}"
    until(lambda: browser.run(shown))
    table = browser.run(shown)
    assert (
        table[0] == ["step", "loss"]
        and table[1] == ["1", "0.49"]
        and table[-1] == ["40", "0.1"]
    )
    assert len(table) == 13 and is_clean(browser)


def test_curves_that_a_diagram_has_no_room_for_are_named(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one")
    rows = [
        {"step": step, **{f"loss/part_{part}": 0.5 for part in range(10)}}
        for step in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    browser.open(f"{served.address}/runs/one")
    note = "return document.querySelector('.plot p')?.textContent"
    until(lambda: browser.run(note) == "not plotted: loss/part_8, loss/part_9")
    assert is_clean(browser)


def test_two_steps_are_compared_side_by_side_and_one_over_the_other(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    browser.open(f"{served.address}/runs/one")
    browser.click("[name=mode][value=beside]")
    assert (
        browser.run(
            "return document.querySelectorAll('.frames.beside .then img').length"
        )
        == 2
    )
    browser.click("[name=mode][value=over]")
    browser.run(
        "const share = document.getElementById('share'); share.value = 30; share.dispatchEvent(new Event('input'))"
    )
    clip = (
        "return getComputedStyle(document.querySelector('.frames.over .then')).clipPath"
    )
    assert "70%" in browser.run(clip)
    browser.click("#shots .frame.now")
    assert browser.run("return document.getElementById('large').open")
    browser.press("ArrowLeft")
    assert "000000000_0.png" in browser.run(
        "return document.querySelector('#large img').src"
    )
    browser.press("Escape")
    assert not browser.run("return document.getElementById('large').open")
    assert is_clean(browser)


def test_nothing_is_missing_and_nothing_twice_after_the_page_was_killed(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", status="running")
    browser.open(f"{served.address}/runs/one")
    until(lambda: points(browser) >= 2)
    browser.click("#more > summary")
    for step in range(11, 31):
        goes_on(folder, step)
        if step in (15, 22):
            served.stop(signal.SIGKILL)
            # what the page does not see, and the run takes back
            goes_on(folder, step + 100)
            (folder / "metrics.jsonl").write_text("".join(
                json.dumps({"step": each, "loss": 0.1, "lr": 1e-3}) + "\n" for each in range(1, step + 1)
            ))  # fmt: skip
            served.start()
    until(lambda: "step 30 of the test" in browser.text("#tail"), 20)
    lines = [
        line for line in browser.text("#tail").splitlines() if line.startswith("step")
    ]
    assert len(lines) == len(set(lines)) == 1 + 20 + 2


def test_a_person_logs_in_and_the_token_leaves_the_address(
    browser: Browser, ui: Ui, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    page = Served(ui.output.parent, TOKEN)
    try:
        browser.open(f"{page.address}/runs/one")
        assert "Token" in browser.text() and "one.safetensors" not in browser.text()
        browser.open(f"{page.address}/runs/one?token={TOKEN}")
        assert browser.run("return location.href") == f"{page.address}/runs/one"
        assert "one.safetensors" in browser.text()
        assert browser.run("return document.cookie") == ""  # HttpOnly
    finally:
        page.stop()


@pytest.mark.parametrize("path", ["/", "/runs/one", "/compare?run=one&run=two"])
def test_each_page_fits_a_phone_in_light_and_dark(
    browser: Browser, served: Served, make_run: Callable[..., Path], path: str
) -> None:
    make_run("one"), make_run("two")
    for dark in (False, True):
        browser.open(served.address + path, width=360, height=740, dark=dark)
        assert browser.is_as_wide_as_the_window()
        back, text = browser.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color].map(c => c.match(/\\d+/g))"
        )
        assert (sum(map(int, back[:3])) < sum(map(int, text[:3]))) is dark
        assert is_clean(browser)
    scheme = "return getComputedStyle(document.documentElement).colorScheme"
    # the switch goes before the system's setting
    for theme, wanted in (
        ("light", "light"),
        ("auto", "light dark"),
    ):
        browser.click(f'.theme [value="{theme}"]')
        until(lambda wanted=wanted: browser.run(scheme) == wanted)


@pytest.mark.parametrize("path", ["/", "/runs/one?step=0", "/compare?run=one&run=two"])
def test_each_page_is_whole_without_its_script(
    browser: Browser, served: Served, make_run: Callable[..., Path], path: str
) -> None:
    make_run("one"), make_run("two")
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(served.address + path)
        pictures = browser.command("DOM.getDocument", depth=-1)
        assert "000000000_0.png" in json.dumps(
            pictures
        ) or "000000010_0.png" in json.dumps(pictures)
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
    assert is_clean(browser)

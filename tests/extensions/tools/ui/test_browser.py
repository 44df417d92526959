"""The page in Chromium, over folders that change while it is looked at."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser
from tests.processes import until

pytestmark = pytest.mark.slow


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


def test_all_of_a_run_appears_while_it_trains(
    browser: Browser, served: Served, make_run: Callable[..., Path]
) -> None:
    """From before its first step on, without loading the page again; nothing is missing
    and nothing is there twice after the server was killed."""
    early = {"epoch": 0, "samples": 10, "lr": 1e-3, "updated": "2026-11-01T10:00:00Z"}
    folder = make_run(
        "one", steps=0, sampled=(0,), status="running", loss=None, step=None, **early
    )
    browser.open(f"{served.address}/runs/one")
    until(
        lambda: browser.run(
            "return performance.getEntriesByType('resource').some(e => e.name.includes('/curves?'))"
        )
    )
    time.sleep(0.5)
    places = "[...document.querySelectorAll('[data-fact]')]"
    shown = (
        f"return Object.fromEntries({places}.map(e => [e.dataset.fact, e.textContent]))"
    )
    facts = browser.run(shown)
    assert facts.items() >= {"epoch": "1", "images": "10", "lr": "0.001"}.items()
    assert points(browser) == 0 and "loss" not in facts
    assert browser.text("#no-curves")

    run = json.loads((folder / "run.json").read_text())
    later = {"epoch": 59, "samples": 6000, "lr": 5e-5, "step": 6000, "steps": 9000}
    later |= {"updated": "2026-11-01T11:30:00Z", "skipped": 2, "step_s": 2.0}
    later |= {"best": {"loss": 0.125, "step": 4000}, "loss": 0.5}
    (folder / "run.json").write_text(json.dumps(run | later))
    row = {"step": 1, "loss": 0.1, "lr": 1e-3, "step_s": 120.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    goes_on(folder, 2)
    until(lambda: points(browser) >= 1)
    expected = {
        "epoch": "60",
        "images": "6,000",
        "lr": "5e-05",
        "time": "2m00s",
        "best": "0.125 at step 4,000",
        "loss": "0.5",
        "speed": "2 s per step",
        "skipped": "2",
        "updated": "2026-11-01 11:30 UTC",
    }
    until(lambda: browser.run(shown).items() >= expected.items())
    assert "6,000 / 9,000" in browser.text("#state")
    assert browser.run("return document.getElementById('no-curves').hidden"), (
        "no empty card stays below the curves"
    )

    newest = "return document.querySelector('.frame.now').href.slice(-15)"
    last = "return document.getElementById('step').max"
    browser.click("#more > summary")
    goes_on(folder, 11, sample=True)
    until(lambda: "step 11 of the test" in browser.text("#tail"))
    until(lambda: browser.run(last) == "1")
    assert browser.run(newest) == "000000011_0.png"
    browser.run("document.getElementById('step').focus()")
    browser.press("ArrowLeft")
    assert browser.run(newest) == "000000000_0.png"
    goes_on(folder, 12, sample=True)  # whoever looks at an early step stays there
    until(lambda: browser.run(last) == "2")
    assert browser.run(newest) == "000000000_0.png" and is_clean(browser)

    for step in range(13, 25):
        goes_on(folder, step)
        if step in (15, 20):
            served.stop(signal.SIGKILL)
            # what the page does not see, and the run takes back
            goes_on(folder, step + 100)
            (folder / "metrics.jsonl").write_text("".join(
                json.dumps({"step": each, "loss": 0.1, "lr": 1e-3}) + "\n" for each in range(1, step + 1)
            ))  # fmt: skip
            served.start()
    until(lambda: "step 24 of the test" in browser.text("#tail"), 20)
    written = (folder / "log.txt").read_text().splitlines()
    shown = browser.text("#tail").splitlines()
    assert len(written) > 16 and [line for line in shown if line in written] == written


def test_a_finished_run_is_read_by_its_curves_tables_and_samples(
    browser: Browser, address: str, make_run: Callable[..., Path]
) -> None:
    folder = make_run("one", steps=40)
    parts = {f"loss/part_{part}": 0.5 for part in range(10)}
    rows = [
        {"step": step, "loss": 0.5 - step / 100, "lr": 1e-3, **parts}
        for step in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    browser.open(f"{address}/runs/one")
    until(lambda: points(browser) >= 2)
    named = "return [...document.querySelectorAll('.plot canvas')].map(e => [e.getAttribute('role'), e.ariaLabel])"
    role, label = browser.run(named)[0]
    assert role == "img" and label.startswith(
        "Loss: loss from 0.49 at step 1 to 0.1 at step 40, lowest 0.1 at step 40"
    )
    assert all(role == "img" and label for role, label in browser.run(named))
    note = browser.run("return document.querySelector('.plot p')?.textContent")
    assert note == "not plotted: loss/part_7, loss/part_8, loss/part_9"
    browser.run("document.querySelector('.plot summary').focus()")
    browser.press("Enter")
    cells = "map(e => [...e.children].slice(0, 2).map(c => c.textContent))"
    shown = f"return [...document.querySelectorAll('.plot details tr')].{cells}"
    until(lambda: browser.run(shown))
    table = browser.run(shown)
    assert len(table) == 13 and table[:2] == [["step", "loss"], ["1", "0.49"]]
    assert table[-1] == ["40", "0.1"]

    marks = "return [...document.querySelectorAll('.marks a')].map(e => e.innerText)"
    assert browser.run(marks) == ["without the LoRA", "10"]
    assert not browser.run("return document.querySelector('.alone').checkVisibility()")
    browser.click(".marks a")
    assert browser.text("#shown") == "without the LoRA"
    assert "before it has learned your images" in browser.text(".alone")
    browser.run("document.getElementById('step').focus()")
    browser.press("ArrowRight")
    assert browser.text("#shown") == "step 10"
    browser.click("#shots .frame.now")
    is_large = "return document.getElementById('large').open"
    assert browser.run(is_large)
    browser.press("ArrowLeft")
    source = browser.run("return document.querySelector('#large img').src")
    assert "000000000_0.png" in source
    browser.press("Escape")
    assert not browser.run(is_large) and is_clean(browser)

    buttons = "document.querySelectorAll('.head > .actions > *, .head h1')"
    places = f"return [...{buttons}].map(e => e.offsetTop)"
    before = browser.run(places)
    browser.click("#longer > summary")
    browser.wait_for("document.querySelector('#longer [name=steps]').checkVisibility()")
    assert browser.run(places) == before, "it opens over the page, which stays"

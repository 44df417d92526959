"""How much of the first screen is picture, in Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.ui.queue import DONE, FAILED, Queue
from extensions.tools.ui.state import Ui
from tests.html_browser import Browser

pytestmark = pytest.mark.slow

SHARE = """
const top = document.querySelector('.top'), foot = document.querySelector('.machine');
const low = foot.checkVisibility() ? foot.getBoundingClientRect().top : innerHeight;
const high = getComputedStyle(top).position === 'sticky' ? top.getBoundingClientRect().bottom : 0;
let sum = 0;
for (const image of document.querySelectorAll('main img')) {
  if (!image.naturalWidth || !image.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
  const box = image.getBoundingClientRect();
  let [left, upper, right, lower] = [box.left, box.top, box.right, box.bottom];
  if (getComputedStyle(image).objectFit === 'contain') {
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    [right, lower] = [left + image.naturalWidth * scale, upper + image.naturalHeight * scale];
  }
  for (let each = image.parentElement; each !== document.body; each = each.parentElement) {
    if (getComputedStyle(each).overflow === 'visible') continue;
    const clip = each.getBoundingClientRect();
    [left, upper] = [Math.max(left, clip.left), Math.max(upper, clip.top)];
    [right, lower] = [Math.min(right, clip.right), Math.min(lower, clip.bottom)];
  }
  [right, lower] = [Math.min(right, innerWidth), Math.min(lower, low)];
  sum += Math.max(0, right - left) * Math.max(0, lower - Math.max(upper, high));
}
return sum / innerWidth / innerHeight;
"""

WIDE, PHONE, ZOOMED = (1440, 900), (390, 844), (720, 450)
"""Sizes of the window in CSS pixels: a usual one, a phone, the first at 200 % zoom."""

LEAST = (
    ("/datasets/zuko", WIDE, 0.40),
    ("/datasets/color", WIDE, 0.35),
    ("/datasets/color", PHONE, 0.15),
    ("/datasets", WIDE, 0.20),
    ("/runs/zuko", WIDE, 0.40),
    ("/runs/zuko", ZOOMED, 0.15),
    ("/queue", WIDE, 0.08),
)
"""Address, window, and the least part of it that is picture."""


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        colour = f"hsl({number * 17 % 360}, 60%, 60%)"
        Image.new("RGB", (512, 512), colour).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"zuko, number {number}")


@pytest.fixture
def full(ui: Ui, make_run: Callable[..., Path]) -> Ui:
    """A character and eight pairs, a finished training of one prompt, and a queue."""
    draw(ui.datasets / "zuko", 20)
    for side in ("before", "after"):
        draw(ui.datasets / "color" / side, 8)
    run = make_run("zuko", steps=240, sampled=(0, 120, 240))
    samples = [*(run / "samples").iterdir()]
    for path in samples:
        if path.stem.endswith("_1"):
            path.unlink()
        else:
            Image.new("RGB", (128, 128), "teal").save(path)
    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    (run / "events.jsonl").write_text(
        "".join(
            json.dumps(row | {"files": row["files"][:1], "prompts": ["zuko"]}) + "\n"
            for row in events
        )
    )
    job = (
        "job: extension\nconfig:\n  name: zuko\n  process:\n  - type: sd_trainer\n"
        f"    datasets:\n    - folder_path: {ui.datasets / 'zuko'}\n"
    )
    (run / "config.yaml").write_text(job)
    (ui.jobs / "zuko.yaml").write_text(job)
    queue = Queue(ui.own / "queue")
    queue.add([str(ui.jobs / "zuko.yaml")], "zuko_2")
    for state, word in ((DONE, "zuko"), (FAILED, "Try it")):
        argv = ["generate", f"--prompt={word}", f"--output={run / 'tried'}"]
        queue.save(queue.add(argv, word), state=state, attempts=1)
    return ui


def test_the_first_screens_show(browser: Browser, address: str, full: Ui) -> None:
    found = {}
    for path, (width, height), least in LEAST:
        browser.open(address + path, width, height)
        browser.run("for (const each of document.images) each.loading = 'eager'")
        browser.wait_for("[...document.images].every(each => each.complete)")
        share = browser.run(SHARE)
        found[path, width] = (round(share, 3), least)
        assert browser.is_as_wide_as_the_window(), path
    assert {key: pair for key, pair in found.items() if pair[0] < pair[1]} == {}
    assert browser.errors() == []


def test_the_first_page_without_a_training_shows(
    browser: Browser, address: str
) -> None:
    browser.open(f"{address}/", *WIDE)
    browser.wait_for("[...document.images].every(each => each.complete)")
    assert browser.run(SHARE) >= 0.12

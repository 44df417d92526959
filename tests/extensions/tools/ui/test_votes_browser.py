"""From a finished run to a LoRA that has learned from votes, by clicks and keys alone:
the page, its queue and runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import ROOT
from tests.extensions.tools.ui.conftest import Served
from tests.html_browser import Browser
from tests.running import lines
from toolkit.files.safetensors_io import tensor_shapes

pytestmark = pytest.mark.slow

JOB = {
    "type": "sd_trainer",
    "training_folder": "output",
    "device": "cpu",
    "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
    "save": {"save_every": 2},
    "datasets": [
        {"folder_path": str(ROOT / "config" / "examples" / "photos"), "resolution": 64}
    ],
    "train": {
        "steps": 2,
        "batch_size": 2,
        "lr": 1e-3,
        "dtype": "fp32",
        "gradient_checkpointing": False,
    },
    "model": {
        "name_or_path": str(ROOT / "config" / "examples" / "tiny_mascots"),
        "model_kwargs": {"match_target_res": True},
    },
    "sample": {
        "sample_every": 1,
        "width": 64,
        "height": 64,
        "sample_steps": 2,
        "guidance_scale": 1,
        "walk_seed": True,
        "prompts": ["a round blue mascot", "a round blue mascot", "a green mascot"],
    },
}


def counts(browser: Browser) -> str:
    return browser.text(".counts")


def test_a_finished_run_becomes_a_lora_that_learned_from_votes(
    browser: Browser, served: Served, run_py: Callable
) -> None:
    job = served.folder / "mine.json"
    job.write_text(
        json.dumps({"job": "extension", "config": {"name": "mine", "process": [JOB]}})
    )
    assert run_py("mine.json", cwd=served.folder).returncode == 0
    folder = served.folder / "output" / "mine"
    votes = folder / "samples" / "votes.jsonl"

    browser.open(served.address)
    browser.click(".run h2 a")
    browser.click("#use a[href='/votes/runs/mine']")
    browser.wait_for("document.querySelector('.two img').naturalWidth == 64")
    browser.run("window.isSame = true")
    for number, key in enumerate(
        ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"), 1
    ):
        browser.press(key)
        browser.wait_for(
            f"document.querySelector('.counts').innerText.startsWith('{number} of')"
        )
        assert len(lines(votes)) == number
    assert "2 to learn from" in counts(browser)
    browser.press("Backspace")
    browser.wait_for("document.querySelector('.counts').innerText.startsWith('3 of')")
    browser.click(".two button[value=right]")
    browser.wait_for("document.querySelector('.counts').innerText.startsWith('4 of')")
    assert browser.run("return window.isSame")  # the page was never loaded again
    rows = lines(votes)
    assert [row.get("vote") for row in rows] == [None, None, "same", None]
    assert all(
        (folder / "samples" / row[side]).is_file()
        for row in rows
        if "better" in row
        for side in row
        if side in ("better", "worse")
    )

    browser.open(f"{served.address}/votes/runs/mine", width=390, height=844)
    browser.wait_for(
        "[...document.querySelectorAll('.two img')].every(each => each.naturalWidth == 64)"
    )
    assert browser.run("return document.documentElement.scrollWidth") == 390
    seen = "[...document.querySelectorAll('.two img')].map(each => each.getBoundingClientRect())"
    boxes = browser.run(f"return {seen}.map(box => [box.top, box.bottom, box.width])")
    assert boxes[0][1] <= boxes[1][0] and min(box[2] for box in boxes) > 300
    undo = browser.run(
        "return document.querySelector('[value=undo]').getBoundingClientRect().bottom"
    )
    # both images and all buttons are seen without scrolling
    assert boxes[1][1] < undo <= 844
    browser.click(".two button[value=left]")
    browser.wait_for("document.querySelector('.counts').innerText.startsWith('5 of')")

    browser.click(".train .main")
    browser.wait_for("location.pathname == '/queue'", 60)
    browser.wait_for("document.querySelector('.entry .finished')", 180)
    browser.click(".entry h3 a[href='/runs/mine_voted']")
    assert "40 steps" in browser.text("#state")  # four pairs, ten uses each
    made = served.folder / "output" / "mine_voted"
    assert tensor_shapes(made / "mine_voted.safetensors") == tensor_shapes(
        folder / "mine.safetensors"
    )
    assert 0 <= lines(made / "metrics.jsonl")[-1]["preference/right"] <= 1
    assert (
        "started from" in (made / "log.txt").read_text()
        and "preferred both ways" not in (made / "log.txt").read_text()
    )
    assert browser.errors() == [] and browser.requests_elsewhere() == []

"""The first minute of a run: its images, and what is done of its preparation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui.state import Ui
from toolkit.train.lock import run_lock

NOW = {"unit": "", "started": "", "phase_left_s": 40, "left_s": 2100, "share": 0.01}
EARLY = {"status": "running", "loss": None, "step": None}


def lines(client: TestClient) -> list[tuple[str, str]]:
    """State and text of each line; empty: there is no list."""
    page = client.get("/runs/one", headers={"accept": "text/html"}).text
    found = re.findall(r'(?s)<section id="minute".*?</section>', page)
    items = re.findall(r"(?s)<li(?: class=\"(\w+)\")?[^>]*>(.*?)</li>", "".join(found))
    return [(state, re.sub("<i.*?</i>|<[^>]+>", "", text)) for state, text in items]


@pytest.fixture(autouse=True)
def held(ui: Ui) -> Iterator[None]:
    """A live process, this one, owns the run."""
    with run_lock(ui.output / "one"):
        yield


@pytest.fixture
def job(ui: Ui) -> str:
    folder = ui.datasets / "10_mira"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (64, 48)).save(folder / f"{name}.png")
    return (
        "job: extension\nconfig:\n  name: one\n  process:\n  - type: sd_trainer\n"
        f"    model: {{quantize: true}}\n    datasets:\n    - folder_path: {folder}\n"
    )


@pytest.mark.parametrize(
    ("phase", "done", "of", "unit", "present"),
    [
        ("downloading", 12, 58, "GB", (0, "Downloading the model, 12 of 58 GB")),
        ("reading", None, None, "", (1, "Loading the model")),
        (
            "quantizing",
            31,
            60,
            "block",
            (2, "Quantizing it to fit the GPU, block 31 of 60"),
        ),
        ("encoding", 18, 30, "images", (3, "Encoding your images, 18 of 30 images")),
        ("sampling", 1, 2, "", (4, "First samples, without the LoRA, 1 of 2")),
        ("compiling", None, None, "", (5, "First step")),
        ("step", 0, 2000, "", (5, "First step, 0 of 2,000")),
        ("a new phase", None, None, "", (1, "Loading the model")),
    ],
)
def test_what_is_done_has_a_tick_and_the_present_line_says_how_far(
    client: TestClient,
    make_run: Callable[..., Path],
    job: str,
    phase: str,
    done: float | None,
    of: float | None,
    unit: str,
    present: tuple[int, str],
) -> None:
    now = NOW | {"phase": phase, "done": done, "of": of, "unit": unit}
    run = make_run("one", steps=0, sampled=(), now=now, **EARLY)
    (run / "config.yaml").write_text(job)
    found = lines(client)
    place, text = present
    assert [state for state, _ in found] == ["done"] * place + ["now"] + [""] * (
        5 - place
    )
    assert found[place][1] == text
    page = client.get("/runs/one", headers={"accept": "text/html"}).text
    assert page.count("/datasets/10_mira/thumbs/") == 2
    assert "40 s left" in page or phase == "step"


def test_it_is_gone_with_the_first_sample_or_step_and_of_runs_that_ended(
    client: TestClient, make_run: Callable[..., Path], job: str
) -> None:
    now = NOW | {"phase": "reading", "done": None, "of": None}
    run = make_run("one", steps=0, sampled=(), now=now, **EARLY)
    (run / "config.yaml").write_text(job)
    status = run / "run.json"
    early = status.read_text()
    assert len(lines(client)) == 6
    status.write_text(json.dumps(json.loads(early) | {"step": 1}))
    assert lines(client) == []
    status.write_text(early)
    sample = run / "samples" / "000000000_0.png"
    sample.touch()
    assert lines(client) == []
    sample.unlink()
    (run / "config.yaml").write_text(
        job.replace("{quantize: true}", "{}").replace("10_mira", "gone")
        + "    train: {skip_first_sample: true}\n"
    )
    assert [text for _, text in lines(client)] == [
        "The model is downloaded, done",
        "Loading the model",
        "Encode your images",
        "First step",
    ]

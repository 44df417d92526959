"""The page of a run: what it holds, and that no folder is too broken for one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from html import escape, unescape
from pathlib import Path

import pytest

from extensions.tools.report.page import report_page
from extensions.tools.shared.diagrams import draw_diagrams
from extensions.tools.shared.html_page import is_page
from tests.extensions.tools.report.conftest import PROMPT, SECRET, lines
from tests.html_browser import Browser
from tests.processes import alarm
from tests.running import section_of
from toolkit.errors import ConfigErrors
from toolkit.train.run_reader import (
    list_checkpoints,
    list_network_files,
    list_samples,
    read_events,
    read_run,
)

HUGE = (
    b'{"step": 1%s, "time": 5, "event": [], "loss": 1%s}\n{"step": 7, "loss": 1%s, "step_s": 1%s}\n'
    % ((b"0" * 400,) * 4)
)
"""A line of numbers that no float can be, and one of such a loss."""


def page_of(run: Path, **how: bool) -> str:
    return report_page(read_run(run), run, **how)


def write_page(run: Path, **how: bool) -> Path:
    path = run / "report.html"
    path.write_text(page_of(run, **how), encoding="utf-8")
    return path


def seen_in(text: str) -> str:
    """The texts of a page, outside of its style, script and data."""
    return unescape(
        re.sub(r"<(style|script)[^>]*>.*?</\1>|<[^>]*>", "\0", text, flags=re.DOTALL)
    )


def test_a_page_has_all_that_the_run_recorded_and_no_secret(run: Path) -> None:
    path = write_page(run)
    text = path.read_text()
    told = [
        "120 steps",
        "240",
        "0.25",
        "Time in steps",
        "1m00s",
        PROMPT,
        "images/one.jpg",
        "caption of two",
    ]
    told += [
        "images/gone.jpg",
        "name: tiny  # <i>",
        "3 images. 1 of them are not found",
        "cat.safetensors",
        "ab" * 32,
    ]
    told += [
        "cd" * 32,
        "2026-01-01",
        "the plan",
        "step 120 of the log",
        str(run),
    ]
    told.append(hashlib.sha256((run / "cat.safetensors").read_bytes()).hexdigest())
    assert [part for part in told if part not in seen_in(text)] == []
    assert (
        SECRET not in text
        and "<redacted>" in seen_in(text)
        and "<script>document" not in text
    )
    # of six samples one is torn, two are seen at once; the dataset
    assert text.count("data:image/jpeg") == 5 + 2 + 2
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    # torn
    assert (
        data["samples"]["steps"] == [0, 60, 120]
        and data["samples"]["rows"][1]["files"][1] is None
    )
    titles = {
        "Loss",
        "Validation",
        "Learning rate",
        "Gradient norm",
        "Seconds per step",
    }
    assert titles <= {diagram["title"] for diagram in data["diagrams"]}
    assert (
        is_page(path)
        and not is_page(run / "config.yaml")
        and not is_page(run / "nothing")
    )
    # the licence of the diagrams
    assert "<form" not in text and text.count("http-equiv") == 1 and "MIT" in text


def test_a_page_for_others_has_nothing_of_the_dataset_and_this_machine(
    run: Path,
) -> None:
    status = {
        "name": "cat",
        "status": "failed",
        "error": "no /home/me/cat.jpg",
        "reason": "no /home/me/dog.jpg",
    }
    (run / "run.json").write_text(json.dumps(status))
    with (run / "events.jsonl").open("a") as file:
        file.write(lines({"event": "warning", "step": 3, "message": "in /home/me"}))
    text, private = (
        write_page(run, share=True).read_text(),
        (str(run), "/home/me", "images/", "caption of", "the plan"),
    )
    assert [
        part for part in (*private, "name: tiny", "step 120 of the log") if part in text
    ] == []
    parts = re.findall(r'<section id="(\w+)"', text)
    assert (
        parts == ["samples", "notices", "files", "curves"]
        and re.findall(r'<a href="#(\w+)"', text) == parts[2:]
    )


def test_a_page_names_the_file_and_the_next_commands(
    run: Path, trainer, write_job
) -> None:
    samples = {
        "samples": [
            {
                "prompt": "a <b> cat",
                "ctrl_img_1": str(run.parents[1] / "images" / "one.jpg"),
            }
        ]
    }
    write_job(trainer(run.parent, sample=samples), name="cat").rename(
        run / "config.yaml"
    )
    text = write_page(run).read_text()
    assert f"The result is <code>{run}/cat.safetensors</code>. Next:" in text
    assert (
        f"python run.py generate --lora {run}/cat.safetensors --prompt &#39;a &lt;b&gt; cat&#39;"
        in text
    )
    assert sys.executable not in text
    assert re.search(r'<img\s+src="data:image/jpeg[^>]*\salt="control image 1"', text)


@pytest.mark.slow
def test_without_pictures_a_page_is_small_however_long_the_run(run: Path) -> None:
    row = (run / "metrics.jsonl").read_text().splitlines()[0]
    keys = "".join(f', "loss/part_{number}": 0.123456789' for number in range(12))
    rows = (
        row.replace('"step": 1', f'"step": {n}').replace("}", f"{keys}}}")
        for n in range(1, 6_001)
    )
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    record = ", ".join(f'"images/{number:06d}.jpg": "0"' for number in range(10_000))
    (run / "dataset-0123456789ab.json").write_text(f"{{{record}}}")
    (run / "events.jsonl").write_text((run / "events.jsonl").read_text() * 1_000)
    path = write_page(run, embed=False, hashed=False)
    text = path.read_text()
    assert path.stat().st_size < 1_000_000 and "data:image/jpeg" not in text
    assert 'src="samples/000000120_0.png"' in text and "300 of 10,000 are shown" in text


@pytest.mark.slow
def test_no_folder_is_too_broken_for_a_page(run: Path) -> None:
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path, data in whole.items():
        of_text = (
            (b"[]", b'{"status": []}', HUGE)
            if path.suffix in (".json", ".jsonl", ".yaml")
            else ()
        )
        for damaged in (data[: len(data) // 2], b"\xff\x00[[{", *of_text, None):
            (run / "run.lock").touch()  # a run, whatever becomes of run.json
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            assert "</html>" in page_of(run)
        path.write_bytes(data)
    for path in whole:
        path.unlink()
    assert [
        none
        for none in ("No samples", "No numbers", "Nothing saved", "No log")
        if none not in page_of(run)
    ] == []


@pytest.mark.slow
def test_a_browser_shows_it_with_mouse_and_keys_on_any_window(
    browser: Browser, run: Path
) -> None:
    path = write_page(run)
    browser.open(path)
    assert browser.errors() == [] and browser.requests_elsewhere() == []
    shown = "return [...document.querySelectorAll('.frame.now')].map(frame => frame.dataset.step)"
    assert browser.run(shown) == ["step 120", "step 120"]
    assert browser.run("return document.querySelectorAll('.plot canvas').length") >= 5
    browser.run("document.getElementById('step').focus()")
    browser.press("ArrowLeft")
    assert browser.run(shown) == [
        "step 60",
        "step 60",
    ] and "no image at this step" in browser.text("#shots")
    browser.click("#shots .frame.now img")
    assert browser.text("#large .words") == f"step 60 {PROMPT}"
    browser.press("ArrowRight", "ArrowDown")
    assert browser.text("#large .words").startswith("step 120 a dog")
    browser.wait_for("document.querySelector('#large img').naturalWidth == 64")
    browser.press("Escape")
    assert browser.run("return document.getElementById('large').open") is False
    browser.click(".plot .u-series:last-child th")
    assert (
        browser.run("return document.querySelectorAll('.u-legend .u-off').length") == 1
    )
    browser.click("#log-scale")
    assert browser.errors() == []
    write_page(run, embed=False)
    browser.open(path, width=400, dark=True)
    assert browser.is_as_wide_as_the_window() and browser.requests_elsewhere() == []
    assert (
        browser.run("return document.querySelector('.frame.now img').naturalWidth")
        == 64
    )
    # nothing of the prompt was run
    assert browser.run("return document.title") == "cat"
    without_scripts = run / "without_scripts.html"
    without_scripts.write_text(
        f"<iframe sandbox='allow-same-origin' srcdoc='{escape(page_of(run))}'></iframe>"
    )
    browser.open(without_scripts)
    browser.wait_for(
        "[...frames[0].document.querySelectorAll('[data-step=\"step 120\"] img')]"
        ".filter(image => image.naturalWidth == 64 && image.checkVisibility("
        "{opacityProperty: true, visibilityProperty: true})).length == 2"
    )
    assert browser.run("return frames[0].document.querySelector('canvas') === null")


@pytest.mark.parametrize("kept", ["run.json", "run.lock"])
def test_a_pipe_in_the_place_of_a_file_is_left_out_with_a_line(
    run: Path, tmp_path: Path, said, kept: str
) -> None:
    """Nobody writes to the pipes: whoever opens one as a file waits for ever."""
    (run / "run.lock").touch()
    (run / "training.json").touch()
    (run / "log.txt").touch()
    files = [path for path in run.rglob("*") if path.is_file() and path.name != kept]
    assert len(files) > 12
    for path in files:
        path.unlink()
        os.mkfifo(path)
    found = []
    with alarm(20):
        found += draw_diagrams(run, tmp_path / "graph")
        found += [*list_network_files(run), *list_samples(run), *read_events(run).rows]
        page = page_of(run)
    assert (
        found == []
        and "No samples" in page
        and [one.problem is None for one in list_checkpoints(run)] == [False]
    )
    assert any(
        f"{run / 'metrics.jsonl'}: cannot be read: it is not a regular file" in line
        for line in said
    )


# ------------------------------------------------------------ the command


README = Path(__file__).parents[4] / "extensions" / "tools" / "report" / "README.md"


@pytest.mark.slow
def test_the_commands_of_the_readme_and_a_job(
    run_py, write_job, run: Path, tmp_path: Path
) -> None:
    run.rename(run.parent / "my_char")
    commands = [
        line
        for line in README.read_text().splitlines()
        if line.startswith(".venv/bin/python run.py ")
    ]
    for command in commands[1:]:
        result = run_py(*shlex.split(command, comments=True)[2:])
        assert (result.returncode, result.stderr, result.stdout.count(".html: ")) == (
            0,
            "",
            1,
        )
    assert len(commands) == 4 and (tmp_path / "my_char.html").is_file()
    linked = tmp_path / "output" / "my_char" / "report.html"
    assert 'src="../../images/one.jpg"' in linked.read_text()
    assert (
        run_py(write_job({"type": "report", "run": "output/my_char"})).returncode == 0
    )
    assert 'src="data:image/jpeg' in linked.read_text()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("output/none",), "run: 'output/none' contains no run"),
        (
            ("output", "--output", "a.html"),
            "--output: is one file, 'output' holds 2 runs (cat, dog). Give one.",
        ),
        (
            ("output/cat", "--output", "output"),
            "--output: 'output' is a folder. Give a file, such as",
        ),
        (
            ("output/cat", "--output", "mine.html"),
            "--output: 'mine.html' was not made by this program",
        ),
        (
            ("output/cat", "--output", "mine.html/x.html"),
            "mine.html' is a file. Give a path in a folder.",
        ),
    ],
)
def test_wrong_input_is_one_line(
    run: Path, tmp_path: Path, monkeypatch, flags: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (run.parent / "dog").mkdir()
    (run.parent / "dog" / "run.lock").touch()
    (tmp_path / "mine.html").write_text("<html>")
    with pytest.raises(ConfigErrors) as caught:
        section_of("report", flags)
    assert told in str(caught.value)
    for file in re.findall(r"Give a file, such as '(.+)'", str(caught.value)):
        section_of("report", (*flags[:-1], file))


def test_a_file_of_another_program_stays(run: Path, run_py) -> None:
    (run / "report.html").write_text("mine")
    result = run_py("report", run)
    assert (
        "was not made by this program, so it is never replaced"
        in result.stdout + result.stderr
    )
    assert (run / "report.html").read_text() == "mine"

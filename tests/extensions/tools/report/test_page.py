"""The page of a run: what it holds, and that no folder is too broken for one."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.report.page import report_page
from extensions.tools.shared.diagrams import draw_diagrams
from extensions.tools.shared.html_page import is_page
from tests.extensions.tools.report.conftest import PROMPT, SECRET, lines
from tests.html_browser import Browser
from tests.processes import alarm
from tests.running import section_of
from toolkit.errors import ConfigErrors
from toolkit.train.run_reader import list_checkpoints, list_network_files, list_samples, read_events, read_run, runs_in

HUGE = b'{"step": 1%s, "time": 5, "event": [], "loss": 1%s}\n{"step": 7, "loss": 1%s, "step_s": 1%s}\n' % (
    (b"0" * 400,) * 4
)
"""A line of numbers that no float can be, and one of such a loss."""


def write_page(run: Path, **how: bool) -> Path:
    (found,) = runs_in(run)
    path = run / "report.html"
    path.write_text(report_page(found, run, **how), encoding="utf-8")
    return path


DRIFT = ("Drift of edits (pixels)", "Zoom (%) and rotation (degrees) of edits", "Change outside the mask (0 to 255)")


def test_a_page_has_all_that_the_run_recorded_and_no_secret(run: Path) -> None:
    path = write_page(run)
    text = path.read_text()
    seen = unescape(re.sub(r"<(style|script)[^>]*>.*?</\1>|<[^>]*>", "\0", text, flags=re.DOTALL))
    told = [
        "120 of 120",
        "240",
        "0.25",
        "Time in steps",
        "1m00s",
        PROMPT,
        "images/one.jpg",
        "caption of two",
        "images/gone.jpg",
    ]
    told += [
        "name: tiny  # <i>",
        "3 images, 1 of them not found",
        "cat.safetensors",
        "ab" * 32,
        "cd" * 32,
        "2026-01-01",
    ]
    told += ["0.0 pixels off", "12.0 pixels off"]
    told.append(hashlib.sha256((run / "cat.safetensors").read_bytes()).hexdigest())
    assert [part for part in told if part not in seen] == []
    assert SECRET not in text and "<redacted>" in seen and "<script>document" not in text
    assert text.count("data:image/jpeg") == 7  # of six samples one is torn, of three images one is gone
    assert "no image at step 60" in seen
    for title in ("Loss", "Validation", "Learning rate", "Gradient norm", "Seconds per step", *DRIFT):
        assert f'"title":"{title}"' in text
    assert is_page(path) and not is_page(run / "config.yaml") and not is_page(run / "nothing")


def test_a_page_names_the_file_and_the_next_commands(run: Path, trainer, write_job) -> None:
    samples = {"samples": [{"prompt": "a <b> cat"}]}
    write_job(trainer(run.parent, sample=samples), name="cat").rename(run / "config.yaml")
    text = write_page(run).read_text()
    assert f"The result is <code>{run}/cat.safetensors</code>. Next:" in text
    assert f"python run.py generate --lora {run}/cat.safetensors --prompt &#39;a &lt;b&gt; cat&#39;" in text
    assert sys.executable not in text


def test_a_page_says_which_files_are_as_good_and_what_was_spent_beyond_them(run: Path) -> None:
    assert "As good by validation" not in report_page(read_run(run), run)
    means = {40: 0.5, 60: 0.4, 100: 0.4, 120: 0.6}
    for step in (40, 60, 100):
        (run / f"cat_{step:09d}.safetensors").write_bytes((run / "cat.safetensors").read_bytes())
    rows = [
        {"step": step, "of": "x", "losses": {f"{i}": [mean + i + 0.001 * ((i * step) % 7)] for i in range(9)}}
        for step, mean in means.items()
    ]
    (run / "validation_images.jsonl").write_text(lines(*rows))
    page = report_page(read_run(run), run)
    for words in ("steps 60, 100 (95% interval, 9 images)", "cat_000000060.safetensors", "60 of 120"):
        assert words in page


@pytest.mark.slow
def test_without_pictures_a_page_is_small_however_long_the_run(run: Path) -> None:
    row = (run / "metrics.jsonl").read_text().splitlines()[0]
    keys = "".join(f', "loss/part_{number}": 0.123456789' for number in range(12))
    rows = (row.replace('"step": 1', f'"step": {n}').replace("}", f"{keys}}}") for n in range(1, 6_001))
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    record = ", ".join(f'"images/{number:06d}.jpg": "0"' for number in range(10_000))
    (run / "dataset-0123456789ab.json").write_text(f"{{{record}}}")
    (run / "events.jsonl").write_text((run / "events.jsonl").read_text() * 1_000)
    path = write_page(run, embed=False, hashed=False)
    text = path.read_text()
    assert path.stat().st_size < 1_000_000 and "data:image/jpeg" not in text
    assert 'src="samples/000000120_0.png"' in text and "300 of 10,000 are listed" in text
    assert "not drawn" not in text.split("<script")[0] and "loss/part_11" in text  # named though not drawn


@pytest.mark.slow
def test_no_folder_is_too_broken_for_a_page(run: Path) -> None:
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path, data in whole.items():
        of_text = (b"[]", b'{"status": []}', HUGE) if path.suffix in (".json", ".jsonl", ".yaml") else ()
        for damaged in (data[: len(data) // 2], b"\xff\x00[[{", *of_text, None):
            (run / "run.lock").touch()  # a run, whatever becomes of run.json
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            assert "</html>" in write_page(run).read_text()
        path.write_bytes(data)
    for path in whole:
        path.unlink()
    assert write_page(run).read_text().count("None recorded.") == 6


@pytest.mark.slow
def test_a_browser_shows_it_with_mouse_and_keys_on_any_window(browser: Browser, run: Path) -> None:
    path = write_page(run)
    browser.open(path)
    assert browser.errors() == [] and browser.requests_elsewhere() == []
    seen = "[...document.querySelectorAll('#samples-shown [data-step]:not(p.faint)')].filter(n => !n.hidden)"
    shown = f"return {seen}.map(n => n.dataset.step)"
    assert browser.run(shown) == ["120", "120"] and browser.text("#step-shown") == "step 120"
    assert browser.run("return document.querySelectorAll('.plot canvas').length") >= 6
    browser.run("document.getElementById('step').focus()")
    browser.press("ArrowLeft")
    assert browser.run(shown) == ["60", "60"] and "no image at step 60" in browser.text("#samples-shown")
    browser.click("#samples-shown .picture:not([hidden])")
    assert browser.text("#large p") == f"step 60: {PROMPT}"
    browser.press("ArrowRight", "ArrowDown")
    assert browser.text("#large p").startswith("step 120: a dog")
    assert browser.run("return document.querySelector('#large img').naturalWidth") == 64
    browser.press("Escape")
    assert browser.run("return document.getElementById('large').open") is False
    browser.click(".plot .u-series:last-child th")
    assert browser.run("return document.querySelectorAll('.u-legend .u-off').length") == 1
    browser.run("document.getElementById('log').click()")
    assert browser.errors() == []
    write_page(run, embed=False)
    browser.open(path, width=400, dark=True)
    assert browser.is_as_wide_as_the_window() and browser.requests_elsewhere() == []
    assert browser.run("return document.querySelector('.picture:not([hidden]) img').naturalWidth") == 64
    assert browser.run("return document.title") == "cat"  # nothing of the prompt was run
    with Image.open(browser.screenshot(run / "shot.png")) as shot:
        assert shot.width >= 385


@pytest.mark.parametrize("kept", ["run.json", "run.lock"])
def test_a_pipe_in_the_place_of_a_file_is_left_out_with_a_line(run: Path, tmp_path: Path, said, kept: str) -> None:
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
        page = report_page(read_run(run), run)
    assert (
        found == [] and "None recorded." in page and [one.problem is None for one in list_checkpoints(run)] == [False]
    )
    assert any(f"{run / 'metrics.jsonl'}: cannot be read: it is not a regular file" in line for line in said)


# ------------------------------------------------------------ the command


README = Path(__file__).parents[4] / "extensions" / "tools" / "report" / "README.md"


@pytest.mark.slow
def test_the_commands_of_the_readme_and_a_job(run_py, write_job, run: Path, tmp_path: Path) -> None:
    run.rename(run.parent / "my_char")
    commands = [line for line in README.read_text().splitlines() if line.startswith(".venv/bin/python run.py ")]
    for command in commands[1:]:
        result = run_py(*shlex.split(command, comments=True)[2:])
        assert (result.returncode, result.stderr, result.stdout.count(".html: ")) == (0, "", 1)
    assert len(commands) == 4 and (tmp_path / "my_char.html").is_file()
    linked = tmp_path / "output" / "my_char" / "report.html"
    assert 'src="../../images/one.jpg"' in linked.read_text()
    assert run_py(write_job({"type": "report", "run": "output/my_char"})).returncode == 0
    assert 'src="data:image/jpeg' in linked.read_text()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("output/none",), "run: 'output/none' contains no run"),
        (("output", "--output", "a.html"), "--output: is one file, 'output' holds 2 runs (cat, dog). Give one."),
        (("output/cat", "--output", "output"), "--output: 'output' is a folder. Give a file, such as"),
        (("output/cat", "--output", "mine.html"), "--output: 'mine.html' was not made by this program"),
        (("output/cat", "--output", "mine.html/x.html"), "mine.html' is a file. Give a path in a folder."),
    ],
)
def test_wrong_input_is_one_line(run: Path, tmp_path: Path, monkeypatch, flags: tuple[str, ...], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    (run.parent / "dog").mkdir()
    (run.parent / "dog" / "run.lock").touch()
    (tmp_path / "mine.html").write_text("<html>")
    with pytest.raises(ConfigErrors) as caught:
        section_of("report", flags)
    assert told in str(caught.value)


def test_a_file_of_another_program_stays(run: Path, run_py) -> None:
    (run / "report.html").write_text("mine")
    result = run_py("report", run)
    assert "was not made by this program, so it is never replaced" in result.stdout + result.stderr
    assert (run / "report.html").read_text() == "mine"

"""`run.py lint` and `type: lint`: jobs, exit codes, JSON, what is ignored, the page."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.lint import process
from tests.conftest import ROOT, child_environment
from tests.extensions.tools.lint.conftest import picture
from tests.html_browser import Browser
from tests.running import run_job, run_tool, section_of
from toolkit.errors import ConfigErrors, Diagnostic, RunError, UserError

README = Path(__file__).parents[4] / "extensions" / "tools" / "lint" / "README.md"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs the command in this process and returns its output; RunError where it finds
    something."""

    def lint(*flags: object) -> str:
        run_tool("lint", flags)
        return capsys.readouterr().out

    return lint


@pytest.mark.parametrize(
    ("check", "messages", "told"),
    [
        (
            "tiny",
            [
                f"is small: 9 x {n}, {n}% of the resolution 512, and"
                for n in (9, 30, 25, 11)
            ],
            ["tiny: 4 images are small: 9 to 30% of 512. ", "  d: 0, 1, 2, 3"],
        ),
        (
            "unusable",
            ["is damaged"] * 4 + ["is empty"],
            [
                "unusable: 5 files are refused by a training. ",
                "  is damaged:",
                "  d: 0, 1, 2, 3",
                "  d/4: is empty",
            ],
        ),
        (
            "duplicate",
            [f"shows what d/{name} shows" for name in "abcd"],
            [
                "duplicate: 4 near-duplicates. ",
                "  d: 0 = a, 1 = b, 2 = c, 3 = d",
            ],
        ),
        ("garbled", ["its caption has 'x'"], ["garbled: captions with", "  d/0: its"]),
    ],
)
def test_many_findings_of_a_kind_are_one_line_with_their_range(
    check: str, messages: list[str], told: list[str]
) -> None:
    findings = [
        Diagnostic((f"d/{number}",), message, "warning", check)
        for number, message in enumerate(messages)
    ]
    lines = process.render(findings)
    assert lines.pop() == "" and len(lines) == len(told)
    assert all(map(str.startswith, lines, told)), lines


def train(folder: str, **keys: object) -> dict:
    """A process that trains on a folder; its model is not here."""
    model = {"name_or_path": "Qwen/Qwen-Image-Edit-2509"}
    dataset = {"folder_path": folder, "resolution": 256}
    return {
        "type": "sd_trainer",
        "model": model,
        "network": {"type": "lora"},
        "datasets": [dataset],
        **keys,
    }


@pytest.mark.slow
def test_the_commands_of_the_readme(
    run_py, write_job, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "images")
    shutil.copytree(folder, tmp_path / "after")
    (tmp_path / "before").mkdir()
    for index in range(6):
        image = picture(index)
        image.paste(Image.new("RGB", (60, 60), (200, 30, 30)), (20, 20))
        image.save(tmp_path / "before" / f"{index}.png")
    (tmp_path / "pairs").mkdir()
    for name, index in (("a_start", 0), ("a_end", 1)):
        picture(index).save(tmp_path / "pairs" / f"{name}.png")
    (tmp_path / "config").mkdir()
    write_job(train("images")).rename(tmp_path / "config" / "my_job.yaml")
    commands = [
        line
        for line in README.read_text().splitlines()
        if line.startswith(".venv/bin/python run.py ")
    ]
    codes = {}
    for command in commands:
        words = shlex.split(command, comments=True)[2:]
        result = run_py(*words)
        codes[command.partition("  ")[0].removeprefix(".venv/bin/python run.py ")] = (
            result.returncode
        )
        assert "Traceback" not in result.stderr
    # at 1024 the pictures are small
    assert len(codes) == 7 and list(codes.values()) == [
        0,
        1,
        1,
        1,
        1,
        1,
        0,
    ]
    assert (tmp_path / "seen.html").is_file()


def test_findings_are_lines_json_and_an_exit_code(run, folder: Path) -> None:
    good = run("photos", "--resolution", 256)
    assert good.splitlines() == []
    (folder / "2.txt").write_text("")
    with pytest.raises(
        RunError, match=r"^1 finding: no_caption 1\. 6 images checked\.$"
    ) as caught:
        run("photos", "--resolution", 256)
    assert caught.value.exit_code == 1


def test_a_job_that_is_told_of_something_trains_nothing(
    write_job, folder: Path, tmp_path: Path
) -> None:
    (folder / "2.txt").write_text("")
    lint = {"type": "lint", "path": "photos", "resolution": 256}
    after = {"type": "tiny_model", "path": "drawn"}
    with pytest.raises(RunError, match="no_caption 1"):
        run_job(write_job(lint, after))
    assert not (tmp_path / "drawn").exists()


def test_json_has_every_finding(
    run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "2.txt").write_text("")
    with pytest.raises(RunError):
        run("photos", "--json", "--resolution", 256)
    message = "has no caption: it trains with the trigger word of the job alone"
    found = {"check": "no_caption", "file": "photos/2.png", "message": message}
    assert json.loads(capsys.readouterr().out) == {
        "images": 6,
        "ignored": 0,
        "findings": [found],
        "pairs": [],
    }


def test_what_somebody_has_looked_at_is_ignored(run, folder: Path) -> None:
    flags = ("photos", "--resolution", 512, "--least-size", 0.9)  # all six are tiny
    with pytest.raises(RunError, match="tiny 6"):
        run(*flags)
    (folder / "lint_ignore.txt").write_text(
        "# seen\n0.png: tiny, aspect  # meant so\n[12].png\n3.png: aspect\n"
    )
    (folder / "4.lint").write_text("# lint: ignore tiny")
    (folder / "5.lint").write_text("# lint: ignore")
    with pytest.raises(
        RunError, match=r"^1 finding: tiny 1\. 6 images checked, 5 findings ignored\.$"
    ):
        run(*flags)
    (folder / "4.lint").write_text("# lint: ignore tinny")
    with pytest.raises(
        UserError, match=r"4\.lint: 'tinny' is not a check\. Did you mean 'tiny'\?"
    ):
        run(*flags)


def test_a_job_is_checked_as_it_trains(
    run, write_job, folder: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    picture(40).save(held_out / "new.png")
    picture(4).resize((200, 150)).save(held_out / "known.jpg", quality=90)
    for name in ("new", "known"):
        (held_out / f"{name}.txt").write_text("ohwx man elsewhere")
    (folder / "1.txt").write_text("a man")  # gets the trigger word in front
    (folder / "2.txt").write_text("ohwxman")
    job = write_job(
        train("photos", trigger_word="ohwx", validation={"folder_path": "held_out"})
    )
    with pytest.raises(RunError, match="trigger 1"):
        run(job, "--skip", "leak")
    with pytest.raises(RunError, match=r"^1 finding: leak 1\."):
        run(job, "--skip", "trigger")
    with pytest.raises(ConfigErrors, match=r"(?s)\['datasts'\]|datasts.*datasets"):
        run(write_job({**train("photos"), "datasts": []}, name="typo"))
    twice = write_job(
        train("photos", name="one"), train("photos", name="two"), name="twice"
    )
    with pytest.raises(RunError, match="6 images checked"):
        run(twice, "--least-size", 9)


def test_transparency_is_told_of_where_it_is_not_trained(
    run, write_job, folder: Path
) -> None:
    image = picture(9)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "bad.png")
    (folder / "bad.txt").write_text("ohwx man somewhere")
    section = train("photos") | {"model": {"name_or_path": "Qwen/Qwen-Image-2.1"}}
    run(write_job(section))
    (dataset,) = section["datasets"]
    on_black = section | {"datasets": [dataset | {"background": "black"}]}
    for name, told in (("black", on_black), ("2509", train("photos"))):
        with pytest.raises(RunError, match=r"^1 finding: transparent 1\."):
            run(write_job(told, name=name))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("nothing",), "path: 'nothing' is neither a folder of images nor a job"),
        (
            ("photos", "--skip", "blur"),
            "'blur' is not a check. Did you mean 'blurred'?",
        ),
        (
            ("photos", "--output", "a.html"),
            "--output: is the page of 'preview: true', which is not given",
        ),
        (
            ("photos", "--preview", "--output", "photos/0.png"),
            "--output: 'photos/0.png' was not made by this program",
        ),
        (("photos", "--control-path", "none"), "'none' is not a folder"),
        (
            ("job.yaml", "--resolution", "512"),
            "is for a folder of images; the job 'job.yaml' says it itself",
        ),
    ],
)
def test_wrong_use_is_one_line(
    folder: Path, write_job, flags: tuple[str, ...], told: str
) -> None:
    write_job(train("photos"))
    with pytest.raises(ConfigErrors) as caught:
        section_of("lint", flags)
    assert told in str(caught.value) and len(caught.value.errors) == 1


def test_an_empty_folder_is_wrong_use_and_a_job_without_datasets_too(
    run, write_job, tmp_path: Path, folder
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images"):
        run("empty")
    with pytest.raises(UserError, match="no process of this job has datasets"):
        run(write_job({"type": "tiny_model", "path": "tiny"}))
    with pytest.raises(UserError, match="is not there yet"):
        run(
            write_job(
                {"type": "tiny_model", "path": "drawn"},
                train("drawn"),
                name="later",
            )
        )


@pytest.mark.slow
def test_the_page_shows_what_is_trained(
    run, browser: Browser, folder: Path, tmp_path: Path
) -> None:
    picture(9, 512, 192).save(folder / "wide.png")
    (folder / "wide.txt").write_text("ohwx <b>wide</b>")
    (folder / "0.txt").write_text("")
    (tmp_path / "before").mkdir()
    for path in folder.glob("*.png"):
        picture(77).save(tmp_path / "before" / path.name)
    job = write_pairs(tmp_path)
    with pytest.raises(RunError):
        run(job, "--preview", "--output", "page.html", "--skip", "duplicate")
    page = tmp_path / "page.html"
    browser.open(page)
    assert browser.errors() == [] and browser.requests_elsewhere() == []
    assert browser.run("return document.querySelectorAll('.crop img').length") == 7
    assert (
        browser.run("return document.querySelectorAll('.references img').length") == 7
    )
    assert "an ohwx man" not in browser.text() and "ohwx <b>wide</b>" in browser.text()
    assert browser.text("article").startswith(
        "control image 1"
    ) and "has no caption" in browser.text("article .bad")
    browser.click("#only")
    seen = "return [...document.querySelectorAll('article')].filter(node => node.offsetHeight).length"
    assert browser.run(seen) == 2
    browser.open(page, width=400, dark=True)
    assert browser.is_as_wide_as_the_window()


def write_pairs(tmp_path: Path) -> Path:
    dataset = {"folder_path": "photos", "control_path": "before", "resolution": 256}
    path = tmp_path / "pairs.yaml"
    process = {**train("photos"), "datasets": [dataset]}
    path.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": "pairs", "process": [process]}}
        )
    )
    return path


@pytest.mark.parametrize(
    "example", ["photos", "edit_pairs", "fluxflow", "from_scratch/vae_8gb"]
)
def test_the_examples_have_good_pictures_though_small_ones(
    run, example: str, monkeypatch
) -> None:
    """Also jobs whose model an earlier process writes, of pairs, and of several
    trainers of one dataset."""
    root = README.parents[3]
    monkeypatch.chdir(root)
    # or it ends with RunError
    assert run(f"config/examples/{example}.yaml", "--skip", "aspect", "tiny") == ""


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_pipe_is_told_of_a_long_reading_on_standard_error_alone(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
) -> None:
    """What reads standard output, as JSON say, gets nothing of it."""
    monkeypatch.setattr(process, "SILENT_S", 0.0)
    with suppress(RunError):
        run_tool("lint", (folder, *flags))
    said = capsys.readouterr()
    told = re.findall(r"^reading (\d+) of 6 images", said.err, re.MULTILINE)
    assert told[:1] == ([] if flags else ["0"]) and "reading" not in said.out
    if flags:
        json.loads(said.out)


def test_a_short_reading_is_silent(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    with suppress(RunError):
        run_tool("lint", (folder,))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_terminal_sees_how_many_images_are_read(folder: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "lint", str(folder), "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=follower, env=child_environment(),
    )  # fmt: skip
    os.close(follower)
    out, _ = started.communicate(timeout=120)
    seen = os.read(leader, 65536).decode()
    os.close(leader)
    assert re.search(r"\rreading \d of 6 images", seen), (seen, out)
    assert seen.count("\n") == seen.count("\r\n") and json.loads(out)

"""`run.py report` and `type: report`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.running import section_of
from toolkit.errors import ConfigErrors

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

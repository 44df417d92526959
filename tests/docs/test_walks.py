"""The commands of the guides, run in the order in which one reads them.

A tiny model stands for the published one, photographs for one's own; jobs have few steps and small sizes.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

HUB = "Qwen/Qwen-Image-Edit-2509"
PYTHON = ".venv/bin/python"
GUIDES = ("README.md", "docs/first_character.md", "docs/before_and_after_pairs.md", "docs/troubleshooting.md")

NOT_RUN = (
    "python3.11 -m venv",  # makes the environment that tests run in
    ".venv/bin/pip",
    ".venv/bin/ruff",
    ".venv/bin/mypy",
    "OMP_NUM_THREADS=1",  # the tests themselves
)
"""How commands begin that set up the environment or check the program."""

SHORTER = (
    (r"steps: (2000|240|300)\b", "steps: 2"),
    (r"(save_every|sample_every): \d+", r"\1: 2"),
    (r"sample_steps: \d+", "sample_steps: 1"),
    (r"resolution: (\[1024\]|1024)", "resolution: 64"),
    (r"(width|height): \d{3,4}", r"\1: 64"),
    (r"count: \d+", "count: 4"),
    (r"edits_of_two: \d+", "edits_of_two: 12"),
    (r"dtype: bf16", "dtype: fp32"),
)
"""Edits of a job before it is trained: nothing but its length and sizes, and a number type that is fast on a CPU."""


def commands(guide: str) -> Iterator[str]:
    """The commands of a guide in their order: lines of blocks, and those within a sentence."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    for block, inline in re.findall(r"(?ms)^ *```bash\n(.*?)^ *```|`(\.venv/bin/python run\.py [^`]+)`", text):
        for line in (block or inline).splitlines():
            yield from (command.strip() for command in line.split("&&"))


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as far as commands read it, with the images that the guides ask for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("my_*"))
    (tmp_path / HUB).parent.mkdir()
    (tmp_path / HUB).symlink_to(tiny_model)
    photos = ROOT / "config" / "examples" / "photos" / "40_photo"
    for folder in ("my_char", "mychar/40_mychar", "after", "before"):
        shutil.copytree(photos, tmp_path / "datasets" / folder)
    return tmp_path


def shorten(job: Path) -> None:
    text = job.read_text(encoding="utf-8")
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text)
    job.write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_of_a_guide_runs_in_its_order(guide: str, place: Path, run_py: Callable) -> None:
    """Exit code 0; lint ends with 1, as it finds that the photographs are small."""
    if guide == "docs/troubleshooting.md":  # its commands are about a job that is there
        shutil.copy("config/examples/train_qwen_image_edit_2509_24gb.yaml", "config/my_character.yaml")
    trained = set()
    for command in commands(guide):
        if command.startswith(NOT_RUN):
            continue
        words = shlex.split(command, comments=True)
        if words[0] == "cp":
            shutil.copy(*words[1:])
            continue
        assert words[:2] == [PYTHON, "run.py"], command
        arguments = words[2:]
        if arguments[0] in ("ui", "caption"):  # serves until it is stopped; needs a model that captions
            arguments.append("--help")
        elif arguments[0].endswith(".yaml"):
            shorten(place / arguments[0])
            trained.add(Path(arguments[0]).stem)
        done = run_py(*arguments)
        assert done.returncode == (arguments[0] == "lint"), (command, done.stderr[-2000:], done.stdout[-2000:])
    assert trained, "a guide trains something"
    finals = {path.stem for path in (place / "output").rglob("*.safetensors")}
    assert all(any(name.startswith(stem) for name in finals) for stem in trained - {"my_character"})

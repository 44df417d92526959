"""docs/write_an_extension.md, word by word: each file is written, each command runs and
prints what follows it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import blocks

PAGE = "docs/write_an_extension.md"
PROJECT, PACKAGE = "atelier-sharpest", "sharpest"
ENDS_WITH = {"look.yaml --dry-run": 2, "--without sharpest": 2}
"""Words of a command that ends with an error -> its exit code."""


def install(project: Path, site: Path) -> None:
    """What `pip install -e` does, without a network and without the environment of the
    tests: the package is a link to its files, so that later changes of them count."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--target", str(site), str(project)], check=True)
    assert (site / PACKAGE / "__init__.py").is_file(), "the wheel has the package"
    shutil.rmtree(site / PACKAGE)
    (site / PACKAGE).symlink_to(project / PACKAGE)


@pytest.mark.slow
def test_the_tutorial_runs_word_by_word(run_py: Callable, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    site, printed, commands = tmp_path / "site", "", []
    for block in blocks(PAGE):
        if block.language in ("python", "toml", "yaml"):
            named = re.match(r"# (\S+)\n", block.text)
            assert named, f"{block}: the first line names the file"
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "text":
            printed = seen_in(block.text, printed)
        else:
            assert block.language == "bash", block
            (command,) = block.text.splitlines()
            commands.append(command)
            if command == f".venv/bin/pip install -e ./{PROJECT}":
                install(tmp_path / PROJECT, site)
                continue
            start = ".venv/bin/python run.py "
            assert command.startswith(start), block
            words = command.removeprefix(start)
            code = next((code for end, code in ENDS_WITH.items() if end in words), 0)
            # A link of site-packages is read at the start of an interpreter: this is a
            # new one.
            done = run_py(*shlex.split(words), env={"PYTHONPATH": str(site)})
            assert done.returncode == code, (command, done.stdout, done.stderr)
            printed = done.stdout + done.stderr
    assert len(commands) == 8


def seen_in(text: str, printed: str) -> str:
    """Checks that each line of a block was printed, in this order; `...` stands for
    anything. Returns what is left."""
    for line in text.splitlines():
        pattern = ".*".join(
            map(re.escape, (part.strip() for part in line.split("...")))
        )
        found = re.search(rf"^.*{pattern}.*$\n?", printed, re.MULTILINE)
        assert found, (line, printed)
        printed = printed[found.end() :]
    return printed

"""The commands in benchmarks/README.md, which say how to get each figure again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TEXT = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
SCRIPT = re.compile(r"bench_\w+(?=\.py)")


def commands(text: str) -> Iterator[str]:
    """Whole command lines of the first column of the table; `...` stands for the last
    whole one."""
    whole = ""
    for written in re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE):
        if written.startswith("python "):
            whole = written
        yield written.replace("...", whole)


@pytest.mark.parametrize("command", commands(TEXT))
def test_every_command_names_a_bench_and_options_it_takes(command: str) -> None:
    program, script, *options = shlex.split(command)
    assert program == "python"
    assert (BENCHMARKS.parent / script).is_file()
    module = script.removesuffix(".py").replace("/", ".")
    import_module(module).arguments(options)  # argparse exits on what it does not know


def test_every_bench_stands_in_the_table() -> None:
    listed = {name for command in commands(TEXT) for name in SCRIPT.findall(command)}
    assert listed == {path.stem for path in BENCHMARKS.glob("bench_*.py")}


def test_every_option_in_the_text_is_one_of_some_script() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8") for path in BENCHMARKS.rglob("*.py")
    )
    options = set(re.findall(r"`(--[a-z][a-z-]*)", TEXT)) - {"--help"}
    assert options >= {"--noisy", "--only"}
    assert [option for option in options if f'"{option}"' not in sources] == []

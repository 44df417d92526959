"""What left the program: every row of removed.toml is refused with its sentence, and
nothing else speaks of it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import run
from docs.config_page import keys
from tests.conftest import ROOT
from tests.processes import output_of
from toolkit.config.reading.loader import load_job
from toolkit.config.reading.normalise import item_annotation
from toolkit.config.reading.removed import removed
from toolkit.config.reading.tool import ToolConfig, load_tool, tool_parser
from toolkit.config.reading.validate import Place, place_of
from toolkit.errors import UserError
from toolkit.extension import discover

KEYS = removed("keys")
COMMANDS = removed("commands")
MODELS = discover().configs()
TRAINERS = [uid for uid, model in MODELS.items() if not issubclass(model, ToolConfig)]


def parted(name: str) -> tuple[str, str, str]:
    """The process type that a row is of, the place in it, and the value; empty for a
    row of all values."""
    place, _, value = name.partition(": ")
    top, _, below = place.partition(".")
    if not below:
        return TRAINERS[0], place, value
    for uid in TRAINERS:
        if top.removesuffix("[]") in MODELS[uid].model_fields:
            return uid, place, value
    return (top, below, value) if below else ("sd_trainer", place, value)


HERE = [name for name in KEYS if parted(name)[0] in MODELS]
"""The rows of processes that are here: a part may be absent."""

OF_TOOLS = [name for name in HERE if parted(name)[0] not in TRAINERS]


def field_of(name: str) -> Place | None:
    """The field that a row names; None where no process has it."""
    kind, place, _ = parted(name)
    return place_of(MODELS[kind], tuple(place.replace("[]", ".0").split(".")))


def job_with(kind: str, place: str, value: object) -> str:
    """A job of one process that gives this key."""
    process: dict[str, Any] = {"type": kind}
    *above, last = place.split(".")
    section = process
    for part in above:
        inner: dict[str, Any] = {}
        section[part.removesuffix("[]")] = [inner] if "[]" in part else inner
        section = inner
    section[last] = value
    return json.dumps(
        {"job": "extension", "config": {"name": "test", "process": [process]}}
    )


def refusal(job: Path) -> list[str]:
    with pytest.raises(UserError) as refused:
        load_job(job, discover().find_config, check_files=False)
    return str(refused.value).splitlines()


@pytest.mark.parametrize("name", HERE)
def test_a_key_in_a_job_is_refused_with_its_sentence(name: str, tmp_path: Path) -> None:
    kind, place, value = parted(name)
    job = tmp_path / "job.json"
    field = field_of(name)
    is_list = field is not None and (
        item_annotation(field.section.model_fields[field.name].annotation) is not Any
    )
    job.write_text(job_with(kind, place, [value] if is_list else value or {"x": 1}))
    said = f"{value!r} {KEYS[name]}" if value else f".{place}: {KEYS[name]}"
    said = said.replace("[]", "[0]")
    assert [line for line in refusal(job) if line.endswith(said)]


@pytest.mark.parametrize("name", OF_TOOLS)
def test_a_flag_is_refused_with_its_sentence(name: str) -> None:
    tool, key, value = parted(name)
    model = discover().find_command(tool)
    assert model is not None and issubclass(model, ToolConfig)
    flag = f"--{key.replace('_', '-')}"
    with pytest.raises(UserError) as refused:
        load_tool(tool, model, ["x", flag, value or "3"])
    said = f": {flag}: a list: {value!r}" if value else f": {flag!r}"
    assert f"run.py {tool}{said} {KEYS[name]}" in str(refused.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_a_process_are_refused_with_its_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([name, "output/my"], [name, "--help"], ["help", name]):
        assert run.main(words) == 2
        assert capsys.readouterr().err == f"{name}: {COMMANDS[name]}\n"
    job = tmp_path / "job.json"
    job.write_text(job_with(name, "run", "output/my"))
    (line,) = refusal(job)
    assert line.endswith(f": process[0].type: {name!r} {COMMANDS[name]}")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_key_that_is_set_is_refused_with_its_sentence(
    processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With several processes it is not asked which one is meant."""
    job = json.loads(job_with("sd_trainer", "name", "first"))
    job["config"]["process"] += [{"type": "sd_trainer", "name": "b"}] * (processes - 1)
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    words = [
        str(tmp_path / "job.yaml"),
        "--dry-run",
        "--set",
        "train.preference.beta=3",
    ]
    assert run.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "--set" in line]
    assert len(lines) == 1 and lines[0].endswith(KEYS["train.preference"])


def test_no_row_names_what_exists() -> None:
    assert [name for name in HERE if ": " not in name and field_of(name)] == []
    assert COMMANDS.keys() & discover().uids("process") == set()


@pytest.mark.parametrize("name", [*KEYS, *COMMANDS])
def test_a_command_that_a_row_gives_exists_with_its_flags(name: str) -> None:
    said = {**KEYS, **COMMANDS}[name]
    for tool, words in re.findall(r"run\.py (\w+)([^,']*)", said):
        model = MODELS.get(tool)
        if model is None:
            pytest.skip(f"needs the tool {tool}, whose part is absent")
        assert issubclass(model, ToolConfig)
        known = tool_parser(tool, model)._option_string_actions
        assert {word for word in words.split() if word[0] == "-"} <= known.keys()


SPEAKS = (
    "*.md",
    "*.yaml",
    "*.yml",
    "*.json",
    "*.jsonc",
    "*.toml",
    "*.j2",
    "*.js",
    "*.py",
)
MAY_SPEAK = (
    "CHANGELOG.md",
    "toolkit/config/removed.toml",
    "toolkit/config/reading/removed.py",
    "tests/",
)


OF_OTHERS = ("rs_lora",)
"""Terms of other programs, which pages about their files use."""


@cache
def texts() -> dict[str, str]:
    """File -> what a reader of the program, its pages and messages is shown."""
    listed = output_of("git", "ls-files", "--", *SPEAKS).splitlines()
    found = {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in listed
        if (ROOT / name).is_file() and not name.startswith(MAY_SPEAK)
    }
    return {
        name: "\n".join(strings(text)) if name.endswith(".py") else text
        for name, text in found.items()
    }


def strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def patterns() -> Iterator[tuple[str, str]]:
    """Row, and what nobody says: the name, where nothing else has it, else its place or
    its command."""
    known = {key.rpartition(".")[2] for key in keys(MODELS)}
    for name in KEYS:
        kind, place, value = parted(name)
        key = place.rpartition(".")[2]
        if value:
            yield name, rf"\b{key}\b.{{0,3}}[:\s]\s*\W*(\w+,\s*)*{value}\b"
        elif "_" in key and key not in known and key not in OF_OTHERS:
            yield name, rf"\b{key}\b"
        else:
            yield name, rf"(?<![\w.]){re.escape(name)}\b"
        if name in OF_TOOLS and not value:
            flag = f"--{key.replace('_', '-')}"
            yield name, rf"(?:run\.py|atelier) {kind}\b[^\n`]* {flag}\b(?!-)"
    for name in COMMANDS:
        yield name, rf"(?:run\.py|atelier) {name}\b|type: {name}\b"


@pytest.mark.slow
def test_nothing_speaks_of_what_left() -> None:
    said = [
        f"{file}: {name}"
        for name, pattern in patterns()
        for file, text in texts().items()
        if re.search(pattern, text)
    ]
    assert said == []

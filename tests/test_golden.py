"""tests/golden/README.md says that every column is compared but those it lists: each
column of each table."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from tests.golden_tables import FOLDER

ROOT = FOLDER.parents[1]
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def tables() -> dict[str, set[str]]:
    """Name -> its columns: the keys of its cases; of the LoRA files what is said of
    each file and module."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = {key for case in content.get("cases", ()) for key in case}
        found[path.stem] = columns or content.keys() - {"source", "note", "tolerance"}
    files = json.loads(
        (FOLDER / "lora_files" / "expected.json").read_text(encoding="utf-8")
    )["files"].values()
    of_modules = {
        key for file in files for numbers in file["modules"].values() for key in numbers
    }
    return {**found, "lora_files": {key for file in files for key in file} | of_modules}


@cache
def of_test_files() -> tuple[tuple[set[str], set[str]], ...]:
    """Of each test file the tables it opens, and all texts in its code with the
    keywords of what opens them."""
    found = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(word in text for word in ("golden(", "table(", "lora_files")):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
        texts = {value for value in constants if isinstance(value, str)}
        calls = [
            node
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        openers = [call for call in calls if call.func.id in ("golden", "table")]
        opened = {
            call.args[0].value
            for call in openers
            if call.args and isinstance(call.args[0], ast.Constant)
        }
        keywords = {word.arg for call in openers for word in call.keywords if word.arg}
        if path != Path(__file__):
            found.append((opened | ({"lora_files"} & texts), texts | keywords))
    return tuple(found)


def listed(table: str) -> set[str]:
    """What the README names in the left column of the section with this table in its
    heading."""
    for section in README.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        if re.search(rf"\b{table}\b", heading):
            cells = [
                line.split("|")[1] for line in body.splitlines() if line.startswith("|")
            ]
            return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    return set()


def forgotten(table: str, columns: set[str]) -> set[str]:
    """Columns that no test file of the table names and the README does not list."""
    read = [names for opened, names in of_test_files() if table in opened]
    assert read, f"no test opens {table}"
    return columns - set().union(*read) - listed(table)


@pytest.mark.parametrize("table", tables())
def test_every_column_is_read_by_a_test_or_listed(table: str) -> None:
    assert forgotten(table, tables()[table]) == set()


def test_every_table_has_its_section_and_every_section_its_tables() -> None:
    headings = " ".join(re.findall(r"^## (.*)$", README, re.MULTILINE))
    assert {*re.findall(r"(\w+)\.json", headings), "lora_files"} == tables().keys()

"""The table of docs/from_scratch.md names every row of FluxFlow's guide once or more, and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = {0: 7, 1: 8, 2: 15, 3: 7, 4: 11, 5: 9, 6: 8, 7: 15, 8: 16, 9: 7, 10: 8, 11: 5, 13: 3, 14: 3}
"""Section of the requirements -> its rows. Sections 12 and 15 to 17 are one each."""


def table() -> list[list[str]]:
    text = (ROOT / "docs" / "from_scratch.md").read_text(encoding="utf-8")
    body = text.split("| rows | what | where | test |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()[2:]]


def named(cell: str) -> set[str]:
    """`4.1 to 4.3, 9.6` -> {"4.1", "4.2", "4.3", "9.6"}."""
    found: set[str] = set()
    for part in cell.split(", "):
        first, _, last = part.partition(" to ")
        section, _, row = first.partition(".")
        rows = range(int(row), int(last.partition(".")[2]) + 1) if last else [row]
        found |= {f"{section}.{number}" if row else section for number in rows}
    return found


def test_every_row_is_named() -> None:
    wanted = {f"{section}.{row}" for section, count in ROWS.items() for row in range(1, count + 1)}
    found = set().union(*(named(row[0]) for row in table()))
    assert found == wanted | {"12", "15", "16", "17"}


def test_its_tests_are_there() -> None:
    files = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    for row in table():
        for test in re.findall(r"`([\w/]*test_\w+\.py)`", row[3]):
            assert any(f"/{file}".endswith(f"/{test}") for file in files), (row[0], test)

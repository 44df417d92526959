"""Every link from a page of ours to a file or a heading of ours leads somewhere, and so
does the name of a test."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "config").rglob("*.md"),
    )
)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def broken(page: Path) -> list[str]:
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken(ROOT / page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One `two`\n[x](b.md) [y](#one-two) [z](#three) [w](https://example.org/#q)"
    )
    assert broken(tmp_path / "a.md") == ["b.md", "#three"]


@cache
def known_tests() -> dict[str, set[str]]:
    """Test file, from the root on -> the names of its tests."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {
        path.as_posix(): {
            *re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))
        }
        for path in files
    }


def unknown_tests(text: str) -> list[str]:
    """`file.py::test_name`, `::test_name` or `test_name`, also cut short
    (`test_na...`), that no test has."""
    found = []
    # `test_...` may also be a key
    naming = "\n".join(line for line in text.splitlines() if "::test_" in line)
    for file, name, cut in re.findall(
        r"`(?:([\w/]+\.py))?(?:::)?(test_\w+)(\.{3}|\*)?(?:\[[^`]*\])?`", naming
    ):
        tests = [
            tests
            for path, tests in known_tests().items()
            if path.endswith(f"/{file}") or not file
        ]
        if not any(
            test == name or (cut and test.startswith(name))
            for names in tests
            for test in names
        ):
            found.append(f"{file}::{name}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_a_page_names_exist(page: str) -> None:
    assert unknown_tests((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_test_that_is_gone_is_seen() -> None:
    text = "`docs/test_links.py::test_links_lead_somewhere` `test_b.py::test_links...` `::test_no_such`"
    assert unknown_tests(text) == ["test_b.py::test_links", "::test_no_such"]

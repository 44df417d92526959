"""Each extension folder is a complete part: a README, the pages that it names, tests in
the folder of the same name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHARED = ROOT / "extensions" / "tools" / "shared"
"""What several tools use, which is no extension."""

FOLDERS = sorted(
    path.parent
    for pattern in ("*/__init__.py", "tools/*/__init__.py")
    for path in (ROOT / "extensions").glob(pattern)
    if path.parent != SHARED
)


def test_these_are_the_folders() -> None:
    names = {folder.relative_to(ROOT / "extensions").as_posix() for folder in FOLDERS}
    assert {
        "compat",
        "from_scratch",
        "sd_trainer",
        "example",
        "tools",
        "tools/ui",
        "tools/lora_tools",
    } <= names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_readme_has_a_command_a_page_and_how_to_leave_it_out(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.search(r"\.venv/bin/python run\.py (?!--without)\S", text), "one command"
    assert f".venv/bin/python run.py --without {folder.name} ..." in text, (
        "how to leave it out"
    )
    pages = re.findall(r"\((?:\.\./)+(docs/\w+\.md)", text) + re.findall(
        r"`(docs/\w+\.md)`", text
    )
    assert pages, "which page of the documentation"
    assert [page for page in pages if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_tests_lie_in_the_folder_of_the_same_name(folder: Path) -> None:
    assert [*(ROOT / "tests" / folder.relative_to(ROOT)).rglob("test_*.py")]

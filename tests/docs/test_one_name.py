"""Folders that guides and the page in the browser must call by one name."""

from __future__ import annotations

import re

from extensions.tools.ui.config import UiConfig
from tests.conftest import ROOT

KINDS = {".md", ".yaml", ".j2", ".py"}
PAGES = [
    path.relative_to(ROOT).as_posix()
    for place in ("README.md", "docs", "config", "extensions", "toolkit", "jobs", "run.py")
    for path in (ROOT / place, *(ROOT / place).rglob("*"))
    if path.suffix in KINDS
]
FOLDER = re.compile(r"(?<![\w/:-])(?:\./)?(datasets?)/(?=[a-z0-9])")
"""A folder of datasets as a path begins with it; an address of the page begins with `/`."""


def test_guides_put_images_where_the_page_looks_for_them() -> None:
    named = {page: set(FOLDER.findall((ROOT / page).read_text(encoding="utf-8"))) for page in PAGES}
    assert {page: found for page, found in named.items() if found - {UiConfig.model_fields["datasets"].default}} == {}
    assert {"README.md", "docs/first_character.md", "docs/before_and_after_pairs.md"} <= {p for p in named if named[p]}

"""Every page is on the site, and the Chinese README has the facts of the English one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
KINDS = {
    "blocks of code": FENCED,
    "code in lines": re.compile(r"`[^`\n]+`"),
    "links": re.compile(r"\]\([^)]+\)"),
    "numbers": re.compile(r"\d+(?:[.,]\d+)*"),
    "headings": re.compile(r"^#+(?= )", re.MULTILINE),
    "rows": re.compile(r"^\|(?=.)", re.MULTILINE),
}


def facts(text: str) -> dict[str, Counter[str]]:
    """What is the same in each language."""
    text = re.sub(r"README(\.zh)?\.md", "README", text)
    prose = FENCED.sub("", text)
    return {
        kind: Counter(pattern.findall(text if pattern is FENCED else prose))
        for kind, pattern in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_chinese_readme_has_what_the_english_one_has(kind: str) -> None:
    english, chinese = (
        facts((ROOT / name).read_text(encoding="utf-8"))[kind]
        for name in ("README.md", "README.zh.md")
    )
    assert english.total() >= 3
    assert (english - chinese, chinese - english) == (Counter(), Counter())


def test_a_fact_that_differs_is_seen() -> None:
    english = "# A\n\nTakes `x` for 8 GB: [page](a.md).\n\n```bash\nrun 1\n```\n"
    chinese = "# 甲\n\n`x` 需要 8 GB：[页面](a.md)。\n\n```bash\nrun 1\n```\n"
    assert facts(english) == facts(chinese)
    for old, new in (("8", "6"), ("`x`", "`y`"), ("a.md", "b.md"), ("run 1", "run")):
        assert facts(english) != facts(chinese.replace(old, new)), old


def pages(nav: Any) -> Iterator[str]:
    """The files in a part of the navigation."""
    if isinstance(nav, str):
        yield nav
        return
    for part in nav.values() if isinstance(nav, dict) else nav:
        yield from pages(part)


def test_every_page_is_on_the_site_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")}
    assert Counter(pages(site["nav"])) == Counter(
        {"README.md", "README.zh.md", *written}
    )
    assert all((ROOT / hook).is_file() for hook in site["hooks"])


def test_the_site_has_the_colours_and_the_mark_of_the_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (name,) = site["extra_css"]
    css = (ROOT / name).read_text(encoding="utf-8")
    tokens = ROOT / "extensions" / "tools" / "shared" / "pages" / "tokens.css"
    colours = set(re.findall(r"#[0-9a-f]{6}", css))
    assert colours and colours <= set(
        re.findall(r"#[0-9a-f]{6}", tokens.read_text(encoding="utf-8"))
    )
    parts = [(ROOT / name).parent / url for url in re.findall(r'url\("(.*?)"\)', css)]
    used = [*parts, *(ROOT / site["theme"][key] for key in ("logo", "favicon"))]
    copied = (ROOT / "docs" / "site_pages.py").read_text(encoding="utf-8")
    for file in (ROOT / name, *used):
        path = file.resolve().relative_to(ROOT).as_posix()
        assert file.is_file() and f'"{path}"' in copied, path


def test_the_site_is_built_with_the_versions_that_its_settings_name() -> None:
    named = re.findall(
        r"mkdocs[\w-]*==[\d.]+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    )
    workflow = (ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8")
    assert len(named) == 2
    assert re.findall(r"mkdocs[\w-]*==[\d.]+", workflow) == named
    assert "mkdocs build --strict" in workflow

"""Pages that ask nobody for anything, and on which nothing that they show is code."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from extensions.tools.shared.html_page import Markup, element, embedded, link_to, page, table
from tests.html_browser import Browser

NASTY = """</script></title><img src=x onerror="document.title='taken'"><script>document.title='taken'</script>&amp;'"""


def test_an_element_escapes_all_but_markup() -> None:
    assert element("p", "a<b", Markup("<br>"), 3, None, ["x", "&"]) == "<p>a&lt;b<br>3x&amp;</p>"
    written = element("a", href='"><b', class_="x", data_step=3, hidden=True, open=False, id=None)
    assert written == '<a href="&quot;&gt;&lt;b" class="x" data-step="3" hidden></a>'
    assert element("img", src="a.png") == '<img src="a.png">'
    assert "<td>&lt;i&gt;</td>" in table(["one"], [["<i>"]])


def test_data_cannot_end_its_script_and_is_json() -> None:
    text = page("t", data={"a": NASTY, "b": [math.nan, math.inf, 1.5]})
    held = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(held) == {"a": NASTY, "b": [None, None, 1.5]}
    with pytest.raises(ValueError, match="'</'"):
        page("t", js="x = '</script>'")


def test_links_are_relative_and_quoted(tmp_path: Path) -> None:
    assert link_to(tmp_path / "a b" / "ä#1?.png", tmp_path / "c") == "../a%20b/%C3%A4%231%3F.png"


def test_an_embedded_picture_is_a_small_jpeg() -> None:
    image = Image.new("RGBA", (400, 200), (255, 0, 0, 0))
    kind, _, data = embedded(image, 100).partition(",")
    small = Image.open(BytesIO(b64decode(data)))
    assert kind == "data:image/jpeg;base64" and small.size == (100, 50)
    assert all(abs(value - 128) < 3 for value in small.getpixel((50, 25)))  # not the red that is hidden there


@pytest.mark.slow
def test_a_browser_runs_the_pages_own_script_and_no_other(browser: Browser, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "beside it.png")
    hostile = Markup(
        "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
        '<img src="https://example.com/a.png"><link rel="stylesheet" href="https://example.com/a.css">'
    )
    body = (element("p", NASTY, id="told"), element("img", src=link_to(tmp_path / "beside it.png", tmp_path), id="own"))
    js = "document.getElementById('own').onclick = () => { document.title = pageData().seen; };"
    path = tmp_path / "page.html"
    path.write_text(page("a title", *body, js=js, data={"seen": NASTY}), encoding="utf-8")
    browser.open(path, width=400, dark=True)
    assert browser.text("#told") == NASTY and browser.run("return document.title") == "a title"
    assert browser.run("return document.getElementById('own').naturalWidth") == 8
    assert browser.is_as_wide_as_the_window() and browser.requests_elsewhere() == []
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 26)"
    browser.click("#own")
    assert browser.run("return document.title") == NASTY
    path.write_text(page("a title", hostile), encoding="utf-8")  # even markup that was not escaped
    browser.open(path)
    assert browser.run("return document.title") == "a title"
    assert any("example.com" in line for line in browser.requests_elsewhere())  # the fixture sees such a page

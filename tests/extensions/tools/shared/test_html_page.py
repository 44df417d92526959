"""Pages that ask nobody for anything, and on which nothing that they show is code."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from extensions.tools.shared.html_page import embedded, link_to, page
from tests.html_browser import Browser
from toolkit.files import redact

NASTY = """</script></title><img src=x onerror="document.title='taken'"><script>document.title='taken'</script>&amp;'"""


@pytest.fixture
def write_page(tmp_path: Path):
    """A page of a template's body, with its script."""

    def write(body: str, js: str = "", data: object = None, **values: object) -> Path:
        template = tmp_path / "own.html.j2"
        template.write_text(
            f'{{% extends "page.html.j2" %}}{{% block body %}}{body}{{% endblock %}}'
        )
        template.with_name("own.js").write_text(js)
        template.with_name("own.css").write_text("")
        path = tmp_path / "page.html"
        path.write_text(
            page(template, "a title", data=data, **values), encoding="utf-8"
        )
        return path

    return write


def test_what_a_template_shows_is_escaped_and_redacted_where_it_says_so(
    write_page,
) -> None:
    redact.register_secret(["hunter2-hunter2"])
    text = write_page(
        "<p title='{{ a }}'>{{ a }}{{ b }}|{{ c | redacted }}</p>",
        a=NASTY,
        b=None,
        c="hunter2-hunter2 <",
    )
    shown = text.read_text()
    assert NASTY not in shown and shown.count("&lt;img src=x onerror=") == 2
    assert "|&lt;redacted&gt; &lt;</p>" in shown
    with pytest.raises(UndefinedError):
        write_page("{{ misspelt }}")


def test_of_an_indentation_one_space_is_served(write_page) -> None:
    text = write_page("\n      <p>\n        a\n      </p>").read_text()
    assert "\n <p>\n a\n </p>" in text


def test_data_cannot_end_its_script_and_is_json(write_page) -> None:
    text = write_page("", data={"a": NASTY, "b": [math.nan, math.inf, 1.5]}).read_text()
    held = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(held) == {"a": NASTY, "b": [None, None, 1.5]}
    with pytest.raises(ValueError, match="'</'"):
        write_page("", js="x = '</script>'")


def test_links_are_relative_and_quoted(tmp_path: Path) -> None:
    assert (
        link_to(tmp_path / "a b" / "ä#1?.png", tmp_path / "c")
        == "../a%20b/%C3%A4%231%3F.png"
    )


def test_an_embedded_picture_is_a_small_jpeg() -> None:
    image = Image.new("RGBA", (400, 200), (255, 0, 0, 0))
    kind, _, data = embedded(image, 100).partition(",")
    small = Image.open(BytesIO(b64decode(data)))
    assert kind == "data:image/jpeg;base64" and small.size == (100, 50)
    # not the red that is hidden there
    assert all(abs(value - 128) < 3 for value in small.getpixel((50, 25)))


@pytest.mark.slow
def test_a_browser_runs_the_pages_own_script_and_no_other(
    browser: Browser, write_page, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "beside it.png")
    body = '<p id="told">{{ told }}</p><img src="{{ link }}" id="own">'
    js = "document.getElementById('own').onclick = () => { document.title = pageData().seen; };"
    link = link_to(tmp_path / "beside it.png", tmp_path)
    browser.open(
        write_page(body, js, {"seen": NASTY}, told=NASTY, link=link),
        width=400,
        dark=True,
    )
    assert (
        browser.text("#told") == NASTY
        and browser.run("return document.title") == "a title"
    )
    assert browser.run("return document.getElementById('own').naturalWidth") == 8
    assert browser.is_as_wide_as_the_window() and browser.requests_elsewhere() == []
    assert (
        browser.run("return getComputedStyle(document.body).backgroundColor")
        == "rgb(23, 22, 20)"
    )
    browser.click("#own")
    assert browser.run("return document.title") == NASTY
    hostile = (
        "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
        '<img src="https://example.com/a.png"><link rel="stylesheet" href="https://example.com/a.css">'
    )
    browser.open(write_page(hostile))  # even markup that was not escaped
    assert browser.run("return document.title") == "a title"
    # the fixture sees such a page
    assert any("example.com" in line for line in browser.requests_elsewhere())

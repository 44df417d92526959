"""The pictures of the page in the documentation show the page as it is."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures import pictures
from benchmarks.figures.pictures import COMMAND, PICTURES, RECORD, hashes, outline


@pytest.mark.slow
def test_each_picture_shows_the_page_as_it_is() -> None:
    if not RECORD.exists():
        pytest.skip(f"the pictures were not taken yet: {COMMAND}")
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    now = hashes()
    old = [name for name in PICTURES if recorded.get(name) != now[name]]
    assert old == [], f"their pages have changed. Take them again: {COMMAND}"
    assert all((pictures.DOCS / name).is_file() for name in PICTURES)


@pytest.mark.slow
def test_the_hash_is_the_same_each_time() -> None:
    first = hashes()
    assert hashes() == first and len(set(first.values())) == len(PICTURES)


def test_an_outline_is_of_structure_and_text_and_not_of_time_and_machine() -> None:
    page = (
        '<main><h1 class="a">cat</h1><p>step 12 of 30</p><footer>24 GB</footer></main>'
    )
    seen = outline(page)
    for same in (page.replace("12", "13"), page.replace("24 GB", "no GPU")):
        assert outline(same) == seen
    for other in (
        page.replace("step", "steps"),
        page.replace('class="a"', 'class="b"'),
        page.replace("p>", "div>"),
    ):
        assert outline(other) != seen

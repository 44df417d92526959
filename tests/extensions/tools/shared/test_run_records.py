"""The caption of a run's image, as the page shows it: of whatever file training reads."""

from __future__ import annotations

from pathlib import Path

from extensions.tools.shared.run_records import _caption
from toolkit.data.scan.captions import FORMATS


def test_the_page_shows_the_caption_of_each_kind_of_file(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    assert _caption(image) == ""
    (tmp_path / "a.json").write_text('{"other": 1}')  # of another program
    assert _caption(image) == ""
    (tmp_path / "a.json").write_text('{"caption": ["of JSON", "and another"]}')
    assert _caption(image) == "of JSON\nand another"
    for suffix in reversed([suffix for suffix in FORMATS if suffix != ".json"]):
        (tmp_path / f"a.jpg{suffix}").write_text(f"behind {suffix}" + 2000 * "!")
        assert _caption(image)[:1000] == f"behind {suffix}".ljust(1000, "!")
        (tmp_path / f"a{suffix}").write_text(f" of {suffix}\n")
        assert _caption(image) == f"of {suffix}"

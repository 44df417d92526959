from pathlib import Path

import pytest

from toolkit.data.captionfile import CaptionError, find_caption, read_caption
from toolkit.data.listing import list_folder


def test_text_is_stripped_of_mark_whitespace_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  grüne\r\nKatze 🙂 \r\n\n".encode())
    assert read_caption(path) == "grüne\nKatze 🙂"


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("grün".encode("cp1252"), "byte 0xfc at offset 2"),
        (b"\xef\xbb\xbfgr\xfcn", "byte 0xfc at offset 5"),
        ("a cat".encode("utf-16"), "byte 0xff at offset 0"),
        ("a cat".encode("utf-16-le"), "zero byte at offset 1"),
    ],
)
def test_other_encodings_are_refused_with_their_place(tmp_path: Path, raw: bytes, place: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(CaptionError, match=place):
        read_caption(path)


def test_first_caption_that_is_not_empty(tmp_path: Path) -> None:
    for name, text in (("a.cap", " \n"), ("a.TXT", "second"), ("b.txt", "b"), ("c.v2.txt", "c")):
        (tmp_path / name).write_text(text)
    listing = list_folder(str(tmp_path))
    assert find_caption(listing, "a", (".cap", ".txt")) == "second"
    assert find_caption(listing, "b", (".cap", ".txt")) == "b"
    assert find_caption(listing, "c", (".v2.txt",)) == "c"
    assert find_caption(listing, "d", (".txt",)) == ""

"""What was joined comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import random

import pytest

from toolkit.data import column_file

NAMES = ["a.png", "ü [x] 🙂.jpg", "", "no text \udcff"]
DOCUMENT = column_file.dump_columns(
    {"format": 7, "facts": [[1, "ü"]]},
    {"names": column_file.of_texts(NAMES, "/"), "empty": b"", "raw": b"\n\0\xff" * 8},
)


def test_facts_and_columns_come_back() -> None:
    facts, found = column_file.load_columns(DOCUMENT)
    assert facts["format"] == 7 and facts["facts"] == [[1, "ü"]]
    assert column_file.texts(found["names"], "/") == NAMES
    assert found["empty"] == b"" and column_file.rows(found["raw"], 3) == [b"\n\0\xff"] * 8


@pytest.mark.parametrize("values", [[], [""], ["", ""], ["a"], ["a", ""]])
def test_no_text_and_an_empty_one_are_told_apart(values: list[str]) -> None:
    assert column_file.texts(column_file.of_texts(values, "\0"), "\0") == values


def test_equal_contents_and_they_alone_have_an_equal_digest() -> None:
    other = column_file.dump_columns({"format": 7}, {"names": b""})
    assert column_file.digest_of(other) == column_file.digest_of(
        column_file.dump_columns({"format": 7}, {"names": b""})
    )
    assert column_file.digest_of(other) != column_file.digest_of(DOCUMENT)


def test_any_changed_byte_is_noticed() -> None:
    draw = random.Random(3)
    for place in [0, 64, 65, len(DOCUMENT) - 1, *(draw.randrange(len(DOCUMENT)) for _ in range(50))]:
        changed = bytearray(DOCUMENT)
        changed[place] ^= 0x01
        with pytest.raises(column_file.DECODE_ERRORS):
            column_file.load_columns(bytes(changed))


def test_a_part_of_a_document_is_damaged() -> None:
    for length in range(len(DOCUMENT)):
        with pytest.raises(column_file.DECODE_ERRORS):
            column_file.load_columns(DOCUMENT[:length])


@pytest.mark.parametrize("contents", [b"", b"{}\n", b"[]\n", b"null\n", b'{"lengths": 3}\n', b"[" * 10_000 + b"\n"])
def test_other_contents_with_a_digest_that_fits_are_damaged(contents: bytes) -> None:
    with pytest.raises(column_file.DECODE_ERRORS):
        column_file.load_columns(hashlib.sha256(contents).hexdigest().encode() + b"\n" + contents)


def test_rows_that_do_not_come_out_even_are_damaged() -> None:
    with pytest.raises(column_file.DECODE_ERRORS):
        column_file.rows(b"12345", 3)

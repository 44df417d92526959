"""What was joined comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import random

import pytest

from toolkit.data import columns

NAMES = ["a.png", "ü [x] 🙂.jpg", "", "no text \udcff"]
DOCUMENT = columns.joined(
    {"format": 7, "facts": [[1, "ü"]]},
    {"names": columns.of_texts(NAMES, "/"), "empty": b"", "raw": b"\n\0\xff" * 8},
)


def test_facts_and_columns_come_back() -> None:
    facts, found = columns.parted(DOCUMENT)
    assert facts["format"] == 7 and facts["facts"] == [[1, "ü"]]
    assert columns.texts(found["names"], "/") == NAMES
    assert found["empty"] == b"" and columns.rows(found["raw"], 3) == [b"\n\0\xff"] * 8


@pytest.mark.parametrize("values", [[], [""], ["", ""], ["a"], ["a", ""]])
def test_no_text_and_an_empty_one_are_told_apart(values: list[str]) -> None:
    assert columns.texts(columns.of_texts(values, "\0"), "\0") == values


def test_equal_contents_and_they_alone_have_an_equal_digest() -> None:
    other = columns.joined({"format": 7}, {"names": b""})
    assert columns.digest_of(other) == columns.digest_of(columns.joined({"format": 7}, {"names": b""}))
    assert columns.digest_of(other) != columns.digest_of(DOCUMENT)


def test_any_changed_byte_is_noticed() -> None:
    draw = random.Random(3)
    for place in [0, 64, 65, len(DOCUMENT) - 1, *(draw.randrange(len(DOCUMENT)) for _ in range(50))]:
        changed = bytearray(DOCUMENT)
        changed[place] ^= 0x01
        with pytest.raises(columns.DAMAGED):
            columns.parted(bytes(changed))


def test_a_part_of_a_document_is_damaged() -> None:
    for length in range(len(DOCUMENT)):
        with pytest.raises(columns.DAMAGED):
            columns.parted(DOCUMENT[:length])


@pytest.mark.parametrize("contents", [b"", b"{}\n", b"[]\n", b"null\n", b'{"lengths": 3}\n', b"[" * 10_000 + b"\n"])
def test_other_contents_with_a_digest_that_fits_are_damaged(contents: bytes) -> None:
    with pytest.raises(columns.DAMAGED):
        columns.parted(hashlib.sha256(contents).hexdigest().encode() + b"\n" + contents)


def test_rows_that_do_not_come_out_even_are_damaged() -> None:
    with pytest.raises(columns.DAMAGED):
        columns.rows(b"12345", 3)

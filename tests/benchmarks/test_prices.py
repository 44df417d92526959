"""The price list in CONTRIBUTING.md: each row keeps to its line, and all to the sum."""

from __future__ import annotations

import pytest

from benchmarks.prices import (
    PAGE,
    arguments,
    lines,
    lowered,
    paid,
    sum_of,
    test_seconds,
    tokens,
    used,
    written,
)
from tests.conftest import ROOT

test_seconds.__test__ = False


def test_each_row_keeps_to_its_line_and_all_to_the_sum() -> None:
    """A file of no promise is a KeyError that names it."""
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    allowed = {row: most for row, (most, _) in lines(page).items()}
    counts = used(ROOT)
    assert counts.keys() == allowed.keys()
    over = {row: count for row, count in counts.items() if count > allowed[row]}
    assert not over, "python benchmarks/prices.py --raise PROMISE N --paid-by PROMISE"
    assert sum(allowed.values()) <= sum_of(page)


PLAIN = "def f(x):\n    return 2 * x\n"
EXPLAINED = '''"""A module."""
# twice
def f(x: int) -> "int":
    """Twice `x`."""
    return 2 * x
'''


def test_clarity_costs_nothing() -> None:
    """def f ( x ) : return 2 * x"""
    assert tokens(PLAIN) == tokens(EXPLAINED) == 10


EMPTY = "The sum is 99,999.\n<!-- prices -->\n<!-- end of the prices -->\nafter"


def test_what_is_written_only_lowers() -> None:
    page = written(EMPTY, lowered(EMPTY, {"a": 1000, "b": 10_000}), {"a": "12"})
    assert lines(page) == {"b": (10_100, ""), "a": (1010, "12")}
    assert sum_of(page) == 11_110 and page.endswith("\nafter")
    again = written(page, lowered(page, {"a": 900, "b": 20_000, "c": 5}))
    assert lines(again) == {"b": (10_100, ""), "a": (910, "12"), "c": (10, "")}
    assert sum_of(again) == 11_020
    assert sum_of(written(again, {"a": 910, "b": 10_100, "c": 500})) == 11_020


def test_a_row_is_raised_by_what_another_one_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = written(EMPTY, {"a": 1000, "b": 2000})
    counts = {"a": 1000, "b": 1700}
    assert paid(page, counts, "a", 300, "b") == {"a": 1300, "b": 1700}
    for row, more, payer, said in (
        ("a", 301, "b", "'b' has 300 tokens to give"),
        ("a", -5, "b", "'b' has 300 tokens to give"),
        ("c", 1, "b", "'c' is no row"),
    ):
        with pytest.raises(SystemExit, match=said):
            paid(page, counts, row, more, payer)
    with pytest.raises(SystemExit):
        arguments(["--raise", "a", "5"])
    assert "needs --paid-by PROMISE" in capsys.readouterr().err


def test_seconds_belong_to_what_a_test_mirrors() -> None:
    report = {
        "tests/toolkit/files/test_parquet.py": 1.5,
        "tests/faults/test_kills.py": 100.0,
    }
    assert test_seconds([report, report]) == {
        "Parquet tables": 3.0,
    }

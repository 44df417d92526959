"""The price list in CONTRIBUTING.md: each room of the program keeps to its line."""

from __future__ import annotations

from benchmarks.bench_walks import LIBRARY
from benchmarks.prices import PAGE, lines, table, test_seconds, tokens, used
from benchmarks.source_figures import sources
from tests.conftest import ROOT

test_seconds.__test__ = False


def test_each_promise_keeps_to_its_line() -> None:
    """A file of no promise is a KeyError that names it."""
    allowed = lines((ROOT / PAGE).read_text(encoding="utf-8"))
    counts = used(sources(ROOT, LIBRARY))
    assert counts.keys() == allowed.keys()
    over = {name: count for name, count in counts.items() if count > allowed[name][0]}
    assert not over, "say which promise pays, then: python benchmarks/prices.py --write"


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


def test_a_line_allows_three_percent_more_and_is_read_as_it_was_written() -> None:
    seconds = {"a": "12"}
    written = table({"a": 1000, "b": 10_000}, seconds)
    page = f"before\n<!-- prices -->\n{written}<!-- end of the prices -->\nafter"
    assert lines(page) == {"b": (10_300, ""), "a": (1030, "12")}


def test_seconds_belong_to_what_a_test_mirrors() -> None:
    report = {
        "tests/toolkit/files/test_parquet.py": 1.5,
        "tests/faults/test_kills.py": 100.0,
    }
    assert test_seconds([report, report]) == {
        "Parquet tables": 3.0,
    }

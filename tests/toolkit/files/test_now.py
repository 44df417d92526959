"""The line that says what a run does."""

from __future__ import annotations

import pytest

from tests.docs.pages import blocks
from toolkit.files import now
from toolkit.files.now import Now, of_bytes


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            Now("downloading", 12, 58, "GB", phase_left_s=2400),
            "downloading 12 of 58 GB, 40 min left",
        ),
        (Now("downloading", 0.5, 3.46, "GB"), "downloading 0.5 of 3.5 GB"),
        (Now("downloading", 120, unit="MB"), "downloading 120 MB"),
        (Now("reading"), "reading"),
        (Now("reading", left_s=2100), "reading, 35 min left for everything"),
        (
            Now("quantizing", 31, 60, "block", phase_left_s=29, left_s=7200),
            "quantizing block 31 of 60, 29 s left; 2 h for everything",
        ),
        (Now("encoding", 12, 29, "images"), "encoding 12 of 29 images"),
        (Now("compiling", left_s=3599), "compiling, 60 min left for everything"),
        (
            Now("step", 120, 2000, phase_left_s=900, left_s=1860),
            "step 120 of 2,000, 31 min left",
        ),
        (Now("step", 120), "step 120"),
        (
            Now("sampling", 2, 3, left_s=59.4),
            "sampling 2 of 3, 59 s left for everything",
        ),
        (Now("saving", left_s=-1), "saving, 0 s left for everything"),
    ],
)
def test_one_function_writes_the_line(record: Now, line: str) -> None:
    assert record.line() == line


@pytest.mark.parametrize(
    ("done", "of", "words"),
    [
        (12.3e9, 57.7e9, "downloading 12 of 58 GB"),
        (0, 57.7e9, "downloading 0 of 58 GB"),
        (5e7, 3e8, "downloading 50 of 300 MB"),
        (5e6, 9e7, "downloading 5 of 90 MB"),
        (700, 7000, "downloading 0.7 of 7 kB"),
        (2e9, None, "downloading 2 GB"),
    ],
)
def test_bytes_have_the_unit_that_suits_their_total(
    done: float, of: float | None, words: str
) -> None:
    assert Now("downloading", *of_bytes(done, of)).text() == words


class Heard:
    """A listener that keeps all."""

    def __init__(self) -> None:
        self.all: list[now.Told] = []
        self.counted: list[tuple[str, float]] = []

    def tell(self, *told) -> None:
        self.all.append(told)

    def count(self, phase: str, units: float) -> None:
        self.counted.append((phase, units))

    @property
    def told(self) -> now.Told:
        return self.all[-1] if self.all else now.NOTHING


def test_a_phase_ends_in_the_one_before_it() -> None:
    heard = Heard()
    with now.told_to(heard):
        with now.during("saving"):  # nothing was told before: nothing is told again
            pass
        now.tell("step", 3, 10)
        with now.during("sampling", 1, 2):
            now.tell("sampling", 2, 2)
        with pytest.raises(ValueError), now.during("validating"):
            raise ValueError
    step, sampling = ("step", 3, 10, ""), ("sampling", 1, 2, "")
    validating = ("validating", None, None, "")
    assert heard.all == [
        ("saving", None, None, ""),
        step,
        sampling,
        ("sampling", 2, 2, ""),
        step,
        validating,
        step,
    ]
    assert heard.counted == [("saving", 1), ("sampling", 2)], (
        "what fails is not counted"
    )


def test_where_nobody_listens_nothing_happens() -> None:
    assert not now.is_heard()
    with now.during("saving"):
        now.tell("step", 1)
    assert now.enter("compiling") == now.NOTHING


def test_the_lines_of_the_page_are_those_of_the_program() -> None:
    """docs/while_it_trains.md, "What happens now"."""
    records = [
        Now("downloading", 12.2, 57.7, "GB", phase_left_s=2400, left_s=7200),
        Now("reading", left_s=4800),
        Now("encoding", 12, 29, "images", phase_left_s=40, left_s=4740),
        Now("quantizing", 31, 60, "block", phase_left_s=20, left_s=4680),
        Now("compiling", left_s=4620),
        Now("step", 120, 2000, phase_left_s=4000, left_s=4500),
        Now("sampling", 2, 3, phase_left_s=30, left_s=4440),
        Now("saving", left_s=4380),
    ]
    [printed] = [block.text for block in blocks("docs/while_it_trains.md", "text")]
    assert printed.splitlines() == [record.line() for record in records]

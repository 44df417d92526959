"""Which micro-batches make up each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from toolkit.contracts import BatchSpec, MicroBatch
from toolkit.data.order import EpochSource, epoch_cursor
from toolkit.train.windows import Window, dealt, parts
from toolkit.train.windows import windows as windows_of


def five_batches(epoch: int) -> list[BatchSpec]:
    """Four full batches and a short one; an item's number says its epoch and place."""
    rows = [(0, 1), (2, 3), (4, 5), (6, 7), (8,)]
    return [BatchSpec(epoch, tuple(100 * epoch + item for item in row), row) for row in rows]


def windows(batches, epoch: int, batch: int, accumulation: int) -> Iterator[Window]:
    """Of an epoch list, from a cursor on."""
    return windows_of(EpochSource(batches, load=iter).iterate(epoch_cursor(epoch, batch)), accumulation)


def test_a_window_runs_on_across_the_end_of_an_epoch() -> None:
    first, second, third = islice(windows(five_batches, 0, 0, accumulation=3), 3)
    assert [spec.items for spec in first.specs] == [(0, 1), (2, 3), (4, 5)]
    assert [spec.items for spec in second.specs] == [(6, 7), (8,), (100, 101)]
    assert [spec.items for spec in third.specs] == [(102, 103), (104, 105), (106, 107)]
    assert [w.cursor for w in (first, second, third)] == [epoch_cursor(*at) for at in ((0, 3), (1, 1), (1, 4))]
    assert [w.epochs_ended for w in (first, second, third)] == [0, 1, 0]


def test_a_window_may_hold_several_epochs() -> None:
    window = next(windows(five_batches, 0, 4, accumulation=7))
    assert [spec.epoch for spec in window.specs] == [0, 1, 1, 1, 1, 1, 2]
    assert (window.cursor, window.epochs_ended) == (epoch_cursor(2, 1), 2)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5, 7])
def test_going_on_from_any_cursor_gives_the_same_windows(accumulation: int) -> None:
    whole = list(islice(windows(five_batches, 0, 0, accumulation), 12))
    for done, window in enumerate(whole, start=1):
        rest = list(islice(windows(five_batches, *window.cursor.values(), accumulation), 12 - done))
        assert rest == whole[done:]


def test_samples_counts_items_not_batches() -> None:
    counts = [window.samples for window in islice(windows(five_batches, 0, 0, accumulation=2), 5)]
    assert counts == [4, 4, 3, 4, 3]  # 2+2, 2+2, 1+2, 2+2, 2+1: each epoch's short batch counts once


def test_the_processes_share_out_the_micro_batches_of_a_window() -> None:
    window = next(windows(five_batches, 0, 0, accumulation=5))
    assert [spec.items for spec in dealt(window.specs, 0, 2)] == [(0, 1), (4, 5), (8,)]
    assert [spec.items for spec in dealt(window.specs, 1, 2)] == [(2, 3), (6, 7)]
    assert dealt(window.specs, 0, 1) == window.specs


def test_a_window_of_few_micro_batches_is_shared_out_in_parts() -> None:
    (spec,) = next(windows(lambda epoch: [BatchSpec(epoch, (7, 8, 9), (4, 5, 6))], 0, 0, accumulation=1)).specs
    assert dealt([spec], 0, 2) == (BatchSpec(0, (7,), (4,)),)
    assert dealt([spec], 1, 2) == (BatchSpec(0, (8, 9), (5, 6)),)
    assert dealt([spec], 3, 4) == (), "more processes than samples"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
def test_every_sample_of_a_window_goes_to_exactly_one_process(size: int, accumulation: int) -> None:
    for window in islice(windows(five_batches, 0, 0, accumulation), 6):
        uses = [(s.epoch, p) for rank in range(size) for s in dealt(window.specs, rank, size) for p in s.positions]
        assert sorted(uses) == sorted(window.uses)


def test_parts_are_almost_equal_and_in_order() -> None:
    spec = BatchSpec(3, tuple(range(10, 17)), tuple(range(7)))
    assert [part.items for part in parts(spec, 3)] == [(10, 11), (12, 13), (14, 15, 16)]
    assert len(parts(spec, 20)) == 7


def test_where_the_source_ends_the_last_window_is_short() -> None:
    planned = [MicroBatch(spec, index) for index, spec in enumerate(five_batches(0))]
    assert [(len(window.specs), window.cursor) for window in windows_of(planned, 2)] == [(2, 1), (2, 3), (1, 4)]

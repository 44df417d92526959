"""Which micro-batches make up each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from toolkit.contracts.data import BatchSpec, MicroBatch
from toolkit.data.batches.epoch_order import EpochSource, epoch_cursor
from toolkit.train.accumulation import AccumulationStep, shard_micro_batches, split_spec
from toolkit.train.accumulation import accumulation_steps as windows_of


def five_batches(epoch: int) -> list[BatchSpec]:
    """Four full batches and a short one; an item's number says its epoch and place."""
    rows = [(0, 1), (2, 3), (4, 5), (6, 7), (8,)]
    return [
        BatchSpec(epoch, tuple(100 * epoch + item for item in row), row) for row in rows
    ]


def accumulation_steps(
    batches, epoch: int, batch: int, grad_accum_steps: int
) -> Iterator[AccumulationStep]:
    """Of an epoch list, from a cursor on."""
    return windows_of(
        EpochSource(batches, load=iter).iterate(epoch_cursor(epoch, batch)),
        grad_accum_steps,
    )


def test_a_window_runs_on_across_the_end_of_an_epoch() -> None:
    first, second, third = islice(
        accumulation_steps(five_batches, 0, 0, grad_accum_steps=3), 3
    )
    assert [spec.items for spec in first.specs] == [(0, 1), (2, 3), (4, 5)]
    assert [spec.items for spec in second.specs] == [(6, 7), (8,), (100, 101)]
    assert [spec.items for spec in third.specs] == [(102, 103), (104, 105), (106, 107)]
    assert [w.cursor for w in (first, second, third)] == [
        epoch_cursor(*at) for at in ((0, 3), (1, 1), (1, 4))
    ]
    assert [w.epochs_ended for w in (first, second, third)] == [0, 1, 0]


def test_a_window_may_hold_several_epochs() -> None:
    accumulation_step = next(accumulation_steps(five_batches, 0, 4, grad_accum_steps=7))
    assert [spec.epoch for spec in accumulation_step.specs] == [0, 1, 1, 1, 1, 1, 2]
    assert (accumulation_step.cursor, accumulation_step.epochs_ended) == (
        epoch_cursor(2, 1),
        2,
    )


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5, 7])
def test_going_on_from_any_cursor_gives_the_same_windows(accumulation: int) -> None:
    whole = list(islice(accumulation_steps(five_batches, 0, 0, accumulation), 12))
    for done, accumulation_step in enumerate(whole, start=1):
        rest = list(
            islice(
                accumulation_steps(
                    five_batches, *accumulation_step.cursor.values(), accumulation
                ),
                12 - done,
            )
        )
        assert rest == whole[done:]


def test_samples_counts_items_not_batches() -> None:
    counts = [
        accumulation_step.samples
        for accumulation_step in islice(
            accumulation_steps(five_batches, 0, 0, grad_accum_steps=2), 5
        )
    ]
    # 2+2, 2+2, 1+2, 2+2, 2+1: each epoch's short batch counts once
    assert counts == [
        4,
        4,
        3,
        4,
        3,
    ]


def test_the_processes_share_out_the_micro_batches_of_a_window() -> None:
    accumulation_step = next(accumulation_steps(five_batches, 0, 0, grad_accum_steps=5))
    assert [
        spec.items for spec in shard_micro_batches(accumulation_step.specs, 0, 2)
    ] == [(0, 1), (4, 5), (8,)]
    assert [
        spec.items for spec in shard_micro_batches(accumulation_step.specs, 1, 2)
    ] == [(2, 3), (6, 7)]
    assert shard_micro_batches(accumulation_step.specs, 0, 1) == accumulation_step.specs


def test_a_window_of_few_micro_batches_is_shared_out_in_parts() -> None:
    (spec,) = next(
        accumulation_steps(
            lambda epoch: [BatchSpec(epoch, (7, 8, 9), (4, 5, 6))],
            0,
            0,
            grad_accum_steps=1,
        )
    ).specs
    assert shard_micro_batches([spec], 0, 2) == (BatchSpec(0, (7,), (4,)),)
    assert shard_micro_batches([spec], 1, 2) == (BatchSpec(0, (8, 9), (5, 6)),)
    assert shard_micro_batches([spec], 3, 4) == (), "more processes than samples"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
def test_every_sample_of_a_window_goes_to_exactly_one_process(
    size: int, accumulation: int
) -> None:
    for accumulation_step in islice(
        accumulation_steps(five_batches, 0, 0, accumulation), 6
    ):
        uses = [
            (s.epoch, p)
            for rank in range(size)
            for s in shard_micro_batches(accumulation_step.specs, rank, size)
            for p in s.positions
        ]
        assert sorted(uses) == sorted(accumulation_step.sample_keys)


def test_parts_are_almost_equal_and_in_order() -> None:
    spec = BatchSpec(3, tuple(range(10, 17)), tuple(range(7)))
    assert [part.items for part in split_spec(spec, 3)] == [
        (10, 11),
        (12, 13),
        (14, 15, 16),
    ]
    assert len(split_spec(spec, 20)) == 7


def test_where_the_source_ends_the_last_window_is_short() -> None:
    planned = [MicroBatch(spec, index) for index, spec in enumerate(five_batches(0))]
    assert [
        (len(accumulation_step.specs), accumulation_step.cursor)
        for accumulation_step in windows_of(planned, 2)
    ] == [(2, 1), (2, 3), (1, 4)]

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest

from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.data.batches.epoch_order import count_batches, epoch_batches, epoch_order
from toolkit.data.scan.captions import caption_for_use


def make_item(index: int, repeats: int, side: int) -> BucketedSample:
    sample = Sample(f"{index}.png", "a, b, c, d", repeats, Size(side, side), "data")
    return BucketedSample(sample, ResizeCrop(Size(side, side), 0, 0, Size(side, side)))


# 3 images x 5 and 2 images x 2 in one bucket (19 uses), 1 image x 4 in another
ITEMS = [
    *(make_item(i, 5, 64) for i in range(3)),
    *(make_item(i, 2, 64) for i in (3, 4)),
    make_item(5, 4, 96),
]


def test_each_item_comes_exactly_as_often_as_its_repeats() -> None:
    assert Counter(epoch_order(ITEMS, 1, 0)) == {0: 5, 1: 5, 2: 5, 3: 2, 4: 2, 5: 4}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [epoch_order(ITEMS, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert orders[0] == epoch_order(ITEMS, 1, 0)
    # written down once: no version of any library may change the order of a run that is
    # resumed
    assert epoch_order(ITEMS, 1, 0)[:8] == [4, 2, 0, 2, 2, 2, 5, 3]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
def test_batches_use_every_position_once_within_one_bucket(batch_size: int) -> None:
    order = epoch_order(ITEMS, 1, 3)
    batches = epoch_batches(ITEMS, batch_size, 1, 3)
    assert sorted(chain.from_iterable(b.positions for b in batches)) == list(range(23))
    assert all(
        tuple(order[p] for p in b.positions) == b.items and b.epoch == 3
        for b in batches
    )
    assert all(len({ITEMS[i].crop.bucket for i in b.items}) == 1 for b in batches)
    assert (
        len(batches)
        == count_batches(ITEMS, batch_size)
        == -(-19 // batch_size) + -(-4 // batch_size)
    )
    short = [len(b.items) < batch_size for b in batches]
    # short ones only at the end, one per bucket
    assert short == sorted(short) and sum(short) <= 2


def test_batches_of_one_follow_the_order() -> None:
    batches = epoch_batches(ITEMS, 1, 1, 0)
    assert [b.positions for b in batches] == [(position,) for position in range(23)]


def test_draws_do_not_depend_on_the_batch_size() -> None:
    rules = replace(ITEMS[0].sample.rules, dropout_rate=0.3, shuffle_tokens=True)

    def captions(batch_size: int) -> dict[int, tuple[int, str]]:
        return {
            position: (
                index,
                caption_for_use(ITEMS[index].sample.caption, rules, 1, 0, position),
            )
            for batch in epoch_batches(ITEMS, batch_size, 1, 0)
            for index, position in zip(batch.items, batch.positions, strict=True)
        }

    assert captions(1) == captions(3) == captions(8)


def test_batches_grouped_by_length_use_the_same_images_with_the_same_draws() -> None:
    captions = ["red", "a red cat", "a, b, c, d", "a red cat, sitting on a mat"]
    items = [
        replace_caption(make_item(i, 1, 64 if i % 5 else 96), captions[i * 7 % 4])
        for i in range(1000)
    ]
    plain = epoch_batches(items, 8, 1, 0)
    grouped = epoch_batches(items, 8, 1, 0, group_by_length=True)
    uses = [
        sorted(chain.from_iterable(zip(b.items, b.positions, strict=True) for b in of))
        for of in (plain, grouped)
    ]
    assert uses[0] == uses[1] and len(grouped) == len(plain) == count_batches(items, 8)
    assert all(len({items[i].crop.bucket for i in b.items}) == 1 for b in grouped)
    lengths = [
        len({items[i].sample.caption for i in b.items}) for b in (*plain, *grouped)
    ]
    assert sum(lengths[: len(plain)]) > 3 * len(plain) and sum(
        lengths[len(plain) :]
    ) < 1.2 * len(plain)
    first = [items[b.items[0]].sample.caption for b in grouped[:20]]
    assert len(set(first)) == 4  # short captions do not all come first
    assert (
        grouped
        == epoch_batches(items, 8, 1, 0, group_by_length=True)
        != epoch_batches(items, 8, 1, 1, True)
    )
    short = [len(b.items) < 8 for b in grouped]
    assert short == sorted(short)


def test_batches_grouped_by_length_are_of_all_buckets_throughout_the_epoch() -> None:
    items = [make_item(i, 1, 64 if i % 5 else 96) for i in range(2000)]
    batches = epoch_batches(items, 4, 1, 0, group_by_length=True)
    quarters = [batches[first : first + 125] for first in range(0, 500, 125)]
    shares = [
        sum(items[b.items[0]].crop.bucket.width == 96 for b in quarter) / 125
        for quarter in quarters
    ]
    assert shares == pytest.approx([0.2] * 4, abs=0.08)


def replace_caption(item: BucketedSample, caption: str) -> BucketedSample:
    return item._replace(sample=item.sample._replace(caption=caption))

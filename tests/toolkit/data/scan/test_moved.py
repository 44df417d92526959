"""When a job has the images of its run under other names, and in which order the run
used them."""

from __future__ import annotations

import pytest

from toolkit.data.scan.moved import RunOrder, run_order


def entries(**resolutions: int) -> list[dict]:
    """`datasets` of a job: folder (_ for /) -> its resolution."""
    return [
        {"folder_path": name.replace("_", "/"), "resolution": resolution}
        for name, resolution in resolutions.items()
    ]


ONE, TWO = entries(old=64), entries(old_x=64, old_y=96)
TWICE = [{"folder_path": "old", "resolution": side} for side in (64, 96)]
MOVED_TWICE = [{"folder_path": "new/", "resolution": side} for side in (64, 96)]
EXCHANGED = entries(new_y=96, new_x=64)
RECORDED = {"old/x/a.png": "A", "old/x/b.png": "B", "old/y/k.png": "K"}
EQUAL = {"old/x/a.png": "A", "old/x/b.png": "B", "old/y/k.png": "A"}
PLAIN, MOVED = (
    {"old/a.png": "A", "old/b.png": "B"},
    {"new/a.png": "A", "new/b.png": "B"},
)
# The second entry has the images of the first one, and others before them.
NESTED, OF_NESTED = entries(old_y=64, old=64), {"old/y/k.png": "KK", "old/x/a.png": "A"}
NEW_NESTED = entries(new_y=64, new=64)
ELSEWHERE = {"snapshot/a.png": "A", "snapshot/b.png": "B", "snapshot/k.png": "K"}

ORDERS = {
    # what: (recorded, found, entries before, entries now, the order of the run)
    "the run keeps the order it began with": (
        RECORDED, {"new/1.png": "K", "new/2.png": "B", "new/3.png": "A"}, ONE, entries(new=64),
        RunOrder(("new/3.png", "new/2.png", "new/1.png"), (0,), is_as_found=False),
    ),
    "equal images of two entries are not confused": (
        EQUAL, {"new/y/k.png": "A", "new/x/1.png": "B", "new/x/2.png": "A"}, TWO, EXCHANGED,
        RunOrder(("new/x/2.png", "new/x/1.png", "new/y/k.png"), (1, 0), is_as_found=False),
    ),
    "entries are known by their images": (
        RECORDED, {"new/y/k.png": "K", "new/x/a.png": "A", "new/x/b.png": "B"}, TWO, EXCHANGED,
        RunOrder(("new/x/a.png", "new/x/b.png", "new/y/k.png"), (1, 0), is_as_found=False),
    ),
    "a folder that two entries use moves with both": (
        PLAIN, MOVED, TWICE, MOVED_TWICE, RunOrder(("new/a.png", "new/b.png"), (0, 1), is_as_found=True),
    ),
    "and in another order": (
        PLAIN, MOVED, TWICE, MOVED_TWICE[::-1], RunOrder(("new/a.png", "new/b.png"), (1, 0), is_as_found=False),
    ),
    "an image that changed": (RECORDED, RECORDED | {"old/x/b.png": "changed"}, ONE, ONE, None),
    "one less": (RECORDED, {"old/x/a.png": "A", "old/x/b.png": "B"}, ONE, ONE, None),
    "one more": (RECORDED, RECORDED | {"old/y/l.png": "K"}, ONE, ONE, None),
    "an image that moved to another entry": (
        RECORDED, {"old/x/a.png": "A", "old/y/b.png": "B", "old/y/k.png": "K"}, TWO, TWO, None,
    ),
    "an order that the record does not tell is not guessed": (
        OF_NESTED, {"new/y/0.png": "A", "new/y/k.png": "KK"}, NESTED, NEW_NESTED, None,
    ),
    "nor is another": (OF_NESTED, {"new/x/a.png": "A", "new/y/k.png": "KK"}, NESTED, NEW_NESTED, None),
    "names outside the folders of the entries": (RECORDED, ELSEWHERE, TWO, TWO, None),
}  # fmt: skip


@pytest.mark.parametrize("what", ORDERS)
def test_the_order_of_the_run_is_found_or_it_is_another_dataset(what: str) -> None:
    recorded, found, before, given, order = ORDERS[what]
    assert run_order(recorded, found, before, given) == order


def test_entries_keep_their_settings() -> None:
    found = {"new/y/k.png": "K", "new/x/a.png": "A", "new/x/b.png": "B"}
    for given, is_kept in ((EXCHANGED, True), (entries(new_y=64, new_x=96), False)):
        order = run_order(RECORDED, found, TWO, given)
        assert order is not None and (order.settings(TWO, given) == given) is is_kept, (
            "each folder at the other's resolution"
        )


def test_an_order_that_is_found_elsewhere_or_nested_is_one() -> None:
    assert run_order(RECORDED, ELSEWHERE, ONE, ONE) is not None
    nested = {"new/y/k.png": "KK", "new/x/a.png": "A"}
    assert run_order(OF_NESTED, nested, NESTED, NEW_NESTED) is not None

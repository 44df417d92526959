"""When a job has the images of its run under other names, and in which order the run
used them."""

from __future__ import annotations

import pytest

from toolkit.data.scan.moved import RunOrder, run_order

ONE = [{"folder_path": "old", "resolution": 64}]
TWO = [
    {"folder_path": "old/x", "resolution": 64},
    {"folder_path": "old/y", "resolution": 96},
]
RECORDED = {"old/x/a.png": "A", "old/x/b.png": "B", "old/y/k.png": "K"}


def test_the_run_keeps_the_order_it_began_with() -> None:
    found = {"new/1.png": "K", "new/2.png": "B", "new/3.png": "A"}
    order = run_order(RECORDED, found, ONE, [{"folder_path": "new", "resolution": 64}])
    assert order == RunOrder(
        ("new/3.png", "new/2.png", "new/1.png"), (0,), is_as_found=False
    )


def test_equal_images_of_two_entries_are_not_confused() -> None:
    recorded = {"old/x/a.png": "A", "old/x/b.png": "B", "old/y/k.png": "A"}
    found = {"new/y/k.png": "A", "new/x/1.png": "B", "new/x/2.png": "A"}
    given = [
        {"folder_path": "new/y", "resolution": 96},
        {"folder_path": "new/x", "resolution": 64},
    ]
    order = run_order(recorded, found, TWO, given)
    assert order == RunOrder(
        ("new/x/2.png", "new/x/1.png", "new/y/k.png"), (1, 0), is_as_found=False
    )


@pytest.mark.parametrize(
    "found",
    [
        {"old/x/a.png": "A", "old/x/b.png": "changed", "old/y/k.png": "K"},
        {"old/x/a.png": "A", "old/x/b.png": "B"},
        RECORDED | {"old/y/l.png": "K"},
    ],
)
def test_other_images_are_another_dataset(found: dict[str, str]) -> None:
    assert run_order(RECORDED, found, ONE, ONE) is None


def test_entries_are_known_by_their_images_and_keep_their_settings() -> None:
    given = [
        {"folder_path": "new/y", "resolution": 96},
        {"folder_path": "new/x", "resolution": 64},
    ]
    found = {"new/y/k.png": "K", "new/x/a.png": "A", "new/x/b.png": "B"}
    order = run_order(RECORDED, found, TWO, given)
    assert order is not None and order.entries == (1, 0) and not order.is_as_found
    assert order.names == ("new/x/a.png", "new/x/b.png", "new/y/k.png")
    assert order.settings(TWO, given) == given
    exchanged = [
        {"folder_path": "new/y", "resolution": 64},
        {"folder_path": "new/x", "resolution": 96},
    ]
    order = run_order(RECORDED, found, TWO, exchanged)
    assert order is not None and order.settings(TWO, exchanged) != exchanged, (
        "each folder at the other's resolution"
    )


def test_an_image_that_moved_to_another_entry_is_another_dataset() -> None:
    found = {"old/x/a.png": "A", "old/y/b.png": "B", "old/y/k.png": "K"}
    assert run_order(RECORDED, found, TWO, TWO) is None


def test_a_folder_that_two_entries_use_moves_with_both() -> None:
    before = [
        {"folder_path": "old", "resolution": 64},
        {"folder_path": "old", "resolution": 96},
    ]
    given = [
        {"folder_path": "new/", "resolution": 64},
        {"folder_path": "new/", "resolution": 96},
    ]
    recorded, found = (
        {"old/a.png": "A", "old/b.png": "B"},
        {"new/a.png": "A", "new/b.png": "B"},
    )
    assert run_order(recorded, found, before, given) == RunOrder(
        ("new/a.png", "new/b.png"), (0, 1), is_as_found=True
    )
    order = run_order(recorded, found, before, given[::-1])
    assert order is not None and order.entries == (1, 0)


def test_an_order_that_the_record_does_not_tell_is_not_guessed() -> None:
    """The second entry has the images of the first one, and others before them."""
    before = [{"folder_path": "old/y"}, {"folder_path": "old"}]
    given = [{"folder_path": "new/y"}, {"folder_path": "new"}]
    recorded = {"old/y/k.png": "KK", "old/x/a.png": "A"}
    assert (
        run_order(recorded, {"new/y/k.png": "KK", "new/x/a.png": "A"}, before, given)
        is not None
    )
    assert (
        run_order(recorded, {"new/y/0.png": "A", "new/y/k.png": "KK"}, before, given)
        is None
    )
    assert (
        run_order(recorded, {"new/x/a.png": "A", "new/y/k.png": "KK"}, before, given)
        is None
    )


def test_names_outside_the_folders_of_the_entries_are_not_attributed() -> None:
    elsewhere = {"snapshot/a.png": "A", "snapshot/b.png": "B", "snapshot/k.png": "K"}
    assert run_order(RECORDED, elsewhere, TWO, TWO) is None
    assert run_order(RECORDED, elsewhere, ONE, ONE) is not None

"""What a dataset holds in one digest per image: every edit shows, and nothing else
does."""

from __future__ import annotations

import hashlib
import os
from itertools import combinations
from pathlib import Path

import pytest

from tests.toolkit.data.pixels.test_colours import gama
from toolkit.data.scan import fingerprint as module
from toolkit.data.scan.fingerprint import (
    DatasetChange,
    compare,
    digest_of,
    file_digest,
    fingerprint,
    image_digest,
)
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import RunError


@pytest.fixture
def taken(tmp_path: Path, image, dataset):
    """The fingerprint of a folder of three images, two of them with a reference; made
    when called."""
    data, references = tmp_path / "2_data", tmp_path / "references"
    for name, colour in [("a", "red"), ("b", "green"), ("c", "blue")]:
        image(data / f"{name}.png", colour=colour)
        (data / f"{name}.txt").write_text(f"photo {name}", encoding="utf-8")
    for name in "ab":
        image(references / f"{name}.png", colour="gray")
    controls = {"control_path": (str(references),), "control_optional": True}
    return lambda **changes: fingerprint(
        scan_datasets([dataset(data, **controls, **changes)], None).samples
    )


def key(tmp_path: Path, name: str) -> str:
    return f"{tmp_path}/2_data/{name}.png"


def test_the_same_files_give_the_same_digest_whatever_their_times(
    taken, tmp_path: Path
) -> None:
    before = taken()
    assert list(before) == [key(tmp_path, name) for name in "abc"]
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    assert taken() == before
    assert digest_of(taken()) == digest_of(before)
    assert compare(before, taken()) == DatasetChange((), (), ())


def test_what_is_added_removed_and_edited_is_told_apart(
    taken, tmp_path: Path, image
) -> None:
    before = taken()
    image(tmp_path / "2_data" / "d.png", colour="yellow")
    (tmp_path / "2_data" / "a.png").unlink()
    image(tmp_path / "2_data" / "b.png", colour="black")  # same size, other pixels
    change = compare(before, taken())
    assert change == DatasetChange(
        (key(tmp_path, "d"),), (key(tmp_path, "a"),), (key(tmp_path, "b"),)
    )
    words = str(change)
    assert (
        "1 added" in words
        and "1 removed" in words
        and "1 edited" in words
        and key(tmp_path, "b") in words
    )
    assert digest_of(taken()) != digest_of(before)


@pytest.mark.parametrize("name", ["2_data/a", "references/b"])
def test_an_image_that_was_read_in_other_colours_is_told_apart(
    taken, tmp_path: Path, name: str, monkeypatch
) -> None:
    path = tmp_path / f"{name}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + gama(1.0) + whole[33:])
    # as the earlier version had it
    monkeypatch.setattr(module, "digest_as_read", lambda digest, reading: digest)
    before = taken()
    monkeypatch.undo()
    change = compare(before, taken())
    assert change == DatasetChange((), (), (), (key(tmp_path, name[-1]),))
    assert "1 whose colours an earlier version of the program read wrongly" in str(
        change
    )
    path.write_bytes(whole[:33] + gama(0.8) + whole[33:])
    assert compare(before, taken()).edited == (key(tmp_path, name[-1]),)


def test_the_identity_of_an_image_is_that_of_its_file_unless_it_is_read_otherwise(
    tmp_path: Path, image
) -> None:
    path = tmp_path / "a.png"
    image(path)
    assert (
        image_digest(path)
        == file_digest(path)
        == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + gama(1.0) + whole[33:])
    p3 = image_digest(path)
    path.write_bytes(whole[:33] + gama(0.9) + whole[33:])
    assert len({p3, image_digest(path), file_digest(path)}) == 3


def test_each_file_of_an_image_is_part_of_it(taken, tmp_path: Path, image) -> None:
    for name in "abc":
        image(tmp_path / "masks" / f"{name}.png", colour="white")
    before = taken(mask_path=str(tmp_path / "masks"))
    edited = ""
    for name, edit in (
        ("c", lambda: (tmp_path / "2_data" / "c.txt").write_text("another photo")),
        ("a", lambda: image(tmp_path / "references" / "a.png", colour="white")),
        ("b", lambda: image(tmp_path / "masks" / "b.png", colour="black")),
    ):
        edit()
        edited = "".join(sorted(edited + name))
        change = compare(before, taken(mask_path=str(tmp_path / "masks")))
        assert change.edited == tuple(key(tmp_path, each) for each in edited)
    (tmp_path / "references" / "b.png").unlink()
    assert len(compare(before, taken(mask_path=str(tmp_path / "masks"))).edited) == 3


def test_the_settings_of_a_dataset_are_part_of_every_image(
    taken, tmp_path: Path
) -> None:
    (tmp_path / "masks").symlink_to(tmp_path / "2_data")
    uses = [
        {},
        {"num_repeats": 5},
        {"background": "black"},
        {"mask_path": str(tmp_path / "masks")},
        {"flip_x": True},
    ]
    for one, other in combinations(uses, 2):
        assert len(compare(taken(**one), taken(**other)).edited) == 3, (one, other)


def test_two_entries_over_one_folder_are_both_seen(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "a.png")
    for suffix in ("txt", "caption"):
        (tmp_path / "data" / f"a.{suffix}").write_text("old")
    both = [
        dataset(tmp_path / "data", caption_ext=(f".{suffix}",))
        for suffix in ("txt", "caption")
    ]

    def take():
        return fingerprint(scan_datasets(both, None).samples)

    for suffix in ("txt", "caption"):
        before = take()
        (tmp_path / "data" / f"a.{suffix}").write_text("new")
        assert len(compare(before, take()).edited) == 1, suffix


def test_a_long_list_stays_short() -> None:
    words = str(compare({}, {f"folder/{number}.png": "x" for number in range(1000)}))
    assert (
        words.startswith("1000 added (folder/0.png")
        and words.endswith("...)")
        and len(words) < 100
    )


def test_an_image_that_vanished_after_the_scan_is_named(
    taken, tmp_path: Path, dataset
) -> None:
    scan = scan_datasets([dataset(tmp_path / "2_data")], None)
    (tmp_path / "2_data" / "b.png").unlink()
    with pytest.raises(RunError, match=r"b\.png: cannot be read"):
        fingerprint(scan.samples)


def test_file_digest_follows_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two!")
    assert file_digest(path) == hashlib.sha256(b"two!").hexdigest()
    path.write_bytes(b"six!")  # same size; only the time of change tells
    os.utime(path, ns=(1, 1))
    assert file_digest(path) == hashlib.sha256(b"six!").hexdigest()

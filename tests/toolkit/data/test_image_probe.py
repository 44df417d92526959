"""Each wanted image is looked at once, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from toolkit.data import image_probe
from toolkit.data.directory import ImageFile, list_folder
from toolkit.data.image_probe import notes_of, probe_images
from toolkit.data.types import Size


@pytest.mark.parametrize("read_whole", [0, 100])
def test_facts_of_what_is_wanted_and_reasons_for_what_cannot_be_used(
    tmp_path: Path, image, monkeypatch, read_whole: int
) -> None:
    monkeypatch.setattr(image_probe, "READ_WHOLE", read_whole)
    image(tmp_path / "a.png", 20, 30), image(tmp_path / "b.jpg", 40, 30), image(tmp_path / "unwanted.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    listing = list_folder(str(tmp_path))
    reasons = probe_images({listing: dict.fromkeys(["a.png", "b.jpg", "bad.png", "gone.png"])})
    assert {name: facts.size for name, facts in listing.facts.items()} == {"a.png": Size(20, 30), "b.jpg": Size(40, 30)}
    assert {facts.verified for facts in listing.facts.values()} == {read_whole > 0}
    assert list(reasons) == [ImageFile(listing, "bad.png"), ImageFile(listing, "gone.png")]
    assert "not a JPEG" in reasons[ImageFile(listing, "bad.png")] and "exist" in reasons[ImageFile(listing, "gone.png")]


def test_few_pictures_that_were_only_glanced_at_are_read_and_checked_ones_are_not(
    tmp_path: Path, image, monkeypatch
) -> None:
    image(tmp_path / "a.png"), image(tmp_path / "b.png")
    listing = list_folder(str(tmp_path))
    monkeypatch.setattr(image_probe, "READ_WHOLE", 1)
    probe_images({listing: {"a.png": None, "b.png": None}})
    assert {facts.verified for facts in listing.facts.values()} == {False}
    looks = []
    read = image_probe.inspect_image
    monkeypatch.setattr(image_probe, "inspect_image", lambda path: looks.append(Path(path).name) or read(path))
    for _ in range(2):
        probe_images({listing: {"a.png": None}})
    assert looks == ["a.png"]
    probe_images({listing: {"a.png": None, "b.png": None}})
    assert looks == ["a.png", "b.png"]


def test_notes_are_of_wanted_pictures_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "unwanted"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png", icc_profile=b"no profile")
    listing = list_folder(str(tmp_path))
    everything = dict.fromkeys(listing.names)
    assert probe_images({listing: everything}) == {}
    notes = notes_of({listing: {"b.png": None, "a.png": None}})
    assert [note.partition(": ")[0] for note in notes] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]

"""The part of an image that is trained: asked for by a file beside it, else the
middle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from toolkit.config.sections.dataset import Rectangle
from toolkit.contracts.data import MIDDLE, Focus
from toolkit.data.pixels.images import open_image, resize_cover_crop
from toolkit.data.scan.crops import CropError, read_crop
from toolkit.data.scan.fingerprint import compare, fingerprint
from toolkit.data.scan.folder import find_images, scan_datasets
from toolkit.data.scan.items import scan_items
from toolkit.errors import Diagnostic


@pytest.fixture
def photos(tmp_path: Path, dataset) -> Path:
    """Four images of 128 x 64 pixels, from the left red, green, blue."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.new("RGB", (128, 64), "red")
    picture.paste("lime", (43, 0, 128, 64)), picture.paste("blue", (85, 0, 128, 64))
    for name in "abcd":
        picture.save(folder / f"{name}.png")
    return folder


def middles(folder: Path, dataset) -> dict[str, tuple[int, ...]]:
    """The pixel in the middle of what is trained, by the name of its image."""
    kinds = {"streamed": None, "validation": None, "trigger_word": None}
    data = dataset(folder, resolution=(Rectangle(width=32, height=32),))
    section = SimpleNamespace(datasets=[data], reads_captions=True, **kinds)
    _, items = scan_items(section, 32)
    return {
        item.sample.name[0]: resize_cover_crop(
            open_image(item.sample.image), item.crop
        ).getpixel((16, 16))
        for item in items
    }


def test_the_part_that_is_trained_is_where_its_file_says(photos: Path, dataset) -> None:
    red, lime, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert middles(photos, dataset) == dict.fromkeys("abcd", lime)
    before = fingerprint(scan_datasets([dataset(photos)], None).samples)
    texts = {"a": "0 0.5", "b": " 1\n0 ", "c": "0.5 0.5"}
    for name, text in texts.items():
        (photos / f"{name}.crop").write_text(text)
    assert middles(photos, dataset) == {"a": red, "b": blue, "c": lime, "d": lime}
    found, faults, notes = find_images(dataset(photos))
    assert [image.focus for image in found] == [(0, 0.5), (1, 0), MIDDLE, MIDDLE]
    assert not faults and not [note for note in notes if ".crop" in note]
    change = compare(
        before, fingerprint(scan_datasets([dataset(photos)], None).samples)
    )
    assert change.edited == tuple(f"{photos}/{name}.png" for name in "ab")


@pytest.mark.parametrize(
    "text", ["", "0", "0 0 0", "0 1.1", "-0.1 0", "left 0", "nan 0"]
)
def test_anything_else_is_refused_with_what_to_write(
    photos: Path, dataset, text: str
) -> None:
    file = photos / "a.crop"
    file.write_text(text)
    faults: list[Diagnostic] = []
    scan = scan_datasets([dataset(photos)], None, forgiven=faults)
    assert [fault.place for fault in faults] == [str(file)]
    assert "two numbers from 0 to 1, such as '0.5 0'" in faults[0].message
    assert [sample.focus for sample in scan.samples] == [MIDDLE] * 4


def test_a_file_that_cannot_be_read_or_has_no_image_is_named(
    photos: Path, dataset
) -> None:
    (photos / "A.crop").write_text("0 0")
    (photos / "a.crop").mkdir()
    scan = scan_datasets([dataset(photos)], None)
    (unused,) = scan.unused
    assert unused[0].endswith("A.crop") and "crop without an image" in unused[1]
    with pytest.raises(CropError, match="cannot be read"):
        read_crop(photos / "a.crop")
    assert Focus(0, 1) == (0, 1)

"""One damaged or animated file among good ones: an error, or left out and named with
`skip_unreadable`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.toolkit.data.conftest import make_images, refusal
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors


@pytest.fixture
def images(tmp_path: Path, image) -> Path:
    """Two good images, one cut off, one animated, each with a caption."""
    for stem in ("a", "b", "cut", "moves"):
        image(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.txt").write_text(f"a photo of {stem}")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "moves.png").unlink()
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:])
    return tmp_path


def test_the_others_are_trained_and_the_plan_names_those_left_out(
    images: Path, dataset
) -> None:
    scan = scan_datasets([dataset(images, skip_unreadable=True)], None)
    captions = {Path(sample.image).name: sample.texts for sample in scan.samples}
    assert captions == {"a.png": ("a photo of a",), "b.png": ("a photo of b",)}
    (note,) = (note for note in scan.notes if "skip_unreadable" in note)
    assert (
        note.startswith(f"warning: {images}: 2 of 4 images left out")
        and "cut.png" in note
        and "moves.webp" in note
    )


def test_without_it_each_is_an_error(images: Path, dataset) -> None:
    assert {
        Path(error.place).name for error in refusal([dataset(images)], None).errors
    } == {
        "cut.png",
        "moves.webp",
    }


def test_a_folder_of_nothing_else_is_still_an_error_and_so_is_a_file_of_another_dataset(
    images: Path, dataset
) -> None:
    with pytest.raises(DataErrors):
        scan_datasets([dataset(images, skip_unreadable=True), dataset(images)], None)
    for name in ("a.png", "b.png"):
        (images / name).unlink()
    with pytest.raises(DataErrors):
        scan_datasets([dataset(images, skip_unreadable=True)], None)


def test_an_image_whose_control_image_is_damaged_is_left_out_too(
    images: Path, dataset, image, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    make_images(before / f"{stem}.png" for stem in ("a", "b", "cut", "moves"))
    (before / "a.png").write_bytes(b"not an image")
    scan = scan_datasets(
        [dataset(images, skip_unreadable=True, control_path=(str(before),))], None
    )
    assert [Path(sample.image).name for sample in scan.samples] == ["b.png"]


def test_a_jfif_file_is_a_jpeg(tmp_path: Path, dataset) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jfif", "JPEG")
    assert [
        Path(sample.image).name
        for sample in scan_datasets([dataset(tmp_path)], None).samples
    ] == ["a.jfif"]

"""Batches of pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from toolkit.data.pixels import PixelLoader, load_pixels
from toolkit.errors import RunError
from toolkit.interfaces import BatchSpec, BucketedSample, Flip, ResizeCrop, Sample, Size


def item(path: Path, flip: Flip = Flip()) -> BucketedSample:  # noqa: B008 - a constant
    crop = ResizeCrop(Size(8, 6), 1, 0, Size(6, 6))
    return BucketedSample(Sample(str(path), f"a {path.stem}", 1, Size(8, 6), "", flip=flip, loss_weight=0.5), crop)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (8, 6))
    image.putdata([(x * 30, y * 40, 255) for y in range(6) for x in range(8)])
    image.save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_pixels_are_those_of_the_file_cut_and_mirrored(picture: Path) -> None:
    pixels = load_pixels(item(picture))
    assert pixels.shape == (3, 6, 6) and pixels.dtype == torch.float32
    red = torch.tensor([30.0 * x for x in range(1, 7)]) / 127.5 - 1
    torch.testing.assert_close(pixels[0, 0], red)
    assert pixels[2].min() == 1
    torch.testing.assert_close(load_pixels(item(picture, Flip(x=True))), pixels.flip(2))


def test_a_batch_can_be_split_into_halves_with_the_same_keys(picture: Path) -> None:
    batch = PixelLoader([item(picture)] * 3).load(BatchSpec(2, (0, 1, 2), (7, 8, 9)))
    first, second = batch.halves()
    assert (len(first), len(second), first.spec.positions, second.spec.positions) == (2, 1, (7, 8), (9,))
    assert second.halves()[0].spec == second.spec and second.captions == ("a cat",)
    assert batch.loss_weight_B.tolist() == [0.5] * 3 and batch.describe() == "pixels (3, 3, 6, 6)"


def test_a_file_that_was_damaged_since_is_named(picture: Path) -> None:
    picture.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"cat\.png.* It was changed since the run began"):
        load_pixels(item(picture))

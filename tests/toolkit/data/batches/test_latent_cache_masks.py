from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from toolkit.contracts.data import NO_FLIP, Flip, Mask, ResizeCrop, Size
from toolkit.data.batches.latent_cache import mask_weights
from toolkit.data.pixels.images import (
    flip_image,
    open_image,
    resize_cover_crop,
    to_tensor,
)
from toolkit.data.scan.items import bucket_for

PLAIN = ResizeCrop(Size(32, 16), 0, 0, Size(32, 16))
ROTATED = 6
"""EXIF: to be turned by a quarter."""


def weights(
    path: Path, crop: ResizeCrop = PLAIN, flip: Flip = NO_FLIP, **mask
) -> torch.Tensor:
    weights_1HW = mask_weights(Mask(path, **mask), crop, flip, 8)
    assert weights_1HW.dtype == torch.float32 and weights_1HW.shape[0] == 1
    return weights_1HW[0]


def halves(
    mode: str, left: object, right: object, size: tuple[int, int] = (32, 16)
) -> Image.Image:
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


@pytest.fixture
def save(tmp_path: Path):
    def save(picture: Image.Image, suffix: str = "png", **options) -> Path:
        path = tmp_path / f"mask.{suffix}"
        picture.save(path, **options)
        return path

    return save


@pytest.mark.parametrize("min_value", [0.0, 0.1, 0.3, 1.0])
def test_white_counts_fully_and_black_by_the_least_value(
    save, min_value: float
) -> None:
    weights_HW = weights(save(halves("L", 255, 0)), min_value=min_value)
    assert weights_HW[:, :2].eq(1.0).all()
    torch.testing.assert_close(weights_HW[:, 2:], torch.full((2, 2), min_value))
    if min_value == 0:
        assert weights_HW[:, 2:].eq(0.0).all()


def test_a_latent_pixel_has_the_mean_of_its_64_pixels(save) -> None:
    picture = Image.new("L", (32, 16), 0)
    # of the first block half, of the second a quarter
    picture.paste(255, (0, 0, 12, 4))
    picture.paste(51, (24, 8, 32, 16))  # the last block is a fifth white
    torch.testing.assert_close(
        weights(save(picture)), torch.tensor([[0.5, 0.25, 0, 0], [0, 0, 0, 0.2]])
    )


def test_a_latent_pixel_is_as_large_as_the_family_says(save) -> None:
    mask = Mask(save(halves("L", 255, 0)))
    assert mask_weights(mask, PLAIN, NO_FLIP, 16).tolist() == [[[1, 0]]]


def test_an_inverted_mask_counts_where_it_is_black(save) -> None:
    path = save(halves("L", 255, 51))
    torch.testing.assert_close(weights(path, inverted=True), 1 - weights(path))
    least = weights(path, inverted=True, min_value=0.5)
    torch.testing.assert_close(least[0], torch.tensor([0.5, 0.5, 0.9, 0.9]))


@pytest.mark.parametrize("flip", [Flip(), Flip(x=True), Flip(y=True), Flip(True, True)])
@pytest.mark.parametrize("orientation", [1, ROTATED])
@pytest.mark.parametrize("size", [(150, 90), (64, 64), (37, 201)])
def test_a_mask_goes_the_way_of_its_image(
    tmp_path: Path, size, orientation: int, flip: Flip
) -> None:
    """A grey image as its own mask: the weights are the means of exactly the pixels
    that are encoded."""
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 90).save(path, exif=exif)
    picture = open_image(path)
    crop = bucket_for(Size(*picture.size), 96, 32)
    pixels_3HW = to_tensor(flip_image(resize_cover_crop(picture, crop), flip))
    expected_HW = (torch.nn.functional.avg_pool2d(pixels_3HW, 8)[0] + 1) / 2
    torch.testing.assert_close(weights(path, crop, flip), expected_HW)


def test_a_flip_exchanges_the_sides(save) -> None:
    path = save(halves("L", 255, 0))
    assert torch.equal(weights(path, flip=Flip(x=True)), weights(path).flip(1))
    assert torch.equal(weights(path, flip=Flip(y=True)), weights(path))


def test_a_mask_of_another_size_is_stretched_over_its_image(save) -> None:
    picture = halves("L", 255, 0, (320, 400))
    assert weights(save(picture)).mean(0).tolist() == pytest.approx(
        [1, 1, 0, 0], abs=0.1
    )


def wide_grey() -> Image.Image:
    return Image.fromarray(
        numpy.repeat(
            numpy.array([[65535] * 16 + [0] * 16], dtype=numpy.uint16), 16, axis=0
        )
    )


PICTURES = {
    "bilevel": lambda: halves("1", 1, 0),
    "grey": lambda: halves("L", 255, 0),
    "16 bits": wide_grey,
    "palette": lambda: halves("RGB", (255, 255, 255), (0, 0, 0)).quantize(4),
    "colour": lambda: halves("RGB", (255, 255, 255), (0, 0, 0)),
    "white on nothing": lambda: halves(
        "RGBA", (255, 255, 255, 255), (255, 255, 255, 0)
    ),
    "grey on nothing": lambda: halves("LA", (255, 255), (255, 0)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_whatever_a_picture_holds_white_is_one_and_black_or_nothing_zero(
    save, kind: str
) -> None:
    assert weights(save(PICTURES[kind]())).tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2


OPAQUE_LEFT = {
    "RGBA": lambda: (halves("RGBA", (9, 9, 9, 255), (9, 9, 9, 0)), {}),
    "LA": lambda: (halves("LA", (0, 255), (255, 0)), {}),
    "palette": lambda: (halves("P", 1, 0), {"transparency": 0}),
    "16-bit grey": lambda: (wide_grey(), {"transparency": 0}),
}


@pytest.mark.parametrize("kind", OPAQUE_LEFT)
def test_opacity_is_the_mask_of_an_image(save, kind: str) -> None:
    picture, options = OPAQUE_LEFT[kind]()
    path = save(picture, **options)
    assert weights(path, alpha=True).tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2
    assert (
        weights(path, alpha=True, inverted=True, min_value=0.5).tolist()
        == [[0.5, 0.5, 1.0, 1.0]] * 2
    )


def test_opacity_is_turned_as_its_image_is(save) -> None:
    exif = Image.Exif()
    exif[0x0112] = ROTATED  # a quarter clockwise: what is left comes to the top
    path = save(halves("RGBA", (9, 9, 9, 255), (9, 9, 9, 0)), exif=exif)
    turned = weights(path, ResizeCrop(Size(16, 32), 0, 0, Size(16, 32)), alpha=True)
    assert turned.tolist() == [[1.0, 1.0]] * 2 + [[0.0, 0.0]] * 2


def test_an_image_without_transparency_is_all_opaque(save) -> None:
    assert weights(save(halves("RGB", "red", "blue")), alpha=True).eq(1.0).all()

"""Shifts, zooms and rotations that are planted between a photograph and its edit are
measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from itertools import islice
from random import Random

import numpy
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from benchmarks.mascots import Casting, Lots, draw, random_mascot
from tests.conftest import ROOT
from toolkit.data.pixels import alignment
from toolkit.data.pixels.alignment import MEASURABLE, Alignment, measure, onto_image

PHOTOGRAPHS = sorted((ROOT / "config" / "examples" / "photos").glob("*/*.jpg"))

Move = tuple[float, float, float, float]
"""Zoom, rotation in degrees, shift right and down in pixels."""


def photograph(index: int) -> Image.Image:
    return Image.open(PHOTOGRAPHS[index % len(PHOTOGRAPHS)]).convert("RGB")


def moved(image: Image.Image, move: Move) -> Image.Image:
    """The reference in which each point p of the image, from its middle, is at (1 +
    zoom) R p + shift."""
    zoom, degrees, x, y = move
    a, b = ((1 + zoom) * part(math.radians(degrees)) for part in (math.cos, math.sin))
    whole = a * a + b * b
    a, b = a / whole, -b / whole  # the inverse: from the reference to the image
    cx, cy = image.width / 2, image.height / 2
    data = (
        a,
        -b,
        cx - a * (cx + x) + b * (cy + y),
        b,
        a,
        cy - b * (cx + x) - a * (cy + y),
    )
    return image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )


def part_of(index: int) -> Image.Image:
    """The middle of a photograph: half of its pixels take half of the time."""
    image = photograph(index)
    x, y = max(0, image.width - 400) // 2, max(0, image.height - 320) // 2
    return image.crop((x, y, image.width - x, image.height - y))


def within(image: Image.Image) -> Image.Image:
    """Without the border, where what was moved has no pixels."""
    margin = min(30, min(image.size) // 10)
    return image.crop((margin, margin, image.width - margin, image.height - margin))


# ------------------------------------------------------------ edits


def other_hue(image: Image.Image, random: Random) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge(
        "HSV", (hue.point(lambda x: (x + 90) % 256), saturation, value)
    ).convert("RGB")


def painted(image: Image.Image, random: Random) -> Image.Image:
    return ImageOps.posterize(image.filter(ImageFilter.ModeFilter(5)), 3)


def sketched(image: Image.Image, random: Random) -> Image.Image:
    grey = ImageOps.grayscale(image)
    soft = ImageOps.invert(grey).filter(ImageFilter.GaussianBlur(4))
    drawn = (
        numpy.asarray(grey, dtype=float)
        * 255
        / (256 - numpy.asarray(soft, dtype=float))
    )
    return Image.fromarray(drawn.clip(0, 255).astype(numpy.uint8)).convert("RGB")


def with_objects(image: Image.Image, random: Random) -> Image.Image:
    """A quarter to a half is covered."""
    image, (width, height) = image.copy(), image.size
    for _ in range(2):
        x, y = random.random() * 0.6 * width, random.random() * 0.6 * height
        colour = tuple(random.randrange(256) for _ in range(3))
        ImageDraw.Draw(image).ellipse(
            (x, y, x + 0.35 * width, y + 0.35 * height), fill=colour
        )
    return image


def grainy(image: Image.Image, random: Random) -> Image.Image:
    noise = (
        numpy.random.default_rng(random.randrange(1000)).normal(
            size=(image.height, image.width, 3)
        )
        * 12
    )
    return Image.fromarray(
        (numpy.asarray(image) + noise).clip(0, 255).astype(numpy.uint8)
    )


def compressed(image: Image.Image, random: Random) -> Image.Image:
    image.save(buffer := BytesIO(), "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


EDITS: list[Callable[[Image.Image, Random], Image.Image]] = [
    lambda image, _: ImageOps.grayscale(image).convert("RGB"),
    lambda image, _: ImageEnhance.Contrast(image).enhance(1.6),
    lambda image, _: ImageOps.invert(image),
    lambda image, _: ImageEnhance.Brightness(image).enhance(0.5),
    lambda image, _: image.filter(ImageFilter.GaussianBlur(1.2)),
    *(other_hue, painted, sketched, with_objects, grainy),
    lambda image, random: with_objects(other_hue(image, random), random),
    lambda image, random: compressed(with_objects(image, random), random),
]


def planted() -> Iterator[tuple[int, Move, Callable]]:
    """Sixty moves: fifteen shifts, zooms, rotations, and all three together."""
    random = Random(0)

    def drawn(low: float, high: float) -> float:
        return low * (high / low) ** random.random()

    def sign() -> int:
        return random.choice((-1, 1))

    for index in range(60):
        kind, zoom, degrees, x, y = index % 4, 0.0, 0.0, 0.0, 0.0
        if kind in (0, 3):
            length, angle = drawn(0.3, 12), random.uniform(0, 2 * math.pi)
            x, y = length * math.cos(angle), length * math.sin(angle)
        if kind in (1, 3):
            zoom = sign() * drawn(0.002, 0.05)
        if kind in (2, 3):
            degrees = sign() * drawn(0.2, 2)
        yield index, (zoom, degrees, x, y), EDITS[index // 5 % len(EDITS)]


SOME = pytest.mark.parametrize(
    ("first", "every"), [(4, 17), pytest.param(0, 7, marks=pytest.mark.slow)]
)
"""All kinds of moves; every seventh has most edits too."""


@pytest.mark.slow
@SOME
def test_planted_moves_are_measured(first: int, every: int) -> None:
    random = Random(1)
    for index, move, edit in islice(planted(), first, None, every):
        image, reference = (
            within(each) for each in (part_of(index), moved(part_of(index), move))
        )
        found = measure(edit(image, random), reference)
        where = f"{index}: {move} measured as {found}"
        assert found.is_measurable and found.peak >= MEASURABLE, where
        assert found.is_certain or found.drift < 0.5, where
        assert math.dist(found.shift, move[2:]) <= 0.2, where
        assert abs(found.zoom - move[0]) <= 0.001, where
        assert abs(found.rotation - move[1]) <= 0.1, where


@SOME
def test_pairs_that_lie_on_each_other_are_not_accused(first: int, every: int) -> None:
    random = Random(2)
    for index in range(first, 60, every):
        image = part_of(index)
        found = measure(EDITS[index // 5 % len(EDITS)](image, random), image)
        assert found.is_measurable and not found.is_certain and found.drift < 0.25, (
            f"{index}: {found}"
        )


@pytest.mark.slow
def test_what_does_not_show_the_same_is_not_measurable() -> None:
    one, two = part_of(0), part_of(1)
    others = [
        (one, two),
        (Image.new("RGB", one.size, (90, 99, 9)), one),
        (one.resize((20, 15)), one),
        (two, ImageOps.mirror(two)),
    ]
    assert [
        str(found) for pair in others if (found := measure(*pair)).is_measurable
    ] == []


@pytest.mark.slow
def test_a_reference_in_pixels_or_out_of_focus_is_not_accused() -> None:
    """Its own patches do not agree, which the error says."""
    for index in range(2):
        image = part_of(index)
        spoilt = image.filter(ImageFilter.GaussianBlur(4))
        if index % 2:
            small = image.resize(
                (image.width // 6, image.height // 6), Image.Resampling.BOX
            )
            spoilt = small.resize(image.size, Image.Resampling.NEAREST)
        assert not measure(image, spoilt).is_certain


@pytest.mark.parametrize(
    ("seed", "poses"),
    [(1, "sitting cheering"), (1, "jumping standing")],
)
def test_a_figure_that_moves_before_its_background_is_no_shift(
    seed: int, poses: str
) -> None:
    """A mascot that sits down has most of the edges of its image."""
    mascot = random_mascot(Lots(seed, "q", 0), Casting("pretraining"))
    image, reference = (
        draw([replace(mascot, pose=pose)], 256, 256) for pose in poses.split()
    )
    assert not measure(image, reference).is_measurable


@pytest.mark.slow
def test_a_relief_is_not_taken_for_a_shift() -> None:
    """It has two edges for each of the photograph, a pixel or two to both sides."""
    image = within(photograph(0)).crop((0, 0, 300, 240))
    assert not measure(image.filter(ImageFilter.EMBOSS), image).is_measurable


def test_a_reference_of_another_size_or_shape_is_taken_as_training_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = part_of(1)
    wide = Image.new("RGB", (image.width + 20, image.height))
    wide.paste(image, (10, 0))
    for reference in (
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
        wide,
    ):
        assert measure(image, reference).drift < 0.1
    monkeypatch.setattr(alignment, "LARGEST", 432)  # smaller than the photograph
    large = photograph(1)
    found = measure(within(large), within(moved(large, (0.01, 0.0, 6.0, 3.0))))
    assert math.dist(found.shift, (6, 3)) < 0.2 and abs(found.zoom - 0.01) < 1e-3


def test_what_is_moved_onto_its_image_lies_on_it() -> None:
    move = -0.02, -0.7, -6.3, 2.2
    image, reference = (within(each) for each in (part_of(4), moved(part_of(4), move)))
    put, box = onto_image(reference, measure(image, reference))
    assert measure(image.crop(box), put.crop(box)).drift < 0.15
    assert (box[2] - box[0]) * (box[3] - box[1]) > 0.85 * image.width * image.height
    seen, meant = (
        numpy.asarray(each.crop(box), dtype=float)[4:-4, 4:-4] for each in (put, image)
    )
    assert numpy.abs(seen - meant).mean() < 3  # what two interpolations change


def test_the_drift_is_that_of_the_corner_that_is_farthest_off() -> None:
    found = Alignment(0.01, 0.0, (3.0, 0.0), 1.0, 0.0, (200, 100))
    assert found.drift == pytest.approx(math.hypot(1.0 + 3.0, 0.5))


def test_the_inverse_says_the_same_of_the_reference() -> None:
    found = Alignment(0.05, 2.0, (6.0, -3.0), 1.0, 0.0, (200, 100))
    other, angle = found.inverse(), math.radians(2.0)
    # from the middle of the image, and where that is in the reference
    x, y = (
        40.0,
        -25.0,
    )
    a, b = 1.05 * math.cos(angle), 1.05 * math.sin(angle)
    u, v = a * x - b * y + 6.0, b * x + a * y - 3.0
    a, b = (
        (1 + other.zoom) * f(math.radians(other.rotation)) for f in (math.cos, math.sin)
    )
    assert (
        a * u - b * v + other.shift[0],
        b * u + a * v + other.shift[1],
    ) == pytest.approx((x, y))

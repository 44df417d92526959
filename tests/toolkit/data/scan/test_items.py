"""What is trained on: images at their sizes, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.golden_tables import golden
from toolkit.config.sections.dataset import Rectangle
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.contracts.model import ModelFacts
from toolkit.data.scan.items import (
    bucket_for,
    make_items,
    refuse_references,
    scan_items,
)
from toolkit.errors import DataErrors


def section(*datasets) -> SimpleNamespace:
    kinds = {
        "streamed": None,
        "validation": None,
        "reads_captions": True,
        "trigger_word": None,
    }
    return SimpleNamespace(datasets=datasets, **kinds)


def test_every_image_is_an_item_at_each_of_its_sizes(
    tmp_path: Path, image, dataset
) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png", 640, 480)
    scan, items = scan_items(section(dataset(tmp_path, resolution=(512, 256, 512))), 32)
    assert [item.sample for item in items] == [scan.samples[0]] * 2 + [
        scan.samples[1]
    ] * 2
    assert [item.crop.bucket for item in items] == [(576, 448), (288, 224)] * 2


@pytest.mark.parametrize(
    ("most", "faults"), [(0, ["b.png", "c.png"]), (1, ["c.png"]), (2, [])]
)
def test_more_references_than_the_family_takes_are_refused_by_image(
    most: int, faults: list[str]
) -> None:
    family = ModelFacts()
    family.title, family.max_references = "Unlike-1", most
    controls = {"a.png": (), "b.png": ("x.png",), "c.png": ("x.png", "y.png")}
    crop = ResizeCrop(Size(32, 32), 0, 0, Size(32, 32))
    items = [
        BucketedSample(Sample(name, "", 1, Size(32, 32), "", used), crop)
        for name, used in controls.items()
    ] * 2
    if not faults:
        refuse_references(items, family)
        return
    with pytest.raises(DataErrors) as caught:
        refuse_references(items, family)
    lines = str(caught.value).splitlines()
    assert [
        name for name in controls if any(line.startswith(name) for line in lines)
    ] == faults
    assert f"Unlike-1 takes {'at most 1' if most else 'none'}" in lines[-1]


def test_more_uses_than_can_be_put_in_order_are_refused_by_folder(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "1000000000_a/a.png"), image(tmp_path / "2_b/b.png")
    with pytest.raises(DataErrors) as caught:
        scan_items(section(dataset(tmp_path, resolution=(256, 512))), 32)
    (mistake,) = caught.value.errors
    assert mistake.place == f"{tmp_path}/1000000000_a"
    assert mistake.message.startswith(
        "2,000,000,000 uses of images per epoch, 2,000,000,004 with all folders; at most"
    )


def test_a_strip_that_a_rectangle_would_enlarge_beyond_memory_is_refused(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "a.png", 9000, 2), image(tmp_path / "b.png", 3000, 100)
    told = r"a\.png.* is enlarged to 2304000x512 pixels before it is cut\. Crop it"
    with pytest.raises(DataErrors, match=told) as caught:
        scan_items(section(dataset(tmp_path, resolution=(square(512),))), 32)
    assert len(caught.value.errors) == 1


# ------------------------------------------------------------ buckets


def square(side: int) -> Rectangle:
    return Rectangle(width=side, height=side)


def test_golden_buckets() -> None:
    """What the peer calls `square_crop` is a rectangle of equal sides here."""
    for case in golden("buckets"):
        side = case["resolution"]
        crop = bucket_for(
            Size(case["width"], case["height"]),
            square(side) if case["square_crop"] else side,
            case["divisibility"],
        )
        assert crop == ResizeCrop(
            scaled=Size(case["scale_to_width"], case["scale_to_height"]),
            left=case["crop_x"],
            top=case["crop_y"],
            bucket=Size(case["bucket_width"], case["bucket_height"]),
        ), case
        assert crop.bucket == (case["crop_width"], case["crop_height"]), case
        assert str(crop.bucket) == case["bucket_key"], case


@pytest.mark.parametrize("resolution", [64, 500, 512, 1000])
@pytest.mark.parametrize("wanted", [int, square])
def test_every_bucket_is_on_the_grid_within_the_area_and_covered(
    resolution: int, wanted: Callable[[int], int | Rectangle]
) -> None:
    sides = [1, 7, 31, 32, 33, 100, 511, 777, 2000, 9001, 40_000]
    for size in (Size(width, height) for width in sides for height in sides):
        crop = bucket_for(size, wanted(resolution), 32)
        assert crop.bucket.width % 32 == crop.bucket.height % 32 == 0 < min(crop.bucket)
        assert crop.bucket.width * crop.bucket.height <= resolution**2
        assert crop.left >= 0 and crop.left + crop.bucket.width <= crop.scaled.width
        assert crop.top >= 0 and crop.top + crop.bucket.height <= crop.scaled.height


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no bucket for 10x10 at resolution 16"):
        bucket_for(Size(10, 10), 16, 32)


def test_one_item_per_distinct_size() -> None:
    samples = [
        Sample(name, "", 1, Size(2000, 2000), "data") for name in ("a.png", "b.png")
    ]
    sizes = {"a.png": (1024, 512, 1024), "b.png": (512,)}
    items = make_items(samples, lambda sample: sizes[sample.image], 32)
    made = [(item.sample.image, item.crop.bucket.width) for item in items]
    assert made == [("a.png", 1024), ("a.png", 512), ("b.png", 512)]


@pytest.mark.parametrize("size", [(960, 544), (544, 960), (40, 40), (3000, 100)])
def test_a_rectangle_is_the_one_bucket_of_all_images(size: tuple[int, int]) -> None:
    crop = bucket_for(Size(*size), Rectangle(width=975, height=544), 32)
    assert crop.bucket == Size(960, 544)
    assert crop.left >= 0 and crop.left + 960 <= crop.scaled.width
    assert crop.top >= 0 and crop.top + 544 <= crop.scaled.height
    # no more is cut off than has to be
    assert crop.scaled.width == 960 or crop.scaled.height == 544

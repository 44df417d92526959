"""From datasets to items."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data.items import refuse_references, scan_items
from toolkit.data.types import BucketedSample, ResizeCrop, Sample, Size
from toolkit.errors import DataErrors
from toolkit.models.interface import ModelFacts


def section(*datasets) -> SimpleNamespace:
    train = SimpleNamespace(reg_weight=1.0)
    return SimpleNamespace(datasets=datasets, streamed=None, reads_captions=True, trigger_word=None, train=train)


def test_every_image_is_an_item_at_each_of_its_sizes(tmp_path: Path, image, dataset) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png", 640, 480)
    scan, items = scan_items(section(dataset(tmp_path, resolution=(512, 256, 512))), 32)
    assert [item.sample for item in items] == [scan.samples[0]] * 2 + [scan.samples[1]] * 2
    assert [item.crop.bucket for item in items] == [(576, 448), (288, 224)] * 2


@pytest.mark.parametrize(("most", "faults"), [(0, ["b.png", "c.png"]), (1, ["c.png"]), (2, [])])
def test_more_references_than_the_family_takes_are_refused_by_image(most: int, faults: list[str]) -> None:
    family = ModelFacts()
    family.title, family.max_references = "Unlike-1", most
    controls = {"a.png": (), "b.png": ("x.png",), "c.png": ("x.png", "y.png")}
    crop = ResizeCrop(Size(32, 32), 0, 0, Size(32, 32))
    items = [BucketedSample(Sample(name, "", 1, Size(32, 32), "", used), crop) for name, used in controls.items()] * 2
    if not faults:
        refuse_references(items, family)
        return
    with pytest.raises(DataErrors) as caught:
        refuse_references(items, family)
    lines = str(caught.value).splitlines()
    assert [name for name in controls if any(line.startswith(name) for line in lines)] == faults
    assert f"Unlike-1 takes {'at most 1' if most else 'none'}" in lines[-1]


def test_more_uses_than_can_be_put_in_order_are_refused_by_folder(tmp_path: Path, image, dataset) -> None:
    image(tmp_path / "1000000000_a/a.png"), image(tmp_path / "2_b/b.png")
    with pytest.raises(DataErrors) as caught:
        scan_items(section(dataset(tmp_path, resolution=(256, 512))), 32)
    (mistake,) = caught.value.errors
    assert mistake.place == f"{tmp_path}/1000000000_a"
    assert mistake.message.startswith("2,000,000,000 uses of images per epoch, 2,000,000,004 with all folders; at most")

"""From datasets to items."""

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data.items import scan_items
from toolkit.errors import DataErrors


def section(*datasets) -> SimpleNamespace:
    return SimpleNamespace(datasets=datasets, trigger_word=None, train=SimpleNamespace(reg_weight=1.0))


def test_every_image_is_an_item_at_each_of_its_sizes(tmp_path: Path, image, dataset) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png", 640, 480)
    scan, items = scan_items(section(dataset(tmp_path, resolution=(512, 256, 512))), 32)
    assert [item.sample for item in items] == [scan.samples[0]] * 2 + [scan.samples[1]] * 2
    assert [item.crop.bucket for item in items] == [(576, 448), (288, 224)] * 2


def test_the_garbage_collector_works_on_afterwards(tmp_path: Path, image, dataset) -> None:
    image(tmp_path / "a.png")
    scan_items(section(dataset(tmp_path)), 32)
    assert gc.isenabled()
    with pytest.raises(DataErrors):
        scan_items(section(dataset(tmp_path / "nowhere")), 32)
    assert gc.isenabled()

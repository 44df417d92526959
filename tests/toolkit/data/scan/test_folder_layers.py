"""Layers of images: which files belong to an image, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.layer_files import write_layers
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import Sample
from toolkit.data.batches.epoch_order import count_batches, epoch_batches
from toolkit.data.scan.fingerprint import fingerprint
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.items import make_items
from toolkit.errors import DataErrors


def scan(folder: Path, **keys: object) -> tuple[Sample, ...]:
    return scan_datasets([DatasetConfig(folder_path=str(folder), **keys)], None).samples


def faults(folder: Path, **keys: object) -> list[str]:
    with pytest.raises(DataErrors) as raised:
        scan(folder, **keys)
    return [
        f"{Path(found.place).name}: {found.message}" for found in raised.value.errors
    ]


def names(sample: Sample) -> list[str]:
    return [Path(path).name for path in sample.layers]


def test_layers_lie_beside_their_images(tmp_path: Path) -> None:
    """From back to front by their numbers, as many as there are; none is an image of
    its own. `image1_0.png` is musubi-tuner's example of a first layer
    (docs/dataset_config.md, 30c658c4)."""
    write_layers(tmp_path, 11)
    write_layers(tmp_path, 2, stem="b")
    for suffix in ("_layer", "_"):
        first, second = scan(tmp_path, layers_suffix=suffix)
        assert names(first) == [f"a{suffix}{index}.png" for index in range(11)]
        assert names(second) == [f"b{suffix}0.png", f"b{suffix}1.png"]
        for path in tmp_path.glob("*_layer*.png"):
            path.rename(path.with_name(path.name.replace("layer", "")))


def test_what_is_probably_not_meant_is_noted(tmp_path: Path) -> None:
    write_layers(tmp_path / "images", 2)
    Image.new("RGB", (96, 64)).save(tmp_path / "images" / "a_layer1.png")
    for keys, told in (
        (
            {"layers_suffix": "_layer"},
            f"{tmp_path / 'images'}: 1 layer in front of others without opacity of their own: a_layer1.png. "
            "Such a layer hides those behind it; number layers from back to front, and save them as PNG",
        ),
        (
            {},
            f"{tmp_path / 'images'}: some images are each by its name a layer of another, and trained as an image: "
            "a_layer0.png, a_layer1.png. For a model of layers give 'layers_suffix: _layer'",
        ),
    ):
        section = DatasetConfig(folder_path=str(tmp_path / "images"), **keys)
        assert f"warning: {told}" in scan_datasets([section], None).notes, told


def test_an_edited_layer_is_another_dataset_and_one_of_another_size_an_error(
    tmp_path: Path,
) -> None:
    write_layers(tmp_path, 2)
    before = fingerprint(scan(tmp_path, layers_suffix="_layer"))
    Image.new("RGBA", (96, 64), (1, 2, 3, 4)).save(tmp_path / "a_layer1.png")
    assert fingerprint(scan(tmp_path, layers_suffix="_layer")) != before
    Image.new("RGBA", (48, 64)).save(tmp_path / "a_layer1.png")
    assert faults(tmp_path, layers_suffix="_layer") == [
        "a_layer1.png: has 48x64 pixels, and its image a.png has 96x64. Export the layer with the whole canvas"
    ]


def test_layers_that_are_missing_are_errors(tmp_path: Path) -> None:
    write_layers(tmp_path, 3)
    (tmp_path / "a_layer1.png").unlink()
    Image.new("RGB", (96, 64)).save(tmp_path / "b.png")
    Image.new("RGB", (96, 64)).save(tmp_path / "c_layer0.png")
    assert faults(tmp_path, layers_suffix="_layer") == [
        "a.png: its layers are not numbered one after the other: a_layer0.png, a_layer2.png. Rename them",
        f"b.png: has no layer 'b_layer0' in '{tmp_path}'. Add its layers, or remove it",
        "c_layer0.png: is a layer, and there is no image 'c'. Add that image, or remove the layer",
    ]


def test_a_batch_has_images_of_as_many_layers(tmp_path: Path) -> None:
    for index in range(4):
        write_layers(tmp_path, 1 + index % 2, stem=f"image{index}")
    items = make_items(scan(tmp_path, layers_suffix="_layer"), lambda _: (64,), 32)
    assert len({item.crop.bucket for item in items}) == 1
    batches = epoch_batches(items, 4, seed=1, epoch=0)
    assert sorted(
        sorted(len(items[index].sample.layers) for index in batch.items)
        for batch in batches
    ) == [
        [1, 1],
        [2, 2],
    ]
    assert count_batches(items, 4) == 2

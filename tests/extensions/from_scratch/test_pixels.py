"""Batches of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from extensions.from_scratch.pixels import (
    Picture,
    PixelLoader,
    StreamPixels,
    load_pixels,
)
from tests.toolkit.data.shard_server import png
from toolkit.contracts.data import (
    BatchSpec,
    BucketedSample,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.data.batches.dataloader import stream_source
from toolkit.data.pixels.images import to_tensor
from toolkit.data.streams.stream_dataset import StreamDataset
from toolkit.data.streams.webdataset import StreamSample
from toolkit.errors import RunError
from toolkit.train.accumulation import split_spec


def item(path: Path, flip: bool = False) -> BucketedSample:
    crop = ResizeCrop(Size(8, 6), 1, 0, Size(6, 6))
    return BucketedSample(
        Sample(
            str(path), f"a {path.stem}", 1, Size(8, 6), "", flip=flip, loss_weight=0.5
        ),
        crop,
    )


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
    torch.testing.assert_close(load_pixels(item(picture, flip=True)), pixels.flip(2))


def test_a_batch_can_be_split_into_halves_with_the_same_keys(picture: Path) -> None:
    batch = PixelLoader([item(picture)] * 3).load(BatchSpec(2, (0, 1, 2), (7, 8, 9)))
    first, second = batch.halves()
    assert (len(first), len(second), first.spec.positions, second.spec.positions) == (
        2,
        1,
        (7, 8),
        (9,),
    )
    assert second.halves()[0].spec == second.spec and second.captions == ("a cat",)
    assert (
        batch.loss_weight_B.tolist() == [0.5] * 3
        and batch.describe() == "pixels (3, 3, 6, 6)"
    )


def test_a_file_that_was_damaged_since_is_named(picture: Path) -> None:
    picture.write_bytes(b"no image")
    with pytest.raises(
        RunError, match=r"cat\.png.* It was changed since the run began"
    ):
        load_pixels(item(picture))


# ---------------------------------------------------------------- of a stream


@pytest.fixture
def stream(make_stream: Callable[..., StreamDataset]) -> StreamDataset:
    return make_stream(
        {"0.png": png("red", (32, 16)), "0.txt": b"a cat"}, resolution=32, multiple=8
    )


def streamed(
    data: bytes,
    name: str = "0.tar/0",
    size: Size = Size(32, 16),  # noqa: B008
) -> StreamSample:
    return StreamSample(name, data, "a cat", size)


def stream_batch(stream: StreamDataset, *samples: StreamSample) -> BatchSpec:
    numbers = tuple(range(len(samples)))
    return BatchSpec(0, numbers, numbers, stream.of_one_size(samples))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_stream_have_one_size_each_that_fits_most_of_their_images(
    make_stream: Callable[..., StreamDataset], workers: int
) -> None:
    wide, tall = png("red", (32, 16)), png("blue", (16, 32))
    files = {f"{number:02}.png": tall if number < 5 else wide for number in range(12)}
    texts = {f"{number:02}.txt": str(number).encode() for number in range(12)}
    stream = make_stream(
        dict(sorted({**files, **texts}.items())), resolution=32, multiple=8
    )
    source = stream_source(stream, 3, 3, StreamPixels(stream).load, workers)
    specs = [micro_batch.spec for micro_batch in islice(source.iterate(None), 4)]
    batches = list(source.load(specs))
    assert sorted(caption for batch in batches for caption in batch.captions) == sorted(
        map(str, range(12))
    )
    by_shape = [tuple(batch.pixels_B3HW.shape) for batch in batches]
    assert sorted(by_shape) == [
        (3, 3, 16, 32),
        (3, 3, 16, 32),
        (3, 3, 32, 16),
        (3, 3, 32, 16),
    ]
    for batch in batches:
        assert batch.pixels_B3HW[:, :, 4, 4].abs().min() == 1, (
            "cut, not stretched or padded"
        )
        assert batch.loss_weight_B.tolist() == [1.0] * 3


def test_a_part_of_a_batch_has_the_size_of_the_whole(stream: StreamDataset) -> None:
    """Several processes share a batch, and each image is to be trained as one process
    would."""
    samples = [streamed(png("red", (16, 32)), size=Size(16, 32))] * 2 + [
        streamed(png("red", (32, 16)))
    ]
    spec = stream_batch(stream, *samples)
    for part in (spec, *split_spec(spec, 3)):
        assert StreamPixels(stream).load(part).pixels_B3HW.shape[2:] == (32, 16)


def test_pixels_of_a_stream_are_those_of_the_file(
    picture: Path, stream: StreamDataset
) -> None:
    stream = replace(stream, multiple=2)
    batch = StreamPixels(stream).load(
        stream_batch(stream, streamed(picture.read_bytes(), size=Size(8, 6)))
    )
    assert torch.equal(
        batch.pixels_B3HW[0], to_tensor(Image.open(picture))
    ) and batch.names == ("0.tar/0",)


def test_a_truncated_image_of_a_stream_is_named(stream: StreamDataset) -> None:
    whole = png("red", (32, 16))
    cut = streamed(whole[:-30], "0.tar/cut")
    with pytest.raises(RunError, match=r"^0\.tar/cut: its image cannot be read \("):
        StreamPixels(stream).load(stream_batch(stream, streamed(whole), cut))


def test_the_batch_of_a_trial_is_the_largest_there_can_be(
    make_stream: Callable[..., StreamDataset],
) -> None:
    stream = make_stream({"0.png": png(), "0.txt": b"a cat"}, resolution=36, multiple=8)
    batch = StreamPixels(stream).trial(2)
    assert batch.pixels_B3HW.shape == (2, 3, 40, 32)
    assert (
        len(batch) == 2
        and batch.spec.positions == (0, 1)
        and batch.captions == ("a cat",) * 2
    )


def test_pictures_of_a_stream_are_its_first_ones(
    make_stream: Callable[..., StreamDataset],
) -> None:
    whole = png("red", (32, 16))
    files = {
        f"{n}.{e}": whole if e == "png" else b"" for n in "012" for e in ("png", "txt")
    }
    stream = make_stream(files, resolution=32, multiple=8)
    pictures = Picture.first_of(stream, 2)
    assert [picture.name.rpartition("/")[2] for picture in pictures] == ["0", "1"]
    assert pictures[1].pixels().shape == (3, 16, 32)

"""Batches of pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.toolkit.data.shard_server import png, write_tar
from toolkit.data.dataloader import StreamSource
from toolkit.data.images import to_tensor
from toolkit.data.pixels import PixelLoader, StreamPixels, load_pixels
from toolkit.data.shards import expand_shards
from toolkit.data.webdataset import SampleKeys, ShardStream, StreamSample, Unreadable
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


# ---------------------------------------------------------------- of a stream


def streamed(data: bytes, name: str = "0.tar/0") -> StreamSample:
    return StreamSample(name, data, "a cat", Size(16, 8))


def stream_batch(*samples: StreamSample) -> BatchSpec:
    numbers = tuple(range(len(samples)))
    return BatchSpec(0, numbers, numbers, samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_stream_have_one_size_each_that_fits_most_of_their_images(tmp_path: Path, workers: int) -> None:
    wide, tall = png("red", (16, 8)), png("blue", (8, 16))
    files = {f"{number:02}.png": tall if number < 5 else wide for number in range(12)}
    texts = {f"{number:02}.txt": str(number).encode() for number in range(12)}
    write_tar(tmp_path / "0.tar", dict(sorted({**files, **texts}.items())))
    shards = expand_shards([str(tmp_path / "0.tar")])
    stream = ShardStream(shards, 3, SampleKeys(label="txt"), batch_size=3, epochs=1)
    loader = StreamPixels(16, 8, stream.unreadable)
    source = StreamSource(stream.read, loader.load, 3, workers, stream.epoch_of)
    batches = list(source.load(micro_batch.spec for micro_batch in source.iterate(None)))
    assert sorted(caption for batch in batches for caption in batch.captions) == sorted(map(str, range(12)))
    by_shape = [tuple(batch.pixels_B3HW.shape) for batch in batches]
    assert sorted(by_shape) == [(3, 3, 8, 16), (3, 3, 8, 16), (3, 3, 16, 8), (3, 3, 16, 8)]
    for batch in batches:
        assert batch.pixels_B3HW[:, :, 4, 4].abs().min() == 1, "cut, not stretched or padded"
        assert batch.loss_weight_B.tolist() == [1.0] * 3


def test_pixels_of_a_stream_are_those_of_the_file(picture: Path) -> None:
    batch = StreamPixels(64, 2, Unreadable()).load(
        stream_batch(streamed(picture.read_bytes())._replace(size=Size(8, 6)))
    )
    assert torch.equal(batch.pixels_B3HW[0], to_tensor(Image.open(picture))) and batch.names == ("0.tar/0",)


def test_a_truncated_image_of_a_stream_is_grey_without_weight_and_counted(said: list[str]) -> None:
    whole = png("red", (16, 8))
    unreadable = Unreadable()
    batch = StreamPixels(16, 8, unreadable).load(stream_batch(streamed(whole), streamed(whole[:-30], "0.tar/cut")))
    assert batch.loss_weight_B.tolist() == [1.0, 0.0] and batch.pixels_B3HW[1].abs().max() == 0
    assert unreadable.samples == 1
    assert len(said) == 1 and said[0].startswith("0.tar/cut: left out: its image cannot be read (")
    with pytest.raises(RunError, match="6 of 0 samples cannot be read, at most 5% are allowed"):
        for _ in range(5):
            StreamPixels(16, 8, unreadable).load(stream_batch(streamed(whole[:-30])))

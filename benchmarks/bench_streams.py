"""A stream of shards against a plain loop over the same tar files: `python benchmarks/bench_streams.py`.

Both read JPEGs and captions from local shards and make batches of tensors of them, in one thread: the stream as a job
does, the loop with tarfile and the same decoder. Without decoding, what is left is the reading alone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_data import write_photos  # noqa: E402

BATCH = 8


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    what = f"{asked.shards} shards of {asked.images} JPEGs {asked.side}x{asked.side}, batches of {BATCH}; 1 thread"
    report.card("streams", what)
    timing.one_thread()
    with TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), asked)
        stream, count = open_stream(Path(folder), asked), asked.shards * asked.images
        variants: dict[str, Callable[[], object]] = {
            "tarfile and decoding": lambda: exhaust(plain_batches(paths, stream.resolution)),
            "the stream": lambda: exhaust(streamed_batches(stream)),
            "tarfile alone": lambda: exhaust(plain_samples(paths)),
            "the stream, not decoded": lambda: exhaust(replace(stream.shard_stream(0, BATCH), epochs=1).read(None)),
        }
        for name, work in variants.items():
            assert work() in (count, -(-count // BATCH)), f"{name}: reads something else"
        rounds = timing.interleave(variants, 1, asked.rounds, asked.noisy)
    print(timing.table({name: times.divided(count) for name, times in rounds.times.items()}), "(per image)")
    rates = {name: count / min(times.cpu) for name, times in rounds.times.items()}
    for name, rate in rates.items():
        print(f"{name:<26} {rate:9.1f} images per CPU second")
    shares = {
        "of decoding": speed(rounds, "the stream", "tarfile and decoding"),
        "of reading": speed(rounds, "the stream, not decoded", "tarfile alone"),
    }
    print(f"the stream has {shares['of decoding']:.2f} of the plain loop's speed; {rounds}")
    report.finish("streams", **vars(asked), images_per_cpu_s=rates, share=shares, **rounds.facts())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=128, help="in each shard")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--noisy", action="store_true", help="also count rounds in which others used the processor")
    return parser.parse_args(argv)


def speed(rounds: timing.Rounds, ours: str, theirs: str) -> float:
    """Speed of ours by theirs, of the minima of CPU time."""
    return timing.ratio(rounds.times[theirs], rounds.times[ours])["cpu_min"]


def exhaust(items: Iterator[object]) -> int:
    return sum(1 for _ in items)


# ------------------------------------------------------------ the same work twice


def plain_samples(paths: Sequence[Path]) -> Iterator[tuple[bytes, str]]:
    """Image file and caption of each sample."""
    for path in paths:
        image = b""
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if member.name.endswith(".jpg"):
                    image = content
                else:
                    yield image, json.loads(content)["prompt"]


def plain_batches(paths: Sequence[Path], resolution: int) -> Iterator[object]:
    import torch

    from toolkit.data.images import open_image, resize_cover_crop, to_tensor
    from toolkit.data.items import bucket_for
    from toolkit.data.types import Size

    waiting = []
    for data, _ in plain_samples(paths):
        image = open_image("", data=data)
        waiting.append(to_tensor(resize_cover_crop(image, bucket_for(Size(*image.size), resolution, 8))))
        if len(waiting) == BATCH:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def streamed_batches(stream) -> Iterator[object]:
    from extensions.from_scratch.pixels import StreamPixels
    from toolkit.data.dataloader import stream_source

    source = stream_source(stream, 0, BATCH, StreamPixels(stream).load, workers=0)
    source = replace(source, read=replace(stream.shard_stream(0, BATCH), epochs=1).read)
    return source.load(found.spec for found in source.iterate(None))


def open_stream(folder: Path, asked: argparse.Namespace):
    from toolkit.config.sections import ImageTrainingSection
    from toolkit.data.stream_dataset import StreamDataset

    entry = {"url": f"{folder}/*.tar", "resolution": max(32, asked.side // 2)}
    return StreamDataset.of(ImageTrainingSection.model_validate({"type": "bench", "datasets": [entry]}), 8)


def write_shards(folder: Path, asked: argparse.Namespace) -> list[Path]:
    """Shards of mosaics of photographs, of which there are 16 for all samples."""
    photos = []
    for path in write_photos(folder / "photos", min(16, asked.images)):
        file = io.BytesIO()
        with Image.open(path) as photo:
            photo.resize((asked.side, asked.side)).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    paths = [folder / f"{shard:03}.tar" for shard in range(asked.shards)]
    for path in paths:
        with tarfile.open(path, "w") as tar:
            for number in range(asked.images):
                add(tar, f"{number:06}.jpg", photos[number % len(photos)])
                add(tar, f"{number:06}.json", json.dumps({"prompt": f"photo {number}", "width": 512}).encode())
    return paths


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()

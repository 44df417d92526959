"""The data side, without a model: `python benchmarks/bench_data.py`.

Images: how fast JPEGs of 1024x1024 become tensors, in one thread, by stage, and through the whole building of the
cache with encoders that do nothing. Folders: how long the scan of many images takes, again at a second start, and how
much memory; each scan in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402

PHOTOS = sorted((ROOT / "config" / "examples" / "photos").rglob("*.jpg"))
SIDE = 1024
BUCKETS = (1024, 768)
LINKS_PER_FILE = 20_000
"""File systems limit how many names a file may have (ext4: 65,000)."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.scan_only:
        print(json.dumps(scan_once(Path(asked.scan_only))))
        return
    report.card("data", f"JPEG {SIDE}x{SIDE} (mosaics of photographs, quality 90), {asked.pictures} of them; 1 thread")
    with TemporaryDirectory() as folder:
        folders = {count: link_images(Path(folder) / f"scan_{count}", count) for count in asked.counts}
        pictures = picture_rates(Path(folder), asked)  # meanwhile the links get old enough to be remembered
        scans = {count: scans_of(folder, count) for count, folder in folders.items()}
    report.finish("data", **vars(asked), images_per_cpu_s=pictures, scans=scans)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 1000, 10_000], help="images per scanned folder")
    parser.add_argument("--scan-only", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ------------------------------------------------------------ images


def picture_rates(folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Images per CPU second of each stage; the CPU time is what one core spends on them, whatever else runs."""
    import torch

    from toolkit.data.images import inspect_image, open_image, resize_cover_crop, to_tensor
    from toolkit.data.items import bucket_for
    from toolkit.data.types import Sample, Size

    torch.set_num_threads(1)
    files = write_photos(folder / "photos", asked.pictures)
    crops = {side: bucket_for(Size(SIDE, SIDE), side, 16) for side in BUCKETS}
    samples = [Sample(str(path), "", 1, Size(SIDE, SIDE), str(folder)) for path in files]
    ready = open_image(files[0])
    stages: dict[str, Callable[[Path], object]] = {
        "check at the scan": inspect_image,
        "decode": open_image,
        "to tensor": lambda _: to_tensor(ready),
    }
    for side, crop in crops.items():
        stages[f"resize to {side}"] = lambda _, crop=crop: resize_cover_crop(ready, crop)
        stages[f"decode, resize to {side}, to tensor"] = lambda path, crop=crop: to_tensor(
            resize_cover_crop(open_image(path), crop)
        )
    rates = {
        name: images_per_s(lambda work=work: [work(path) for path in files], asked) for name, work in stages.items()
    }
    for side, crop in crops.items():
        built = images_per_s(lambda side=side, crop=crop: build_cache(folder / f"cache_{side}", samples, crop), asked)
        rates[f"cache built at {side}, encoders idle"] = built
    print(f"{'images per CPU second and core':<40}")
    for name, rate in rates.items():
        print(f"  {name:<38} {rate:8.1f}   {1e3 / rate:7.2f} ms each")
    return rates


def images_per_s(work: Callable[[], object], asked: argparse.Namespace) -> float:
    begin = time.process_time()
    work()
    return asked.pictures / (time.process_time() - begin)


def build_cache(folder: Path, samples: Sequence, crop: object) -> None:
    """Everything that happens to a dataset before training, but the encoding itself."""
    import torch

    from toolkit.data.cache import TensorCache
    from toolkit.data.latent_cache import CachePair, encode_items
    from toolkit.data.types import BucketedSample

    idle = SimpleNamespace(
        cache_key=lambda part: part,
        family=SimpleNamespace(sure_prompt=10**6, text_sees_references=True, pixel_channels=3),
        prompt_error=lambda prompt, target, references: None,
        encode_images=lambda pixels_BCHW: torch.zeros(1, 16, pixels_BCHW.shape[-2] // 8, pixels_BCHW.shape[-1] // 8),
        encode_prompt=lambda prompt, references: torch.zeros(280, 3584),
    )
    stores = CachePair(TensorCache(folder / "latents"), TensorCache(folder / "text"))
    encode_items([BucketedSample(sample, crop) for sample in samples], idle, lambda _: stores, torch.bfloat16)


def write_photos(folder: Path, count: int) -> list[Path]:
    """Mosaics of real photographs at their own size, so that they hold as much detail as photographs do."""
    folder.mkdir()
    photos = []
    for path in PHOTOS:
        with Image.open(path) as photo:
            photos.append(photo.convert("RGB"))
    turns = list(Image.Transpose)
    paths = [folder / f"photo_{index:04d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        mosaic = Image.new("RGB", (SIDE, SIDE))
        for number, (left, top) in enumerate(product(range(0, SIDE, 300), repeat=2)):
            mosaic.paste(photos[(index + number) % len(photos)], (left, top))
        mosaic.transpose(turns[index % len(turns)]).save(path, quality=90)
    return paths


# ------------------------------------------------------------ folders


def scans_of(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """First and second start on a folder of `count` small images."""
    from toolkit.data.directory import MIN_FILE_AGE_NS

    time.sleep(MIN_FILE_AGE_NS / 1e9)  # of files that were written just now a start remembers nothing
    command = [sys.executable, str(Path(__file__).resolve()), "--scan-only", str(folder)]
    results = {}
    for start in ("first", "second"):
        child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        results[start] = json.loads(child.stdout.splitlines()[-1])
    print(f"{count:,} images")
    for start, found in results.items():
        print(
            f"  {start + ' start':<13} scan {found['scan_s']:7.3f} s (CPU {found['scan_cpu_s']:.3f}), plan "
            f"{found['plan_s']:6.3f} s, order of an epoch {found['order_s']:6.3f} s, digests "
            f"{found['digests_s']:7.3f} s (CPU {found['digests_cpu_s']:.3f}), keeping what was learned "
            f"{found['save_s']:6.3f} s, peak {found['peak_mb']:.0f} MB ({found['start_mb']:.0f} before)"
        )
    return results


def link_images(folder: Path, count: int) -> Path:
    """`count` names of a few small images, and as many of their captions."""
    folder.mkdir()
    for index in range(count):
        path, source = folder / f"{index:06d}.jpg", folder / f"{index - index % LINKS_PER_FILE:06d}.jpg"
        if path == source:
            Image.effect_noise((64, 48), index + 1).convert("RGB").save(path, quality=90)
            path.with_suffix(".txt").write_text("a photo of a person, studio light", encoding="utf-8")
        else:
            os.link(source, path)
            os.link(source.with_suffix(".txt"), path.with_suffix(".txt"))
    return folder


def scan_once(folder: Path) -> dict[str, float]:
    """What a start does with its datasets before anything is encoded: seconds, and megabytes of this process."""
    from toolkit.config.dataset import DatasetConfig
    from toolkit.config.train import TrainConfig
    from toolkit.data.directory import ScanCache
    from toolkit.data.epoch_order import count_batches, epoch_batches
    from toolkit.data.items import scan_items
    from toolkit.data.run_plan import folder_plans

    datasets = [DatasetConfig(folder_path=str(folder))]
    section = SimpleNamespace(
        datasets=datasets, streamed=None, reads_captions=True, trigger_word=None, train=TrainConfig()
    )
    before = peak_mb()
    scan_cache = ScanCache.beside(f"{folder}_output")
    wall, cpu = time.perf_counter(), time.process_time()
    scan, items = scan_items(section, 16, scan_cache)
    found = {"scan_s": time.perf_counter() - wall, "scan_cpu_s": time.process_time() - cpu}
    found["plan_s"] = seconds(lambda: (count_batches(items, 1), folder_plans(scan.folders, items)))
    order = [seconds(lambda: epoch_batches(items, 1, seed=1, epoch=0)) for _ in range(1 if len(items) > 5000 else 3)]
    found |= {"order_s": median(order), "start_mb": before, "peak_mb": peak_mb()}
    from toolkit.data.fingerprint import fingerprint  # loads torch: after the peak was read

    cpu = time.process_time()
    found["digests_s"] = seconds(lambda: fingerprint(scan.samples))
    found["digests_cpu_s"] = time.process_time() - cpu
    return found | {"save_s": seconds(scan_cache.save)}


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_mb() -> float:
    """Largest resident size of this process so far; not `ru_maxrss`, which begins at that of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    main()

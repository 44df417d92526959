"""From the datasets of a job to the items it trains on: every image at each of its
sizes. No torch, no pixels.

A size keeps the image's own aspect ratio, within an area, on a grid of multiples. There
is no fixed list of buckets; images of the same size after rounding share one. Only a
rectangle is one size for all. The numbers equal those of ai-toolkit
(`toolkit/buckets.py:get_bucket_for_image_size` and `BucketsMixin.setup_buckets`), which
`tests/golden/buckets.json` records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import product
from math import ceil, prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config.sections.dataset import Rectangle, sides_of
from toolkit.config.sections.output import SampleItem
from toolkit.contracts.data import BucketedSample, Focus, ResizeCrop, Sample, Size
from toolkit.data.pixels.images import (
    MAX_PIXELS,
    ImageError,
    image_size,
    inspect_image,
    reference_error,
)
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.folder import DatasetScan, scan_datasets
from toolkit.data.scan.found import repeats_of
from toolkit.errors import DataErrors, Diagnostic, UserError

if TYPE_CHECKING:
    from toolkit.config.sections.trainer import ImageTrainingSection
    from toolkit.contracts.model import ModelFacts

SIZE_MULTIPLE = 32
"""The sides of a bucket are multiples of this many pixels where no model is known. It
is the value of Qwen-Image-Edit."""


def bucket_for(
    size: Size, resolution: int | Rectangle, divisibility: int
) -> ResizeCrop:
    """How an image of `size` pixels is resized and cut for training at `resolution`.

    The bucket's area is at most resolution², its sides are multiples of `divisibility`:
    of both sides rounded down or up to that grid, the pair whose area is nearest to the
    image's; a small image is enlarged only as far as the grid demands. A rectangle
    always gives itself, its sides rounded down to multiples.

    >>> bucket_for(Size(4000, 3000), resolution=1024, divisibility=32).bucket
    Size(width=1152, height=896)
    """
    largest = Size(*sides_of(resolution))
    if min(size) < 1 or divisibility < 1 or min(largest) < divisibility:
        raise ValueError(
            f"no bucket for {size} at resolution {resolution}, multiples of {divisibility}"
        )
    if isinstance(resolution, Rectangle):
        return cover(
            size, Size(*(side // divisibility * divisibility for side in largest))
        )
    limit = resolution * resolution
    area = min(prod(size), limit)
    scale = sqrt(area / prod(size))
    sides = []
    for length in (size.width * scale, size.height * scale):
        below = int(length // divisibility)
        above = ceil(length / divisibility)
        sides.append([max(1, steps) * divisibility for steps in (below, above)])
    fitting = [Size(*pair) for pair in product(*sides) if prod(pair) <= limit]
    if fitting:
        return cover(size, min(fitting, key=lambda pair: abs(prod(pair) - area)))
    # So long and thin that its short side needs enlarging: as long as the area allows.
    long_side = limit // divisibility // divisibility * divisibility
    if size.width >= size.height:
        return cover(size, Size(long_side, divisibility))
    return cover(size, Size(divisibility, long_side))


def largest_bucket(resolution: int | Rectangle, divisibility: int) -> Size:
    """The size with the most pixels that `bucket_for` gives an image whose sides are at
    most 1 to 4.

    >>> largest_bucket(1024, 32)
    Size(width=1024, height=1024)
    """
    if isinstance(resolution, Rectangle):
        return bucket_for(Size(1, 1), resolution, divisibility).bucket
    limit = resolution * resolution
    widths = range(divisibility, 2 * resolution + divisibility, divisibility)
    sizes = [
        Size(width, limit // width // divisibility * divisibility) for width in widths
    ]
    return max(
        (size for size in sizes if max(size) <= 4 * min(size)),
        key=lambda size: (prod(size), min(size)),
    )


def cover(size: Size, bucket: Size) -> ResizeCrop:
    """How an image of `size` pixels fills `bucket`: scaled, with its aspect ratio kept,
    until it covers the bucket, and cut evenly on both sides.

    >>> crop = cover(Size(1000, 500), Size(512, 512))
    >>> crop.scaled, crop.left
    (Size(width=1024, height=512), 256)
    """
    scale = max(bucket.width / size.width, bucket.height / size.height)
    scaled = Size(ceil(size.width * scale), ceil(size.height * scale))
    left = (scaled.width - bucket.width) // 2
    top = (scaled.height - bucket.height) // 2
    return ResizeCrop(scaled, left, top, bucket)


def make_items(
    samples: Iterable[Sample],
    resolutions_of: Callable[[Sample], tuple[int | Rectangle, ...]],
    divisibility: int,
) -> tuple[BucketedSample, ...]:
    """Each image once per distinct resolution of its dataset, in the order given
    there."""

    @cache  # images of one size are many, and share the objects
    def crops(
        size: Size, resolutions: tuple[int | Rectangle, ...], focus: Focus
    ) -> list[ResizeCrop]:
        distinct = dict.fromkeys(resolutions)
        return [
            bucket_for(size, resolution, divisibility).at(focus)
            for resolution in distinct
        ]

    return tuple(
        BucketedSample(sample, crop)
        for sample in samples
        for crop in crops(sample.size, resolutions_of(sample), sample.focus)
    )


MAX_USES = 10_000_000
"""Uses of images in an epoch: their order takes 20 s and 2 GB then."""


def scan_items(
    section: ImageTrainingSection,
    size_multiple: int,
    scan_cache: ScanCache | None = None,
    forgiven: list[Diagnostic] | None = None,
) -> tuple[DatasetScan, tuple[BucketedSample, ...]]:
    """Scans `section.datasets` and assigns each image to its buckets.

    A stream is not scanned (see `stream_dataset`).
    size_multiple: sides of a bucket are multiples of this many pixels. scan_cache,
    forgiven: as of `scan_datasets`. Raises DataErrors naming every offending
    file, or the folder with the most uses where there are too many.
    """
    folders = [] if section.streamed else section.datasets
    settings = section.validation
    is_separate = folders and settings and settings.folder_path
    also = [settings.dataset(folders)] if settings and is_separate else []
    scan = scan_datasets(
        folders,
        section.trigger_word,
        scan_cache,
        forgiven,
        section.reads_captions,
        also,
    )
    resolutions = [dataset.resolution for dataset in section.datasets]
    items = make_items(
        scan.samples, lambda sample: resolutions[sample.dataset], size_multiple
    )
    strips = {
        sample.image: f"is enlarged to {crop.scaled} pixels before it is cut. Crop it"
        for sample, crop in items
        if prod(crop.scaled) > MAX_PIXELS
    }
    _refuse(strips.items())
    uses = Counter[str]()
    for sample, _ in items:
        uses[sample.folder] += sample.repeats
    if uses.total() > MAX_USES:
        (folder, most), *_ = uses.most_common(1)
        limit = f"at most {MAX_USES:,} can be put in order. Lower its repeats"
        used = {sample.repeats for sample, _ in items if sample.folder == folder}
        if repeats_of(folder) in used:
            limit += ", or, if the number is part of its name, give 'num_repeats: 1'"
        reason = f"{most:,} uses of images per epoch, {uses.total():,} with all folders; {limit}"
        raise DataErrors([Diagnostic((folder,), reason)])
    return scan, items


def refuse_references(items: Iterable[BucketedSample], family: ModelFacts) -> None:
    """Raises DataErrors naming every image with more control images than the family
    takes."""
    most = family.max_references
    # numbered files are in that list too
    what = "the list of its control images" if most else "control_path"
    counts = {sample.image: len(sample.control_images) for sample, _ in items}
    _refuse(
        (image, family.too_many_references(count, what))
        for image, count in counts.items()
        if count > most
    )


def _refuse(reasons: Iterable[tuple[str, str]]) -> None:
    """Raises DataErrors for the files that have a reason, if any has."""
    mistakes = [Diagnostic((file,), reason) for file, reason in reasons]
    if mistakes:
        raise DataErrors(mistakes)


def sample_inputs(place: str, item: SampleItem, family: ModelFacts) -> list[Size]:
    """Pixels of the control images of a sample prompt; one that an earlier process of
    the job will write passes as square. Raises DataErrors naming the first of its
    images that cannot be used, or more of them than the family takes. place: key of the
    prompt."""
    paths, sizes = item.ctrl_img, []
    try:
        if len(paths) > family.max_references:
            raise UserError(family.too_many_references(len(paths), "ctrl_img"))
        for path in paths:
            file = Path(path).expanduser()
            sizes.append(inspect_image(file).size if file.exists() else Size(1, 1))
            reason = reference_error(sizes[-1])
            if reason:
                raise ImageError(path, reason)
    except (ImageError, UserError) as error:
        raise DataErrors([Diagnostic((f"{place}.ctrl_img",), str(error))]) from error
    return sizes


def refuse_large(items: Iterable[BucketedSample], family: ModelFacts) -> None:
    """Raises DataErrors naming every image that is trained at a larger size than the
    family has positions for."""
    reasons = {
        sample.image: too_large(crop.bucket, family)
        for sample, crop in items
        if family.longest_side and max(crop.bucket) > family.longest_side
    }
    _refuse(reasons.items())


def too_large(size: Size, family: ModelFacts) -> str:
    """The error message for an image of a size that the family has no positions for;
    empty: it has."""
    if family.longest_side is None or max(size) <= family.longest_side:
        return ""
    return (
        f"at {size} pixels it is longer than "
        f"the {family.longest_side} that the model has positions for. Give a lower size"
    )


PromptFault = Callable[[str, Size, Sequence[Size]], str | None]
"""From a prompt, the target's size and the sizes of the control images to an error
message, or None."""


def refuse_long_captions(
    items: Iterable[BucketedSample], fault: PromptFault, sure: int = 0
) -> None:
    """Raises DataErrors naming every image whose caption is too long for the model.

    sure: captions of at most so many characters always fit, and are not checked.
    """
    messages: dict[str, str] = {}
    for sample, crop in items:
        for text in sample.texts:
            if len(text) > sure and sample.image not in messages:
                sizes = [image_size(path) for path in sample.control_images]
                reason = fault(text, crop.bucket, sizes)
                if reason:
                    messages[sample.image] = reason
    _refuse((file, f"its caption has {message}") for file, message in messages.items())

"""Which size an image is trained at: its own aspect ratio, within an area, on a grid of multiples.

There is no fixed list of buckets; images of the same size after rounding share one. The numbers
equal those of ai-toolkit (`toolkit/buckets.py:get_bucket_for_image_size` and
`BucketsMixin.setup_buckets`), which `tests/golden/buckets.json` records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from math import ceil, sqrt

from toolkit.interfaces import BucketedSample, ResizeCrop, Sample, Size


def bucket_for(size: Size, resolution: int, divisibility: int, square_crop: bool = False) -> ResizeCrop:
    """How an image of `size` pixels is resized and cut for training at `resolution`.

    The bucket's area is at most resolution², its sides are multiples of `divisibility`; a small
    image is enlarged only as far as that grid demands. `square_crop` always gives the full square.
    """
    if min(size) < 1 or divisibility < 1 or resolution < divisibility:
        raise ValueError(f"no bucket for {size} at resolution {resolution}, multiples of {divisibility}")
    bucket = _square(resolution, divisibility) if square_crop else _nearest(size, resolution, divisibility)
    scale = max(bucket.width / size.width, bucket.height / size.height)
    scaled = Size(ceil(size.width * scale), ceil(size.height * scale))
    left, top = (scaled.width - bucket.width) // 2, (scaled.height - bucket.height) // 2
    return ResizeCrop(scaled, left, top, bucket)


def make_items(
    samples: Iterable[Sample], resolutions_of: Callable[[Sample], tuple[int, ...]], divisibility: int
) -> tuple[BucketedSample, ...]:
    """Each image once per distinct resolution of its dataset, in the order given there."""

    @cache  # images of one size are many, and share the objects
    def crops(size: Size, resolutions: tuple[int, ...]) -> list[ResizeCrop]:
        return [bucket_for(size, resolution, divisibility) for resolution in dict.fromkeys(resolutions)]

    return tuple(
        BucketedSample(sample, crop) for sample in samples for crop in crops(sample.size, resolutions_of(sample))
    )


def _square(resolution: int, divisibility: int) -> Size:
    side = resolution // divisibility * divisibility
    return Size(side, side)


def _nearest(size: Size, resolution: int, divisibility: int) -> Size:
    """Of both sides rounded down or up to the grid, the pair whose area is nearest to the wanted one."""
    limit = resolution * resolution
    area = min(size.width * size.height, limit)
    scale = sqrt(area / (size.width * size.height))
    pairs = product(
        _around(size.width * scale, divisibility),
        _around(size.height * scale, divisibility),
    )
    fitting = [Size(*pair) for pair in pairs if pair[0] * pair[1] <= limit]
    if not fitting:
        return _strip(size, limit, divisibility)
    return min(fitting, key=lambda pair: abs(pair.width * pair.height - area))


def _around(length: float, divisibility: int) -> tuple[int, int]:
    below = int(length // divisibility) * divisibility
    above = ceil(length / divisibility) * divisibility
    return max(divisibility, below), max(divisibility, above)


def _strip(size: Size, limit: int, divisibility: int) -> Size:
    """For an image so long and thin that its short side needs enlarging: as long as the area allows."""
    long_side = limit // divisibility // divisibility * divisibility
    wide = size.width >= size.height
    return Size(long_side, divisibility) if wide else Size(divisibility, long_side)

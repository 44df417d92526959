"""Whether two small images show the same image: also cut a little, resized, compressed,
brightened, turned or mirrored.

The module works on arrays alone and opens no file. `checks` compares the images of a
dataset with `most_like`, for the checks `duplicate` and `leak`.

Shape suffixes: N images, S side of a small image in pixels, D numbers of a normalised
image; 3 is red, green, blue.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy

LEAST_CORRELATION = 0.6
"""Least correlation of two small images that are worth aligning. One cut by 5 % has
0.82 to 0.99 to the whole, textures alone less."""

NEAREST = 6
"""Number of the most similar images, in every orientation, that are aligned with an
image."""

MOST_DIFFERENT, OF_CONTRAST, LEAST_DIFFERENT = 50, 0.15, 3
"""Grey values, share of an image's contrast, and least grey values: where 1 % of the
pixels of two aligned images differ by more, something is changed in one of them. A flat
drawing in pale colours differs by little where it shows another shape."""

MOST_STRETCHED = 1.3
"""Ratio of the scales of rows and columns: a copy that was cut is stretched less."""

PROMISING = 0.75
"""Below this `likeness` two images are not looked at further."""

NOISE = 2
"""Change by compressing and resizing: root mean square, in grey values."""

FLAT = 1.5
"""Standard deviation below which an image cannot be recognised."""


ORIENTATIONS = (
    *("", "turned left", "upside down", "turned right"),
    *("mirrored", "mirrored and turned left"),
    *("mirrored top to bottom", "mirrored and turned right"),
)
"""Orientation of a copy, in words, in the order of the numbers of `turned`."""


def turned(pictures: numpy.ndarray, orientation: int) -> numpy.ndarray:
    """Small images [..., S, S, 3], mirrored left to right from 4 on, then turned left by
    as many quarters. They have no aspect ratio, so that a portrait can be turned to a
    landscape."""
    if orientation >= 4:
        pictures = pictures[..., ::-1, :]
    return numpy.rot90(pictures, orientation % 4, (-3, -2))


def is_flat(small_SS3: numpy.ndarray) -> bool:
    return bool(small_SS3.std(axis=(0, 1)).max() < FLAT)


def most_like(
    pictures_NSS3: numpy.ndarray,
    others_NSS3: numpy.ndarray,
    least: float,
    earlier: bool,
    at_once: int = 256,
) -> Iterator[tuple[int, int, str]]:
    """For each image that is a copy of one of the others: the indices of both, and its
    orientation (`ORIENTATIONS`).

    least: the lowest `likeness`. earlier: both are the same list, and an image is only
    compared with those before it.
    """
    turns = range(len(ORIENTATIONS))
    known = [_normalised(turned(others_NSS3, turn)) for turn in turns]
    for start in range(0, len(pictures_NSS3), at_once):
        looked_for = _normalised(pictures_NSS3[start : start + at_once])
        products = [looked_for @ known_ND.T for known_ND in known]
        for here, correlations in enumerate(numpy.stack(products, axis=-1), start):
            flat = (correlations[:here] if earlier else correlations).reshape(-1)
            nearest = numpy.argsort(-flat, kind="stable")[:NEAREST].tolist()
            for place in nearest:
                other, turn = divmod(place, len(ORIENTATIONS))
                there = turned(others_NSS3[other], turn)
                if (
                    flat[place] >= LEAST_CORRELATION
                    and likeness(pictures_NSS3[here], there) >= least
                ):
                    yield here, other, ORIENTATIONS[turn]
                    break


def _normalised(pictures_NSS3: numpy.ndarray) -> numpy.ndarray:
    """[N, D] float32, D = S / 2 * S / 2 * 3: halved, without their mean, of length 1,
    so that a product is a correlation."""
    count, side = pictures_NSS3.shape[:2]
    halved = pictures_NSS3.reshape(count, side // 2, 2, side // 2, 2, 3).mean(
        (2, 4), dtype=numpy.float32
    )
    flat: numpy.ndarray = halved.reshape(count, 3 * (side // 2) ** 2)
    flat -= flat.mean(1, keepdims=True)
    flat /= numpy.maximum(numpy.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat


def likeness(a_SS3: numpy.ndarray, b_SS3: numpy.ndarray) -> float:
    """Share of the variance of one image that the other explains once they are aligned,
    0 to 1; 0 where a spot differs.

    The other is shifted, its sides scaled, its brightness and contrast fitted:
    Gauss-Newton steps, first on halved images. Source: Lucas and Kanade, "An iterative
    image registration technique", IJCAI 1981.
    """
    explained = _aligned(a_SS3, b_SS3)
    return (
        max(explained, _aligned(b_SS3, a_SS3)) if explained > PROMISING else explained
    )


def _aligned(a_SS3: numpy.ndarray, b_SS3: numpy.ndarray) -> float:
    """`likeness` where `a` is a part of `b`. A move is the scale and shift of rows,
    then of columns, relative to the side."""
    move = numpy.zeros(4)
    most = numpy.array([0.4, 0.25, 0.4, 0.25])
    for halved, steps in ((True, 8), (False, 4)):
        a, b = (_smooth(picture, halved) for picture in (a_SS3, b_SS3))
        grey_a = a.mean(2)
        grey_b = b.mean(2)
        for _ in range(steps):
            moved, inside = _moved(grey_b, move)
            places = (numpy.arange(len(a)) + 0.5) / len(a) - 0.5
            slope_y, slope_x = numpy.gradient(moved, 1 / len(a))
            terms = (
                slope_y * places[:, None],
                slope_y,
                slope_x * places,
                slope_x,
                moved,
                numpy.ones_like(moved),
            )
            known = numpy.stack([term[inside] for term in terms])
            fit = numpy.linalg.solve(
                known @ known.T + 1e-4 * numpy.eye(6), known @ grey_a[inside]
            )
            move = numpy.clip(
                move + (fit[:4] / max(fit[4], 0.2)).clip(-0.1, 0.1), -most, most
            )
        moved, inside = _moved(b, move)
        x = moved[inside]
        y = a[inside]
        if len(x) < 0.6 * len(a) ** 2 or x.std() < FLAT:
            return 0.0
        slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
        left = y - y.mean() - slope * (x - x.mean())
        noise = min(NOISE**2, left.var(), y.var() / 20)
        explained = float(1 - (left.var() - noise) / max(y.var(), 1e-6))
        if explained < PROMISING:
            return 0.0
    stretched = (1 + move[0]) / (1 + move[2])
    if not 1 / MOST_STRETCHED <= stretched <= MOST_STRETCHED:
        return 0.0
    contrast = numpy.subtract(*numpy.percentile(y, [99, 1]))
    allowed = min(MOST_DIFFERENT, max(LEAST_DIFFERENT, OF_CONTRAST * contrast))
    differs = numpy.percentile(numpy.abs(left).max(-1), 99) > allowed
    return 0.0 if differs else explained


def _smooth(picture_SS3: numpy.ndarray, halved: bool) -> numpy.ndarray:
    side = len(picture_SS3)
    picture = picture_SS3.astype(numpy.float64)
    if halved:
        picture = picture.reshape(side // 2, 2, side // 2, 2, 3).mean((1, 3))
    padded = numpy.pad(picture, ((1, 1), (1, 1), (0, 0)), "edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth: numpy.ndarray = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return smooth


def _moved(
    picture: numpy.ndarray, move: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The image sampled where the move leads, linearly between pixels; and which pixels
    are inside of it, [S, S]."""
    side = len(picture)
    inside = []
    for axis, (scale, shift) in enumerate(move.reshape(2, 2)):
        at = (
            (1 + scale) * ((numpy.arange(side) + 0.5) / side - 0.5) + shift + 0.5
        ) * side - 0.5
        below = numpy.clip(numpy.floor(at).astype(int), 0, side - 2)
        shape = [1] * picture.ndim
        shape[axis] = -1
        part = numpy.clip(at - below, 0, 1).reshape(shape)
        picture = (
            picture.take(below, axis) * (1 - part)
            + picture.take(below + 1, axis) * part
        )
        inside.append((at > -0.5) & (at < side - 0.5))
    return picture, inside[0][:, None] & inside[1]

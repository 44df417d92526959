"""The alignment of an image with its reference: zoom, rotation and shift between them,
and a copy of the reference that is aligned. Imports no torch.

Both images are converted to maps of edges, which survive a change of colours, contrast
and style. The shift of each of many patches is measured by phase correlation (Kuglin
and Hines, 1975), to a fraction of a pixel by a parabola. One zoom, rotation and shift
is fitted to these shifts, in several rounds. Patches that do not follow it, where
something was edited, lose their weight (Tukey's biweight). If the edges do not match
afterwards, the fit starts again from the best of a grid of zooms and rotations.

`lint` measures pairs with it; the tool `align` also writes
aligned copies (`onto_image`). It does not decide what to do about a drift.

Shape suffixes: H rows, W columns, N patches, P side of a patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy
from PIL import Image

LARGEST = 1024
"""Pixels of the longer side at which images are measured."""

SMALL = 160
"""The same for the grid of first guesses."""

ZOOMS = numpy.arange(-6.4, 6.5, 0.8) / 100
ROTATIONS = numpy.arange(-2.8, 2.9, 0.7)
"""The grid of first guesses, which the patches refine."""

PATCH = 64
"""Least pixels of a patch's side; an eighth of a larger image."""

SURE = 0.5
"""Correlation of edges that wrong measures never reach: above it the grid is not
tried."""

MEASURABLE = 0.3
"""Least correlation of the aligned edges for a measure to count."""

CERTAIN = 4.0
"""A drift of more standard errors than this is reported."""

MOST_ERROR = 0.25
"""Largest standard error, in pixels at the measured size, for a measure to count. The
patches of a blurred or changed image do not agree."""

ROUNDS = 12
HOPELESS = 0.05
"""Share of the patches that follow one move. With a lower share further rounds are
useless: 1 % of the patches follow a move by chance."""

SAME_SHAPE = 0.04
"""Difference between two ratios of width and height that are taken to be the same."""

SPREAD = 2
"""Pixels on all sides over which edges are averaged twice for a second measure."""

SAME_SHIFT = 0.5
"""If the shifts of both measures differ by this number of pixels, neither counts. A
relief, for example, has two edges next to each edge of the image, and either may be
taken for it."""

FAR, STAYS = 4.0, 0.65
"""Where a shift of more than so many pixels moves edges as far, those that lie on each
other without it correlate by less than this part of what they do with it. Else
something in the image was moved, and not the image: 0.72 and more of figures in another
pose, up to 0.51 of pairs that are off. A turn about something round leaves its edges
where they are, so that only shifts are asked."""

SETTLED = 0.01
"""Pixels by which a corner moves in a round that is the last."""

Array = numpy.ndarray


class Alignment(NamedTuple):
    """A point of the image at p from its middle is at (1 + zoom) R(rotation) p + shift
    in the reference.

    >>> alignment = Alignment(0.02, 0.0, (3.0, 0.0), peak=0.8, error=0.1, size=(1000, 800))
    >>> print(alignment)
    zoom +2.00%, rotation +0.00 degrees, shift +3.0, +0.0 pixels
    """

    zoom: float
    """Scale of the reference against the image; 0.02 is 2 % larger."""

    rotation: float
    """Degrees, clockwise as images are seen."""

    shift: tuple[float, float]
    """Right and down, pixels of the image."""

    peak: float
    """Correlation of the edges, 0 to 1."""

    error: float
    """Standard error of the drift, pixels: how far the patches are from telling the
    same."""

    size: tuple[int, int]
    """Width and height of the image."""

    @property
    def is_measurable(self) -> bool:
        """Whether the pair is alike in enough places for the numbers to have a
        meaning."""
        return self.peak >= MEASURABLE and self.error <= MOST_ERROR * self._times_larger

    @property
    def _times_larger(self) -> float:
        """The longer side as a multiple of LARGEST; 1 for smaller images."""
        return max(1.0, max(self.size) / LARGEST)

    @property
    def is_certain(self) -> bool:
        """Whether the drift is larger than the possible error of the measure."""
        return self.is_measurable and self.drift > CERTAIN * self.error

    @property
    def drift(self) -> float:
        """The largest distance, in pixels, between a corner and its aligned place."""
        a, b = _linear(self)
        x, y = (side / 2 for side in self.size)
        corners = ((sign_x * x, sign_y * y) for sign_x in (-1, 1) for sign_y in (-1, 1))
        (dx, dy) = self.shift
        return max(
            math.hypot((a - 1) * u - b * v + dx, b * u + (a - 1) * v + dy)
            for u, v in corners
        )

    def inverse(self) -> Alignment:
        """How the reference lies on the image: each point of it against where it is in
        the image."""
        zoom = 1 / (1 + self.zoom) - 1
        rotation = -self.rotation
        a, b = _linear(self._replace(zoom=zoom, rotation=rotation))
        x, y = self.shift
        return self._replace(
            zoom=zoom, rotation=rotation, shift=(b * y - a * x, -b * x - a * y)
        )

    def is_off(self, most_drift: float) -> bool:
        """Whether the drift is certainly more than `most_drift` pixels, of images up to
        LARGEST pixels long; of larger ones more in proportion."""
        return self.is_certain and self.drift > most_drift * self._times_larger

    def __str__(self) -> str:
        x, y = self.shift
        return f"zoom {self.zoom:+.2%}, rotation {self.rotation:+.2f} degrees, shift {x:+.1f}, {y:+.1f} pixels"


def same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two images have the same ratio of width and height, but for
    SAME_SHAPE."""
    one = first[0] * second[1]
    other = second[0] * first[1]
    return max(one, other) <= min(one, other) * (1 + SAME_SHAPE)


def covering(reference: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A reference at the size of its image. It covers the image, and the rest is cut off
    evenly. Nothing is cut off if the ratios of the sides differ only by rounding to
    whole pixels."""
    across = reference.width / size[0]
    down = reference.height / size[1]
    x = y = 0.0
    if (
        abs(across * size[1] - reference.height) > 1
        and abs(down * size[0] - reference.width) > 1
    ):
        x, y = (
            (side - min(across, down) * of) / 2
            for side, of in zip(reference.size, size, strict=True)
        )
    return reference.resize(
        size,
        Image.Resampling.LANCZOS,
        box=(x, y, reference.width - x, reference.height - y),
    )


def measure(image: Image.Image, reference: Image.Image) -> Alignment:
    """How an image lies on its reference, once that covers it (`covering`)."""
    width, height = image.size
    factor = min(1.0, LARGEST / max(image.size))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    a_HW, b_HW = (_edges(picture, size) for picture in (image, reference))
    tried = [_fitted(a_HW, b_HW, (1.0, 0.0, 0.0, 0.0))]
    if tried[0][1] < SURE:
        tried.append(_fitted(a_HW, b_HW, _coarse(image, reference, size)))
    (a, b, x, y), peak, error = max(tried, key=lambda one: one[1])
    zoom = math.hypot(a, b) - 1
    rotation = math.degrees(math.atan2(b, a))
    alignment = Alignment(
        zoom,
        rotation,
        (x * width / size[0], y * height / size[1]),
        peak,
        error / factor,
        image.size,
    )
    if not alignment.is_certain:
        return alignment
    return alignment._replace(
        error=max(alignment.error, _doubt(a_HW, b_HW, (a, b, x, y)) / factor)
    )


Move = tuple[float, float, float, float]
"""(1 + zoom) cos and sin of the rotation, shift right and down."""


def _linear(alignment: Alignment) -> tuple[float, float]:
    angle = math.radians(alignment.rotation)
    return (1 + alignment.zoom) * math.cos(angle), (1 + alignment.zoom) * math.sin(
        angle
    )


def _edges(image: Image.Image, size: tuple[int, int]) -> Array:
    """[H, W] float32: the largest gradient of the three colours, relative to the mean
    around the pixel."""
    pixels = numpy.asarray(covering(image.convert("RGB"), size), dtype=numpy.float32)
    steep_HW = numpy.zeros(pixels.shape[:2], numpy.float32)
    for channel in range(3):
        smooth_HW = _smooth(pixels[..., channel])
        dy, dx = numpy.gradient(smooth_HW)
        steep_HW = numpy.maximum(steep_HW, numpy.hypot(dx, dy))
    usual_HW = _box(steep_HW, max(8, min(size) // 16))
    edges: Array = steep_HW / (usual_HW + 2)
    return edges


def _smooth(map_HW: Array) -> Array:
    padded = numpy.pad(map_HW, 1, "edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth: Array = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return smooth


def _box(map_HW: Array, radius: int) -> Array:
    """Mean over a square around each pixel."""
    for axis in (0, 1):
        pad = [(radius + 1, radius) if dim == axis else (0, 0) for dim in (0, 1)]
        sums = numpy.pad(map_HW, pad, "edge").cumsum(axis, dtype=numpy.float64)
        count = map_HW.shape[axis]
        map_HW = (
            sums.take(range(2 * radius + 1, 2 * radius + 1 + count), axis)
            - sums.take(range(count), axis)
        ) / (2 * radius + 1)
    return map_HW.astype(numpy.float32)


def _warped(
    map_HW: Array, move: Move, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> tuple[Array, Array]:
    """The map of the reference at the pixels of the image, and which of these pixels are
    inside the reference."""
    size = map_HW.shape[1], map_HW.shape[0]
    data, inside_HW = _affine(size, move, margin=2.0)
    return numpy.asarray(
        Image.fromarray(map_HW).transform(size, Image.Transform.AFFINE, data, resample)
    ), inside_HW


def _affine(
    size: tuple[int, int], move: Move, margin: float
) -> tuple[tuple[float, ...], Array]:
    """Pillow's coefficients of a move, and which pixels [H, W] come from so many pixels
    within the reference."""
    width, height = size
    a, b, x, y = move
    cx, cy = width / 2, height / 2
    data = (a, -b, cx - a * cx + b * cy + x, b, a, cy - b * cx - a * cy + y)
    u = numpy.arange(width) + 0.5
    v = (numpy.arange(height) + 0.5)[:, None]
    at_x = data[0] * u + data[1] * v + data[2]
    at_y = data[3] * u + data[4] * v + data[5]
    inside_x = (at_x > margin) & (at_x < width - margin)
    return data, inside_x & (at_y > margin) & (at_y < height - margin)


def _coarse(image: Image.Image, reference: Image.Image, size: tuple[int, int]) -> Move:
    """The best of the grid, by the highest peak."""
    factor = min(1.0, SMALL / max(size))
    small = max(8, round(size[0] * factor)), max(8, round(size[1] * factor))
    a_HW, b_HW = (_edges(picture, small) for picture in (image, reference))
    window = _window(small[1], small[0])
    spectrum = numpy.fft.rfft2(window * (a_HW - a_HW.mean()))
    best = -1.0
    best_shift = (1.0, 0.0, 0.0, 0.0)
    for zoom in ZOOMS:
        for angle in numpy.radians(ROTATIONS):
            a = (1 + zoom) * math.cos(angle)
            b = (1 + zoom) * math.sin(angle)
            moved, _ = _warped(b_HW, (a, b, 0.0, 0.0), Image.Resampling.BILINEAR)
            plane = _phase(
                spectrum, numpy.fft.rfft2(window * (moved - moved.mean())), a_HW.shape
            )
            peak = float(plane.max())
            if peak > best:
                dy, dx = numpy.unravel_index(int(plane.argmax()), plane.shape)
                v = (
                    (float(dx) + small[0] / 2) % small[0] - small[0] / 2,
                    (float(dy) + small[1] / 2) % small[1] - small[1] / 2,
                )
                best = peak
                best_shift = (a, b, *_turned(a, b, *v))
    a, b, x, y = best_shift
    return a, b, x * size[0] / small[0], y * size[1] / small[1]


def _doubt(a_HW: Array, b_HW: Array, move: Move) -> float:
    """Pixels by which a move may be wrong though its patches agree; 0: it is not
    doubted."""
    height, width = a_HW.shape
    a, b, x, y = move
    u = numpy.arange(width) + 0.5 - width / 2
    v = (numpy.arange(height) + 0.5 - height / 2)[:, None]
    moved_HW, far_HW = _warped(b_HW, move)
    far_HW &= numpy.hypot((a - 1) * u - b * v + x, b * u + (a - 1) * v + y) > FAR
    if math.hypot(x, y) > FAR:
        smooth_a_HW = _smooth(a_HW)
        there = _correlation(smooth_a_HW, _smooth(moved_HW), far_HW)
        here = _correlation(smooth_a_HW, _smooth(b_HW), far_HW)
        if here > STAYS * there:
            return math.inf
    a_HW, b_HW = (_box(_box(edges_HW, SPREAD), SPREAD) for edges_HW in (a_HW, b_HW))
    (_, _, again_x, again_y), _, _ = _fitted(a_HW, b_HW, move)
    apart = math.hypot(again_x - x, again_y - y)
    return apart if apart >= SAME_SHIFT else 0.0


def _window(height: int, width: int) -> Array:
    window: Array = (numpy.hanning(height)[:, None] * numpy.hanning(width)).astype(
        numpy.float32
    )
    return window


def _turned(a: float, b: float, x: float, y: float) -> tuple[float, float]:
    """A shift of the image's pixels as one of the reference's."""
    return a * x - b * y, b * x + a * y


def _phase(first: Array, second: Array, shape: tuple[int, ...]) -> Array:
    """Correlation of two spectra whose sizes are half evened out; its peak lies where
    `second` has what `first` has at 0."""
    product = second * first.conj()
    product /= numpy.sqrt(numpy.abs(product)) + 1e-6
    power, other = ((numpy.abs(each) ** 2).sum((-2, -1)) for each in (first, second))
    norm = numpy.sqrt(power * other) ** 0.5 + 1e-6
    plane: Array = numpy.fft.irfft2(product, s=shape[-2:]) / norm[..., None, None]
    return plane


def _fitted(a_HW: Array, b_HW: Array, move: Move) -> tuple[Move, float, float]:
    """The move of all patches together, in some rounds from a first one, the
    correlation and the error that it leaves."""
    height, width = a_HW.shape
    side = min(
        max(PATCH, max(a_HW.shape) // 8), *(length // 2 for length in a_HW.shape)
    )
    if side < 16:
        return move, 0.0, math.inf
    starts = [
        numpy.unique(numpy.linspace(0, n - side, max(2, 2 * n // side)).astype(int))
        for n in a_HW.shape
    ]
    window = _window(side, side)
    places = [(top, left) for top in starts[0] for left in starts[1]]
    xy = numpy.array(places)[:, ::-1] + side / 2 - numpy.array([width, height]) / 2
    a_NPP = _patches(a_HW, places, side, window)
    corner = math.hypot(width, height) / 2
    for number in range(ROUNDS):
        moved_HW, inside_HW = _warped(b_HW, move)
        shift_N2, weight_N = _shifts(a_NPP, _patches(moved_HW, places, side, window))
        inside_N = [
            inside_HW[top : top + side, left : left + side].mean()
            for top, left in places
        ]
        weight_N = weight_N * (numpy.array(inside_N) > 0.9)
        (p, q, x, y), error, share = _similarity(xy, shift_N2, weight_N, corner)
        a, b, dx, dy = move
        (sx, sy), (ca, cb) = _turned(a, b, x, y), _turned(a, b, 1 + p, q)
        move = (ca, cb, dx + sx, dy + sy)
        if math.hypot(p, q) * corner + math.hypot(x, y) < SETTLED or (
            number > 1 and share < HOPELESS
        ):
            break
    moved_HW, inside_HW = _warped(b_HW, move)
    return move, _correlation(_smooth(a_HW), _smooth(moved_HW), inside_HW), error


def _patches(
    map_HW: Array, places: list[tuple[int, int]], side: int, window: Array
) -> Array:
    cut = numpy.stack(
        [map_HW[top : top + side, left : left + side] for top, left in places]
    )
    spread: Array = (cut - cut.mean((1, 2), keepdims=True)) * window
    return spread


def _shifts(a_NPP: Array, b_NPP: Array) -> tuple[Array, Array]:
    """Where each patch of `a` lies in `b`, [N, 2] right and down, and how much it
    counts, [N]."""
    side = a_NPP.shape[1]
    plane = _phase(numpy.fft.rfft2(a_NPP), numpy.fft.rfft2(b_NPP), a_NPP.shape)
    half = side // 2
    plane = numpy.roll(plane, (half, half), (1, 2))
    reach = slice(half - side // 4, half + side // 4 + 1)
    near = plane[:, reach, reach].reshape(len(plane), -1)
    count = side // 4 * 2 + 1
    row, column = (
        place + half - side // 4 for place in numpy.divmod(near.argmax(1), count)
    )
    index = numpy.arange(len(plane))
    at = plane[index, row, column]

    def shift(place: Array, down: int, right: int) -> Array:
        """From the middle to the top of the parabola through three values."""
        before = plane[index, row - down, column - right]
        after = plane[index, row + down, column + right]
        curve = numpy.minimum(before - 2 * at + after, -1e-9)
        top: Array = numpy.clip((before - after) / (2 * curve), -0.5, 0.5)
        shifted: Array = place - half + top
        return shifted

    shift_N2 = numpy.stack([shift(column, 0, 1), shift(row, 1, 0)], 1)
    energy = numpy.sqrt((a_NPP**2).mean((1, 2)))
    strength = numpy.minimum(energy / (numpy.median(energy) + 1e-6), 2)
    return shift_N2, numpy.maximum(at, 0) ** 2 * strength


def _similarity(
    xy: Array, shift_N2: Array, weight_N: Array, corner: float
) -> tuple[Move, float, float]:
    """(p, q, x, y) of shift = (p u - q v + x, q u + p v + y) with the least error,
    patches that do not follow it left out little by little; its standard error `corner`
    pixels from the middle; and the share of the patches that follow it."""
    u, v = xy.T
    one = numpy.ones_like(u)
    zero = numpy.zeros_like(u)
    pairs = ((u, v), (-v, u), (one, zero), (zero, one))
    known = numpy.stack([numpy.concatenate(pair) for pair in pairs], 1)
    wanted = numpy.concatenate(shift_N2.T)
    robust = numpy.ones(len(u))
    # The first fit is by the median shift, which half of the patches may miss.
    fit = numpy.array([0.0, 0.0, *(_median(axis_N, weight_N) for axis_N in shift_N2.T)])
    error = math.inf
    for reach in (4.0, 2.0, 1.0, 1.0, 1.0, 1.0):
        left = numpy.hypot(*(wanted - known @ fit).reshape(2, -1))
        robust = numpy.clip(1 - (left / reach) ** 2, 0, None) ** 2
        weight = numpy.tile(weight_N * robust, 2)
        if (weight > 0).sum() < 8:
            break
        square = known.T @ (weight[:, None] * known)
        inverse = numpy.linalg.inv(square + 1e-9 * numpy.trace(square) * numpy.eye(4))
        fit = inverse @ (known.T @ (weight * wanted))
        # Patches overlap by half along both axes, so that four of them say what one
        # does.
        spread = 4 * (weight * (wanted - known @ fit) ** 2).sum() / weight.sum()
        among = inverse @ (known.T @ ((weight**2)[:, None] * known)) @ inverse
        p, q, x, y = among.diagonal()
        error = math.sqrt(spread * (p * corner**2 + q * corner**2 + x + y))
    share = float((weight_N * robust).sum() / max(weight_N.sum(), 1e-9))
    return tuple(map(float, fit)), error, share  # type: ignore[return-value]


def _median(values_N: Array, weight_N: Array) -> float:
    """The value in the middle of the weights."""
    order = values_N.argsort()
    sums = weight_N[order].cumsum()
    middle = int(numpy.searchsorted(sums, sums[-1] / 2))
    return float(values_N[order[min(middle, len(order) - 1)]])


def _correlation(a_HW: Array, b_HW: Array, inside_HW: Array) -> float:
    if inside_HW.sum() < 64:
        return 0.0
    a = a_HW[inside_HW] - a_HW[inside_HW].mean()
    b = b_HW[inside_HW] - b_HW[inside_HW].mean()
    return max(
        0.0, float((a * b).sum() / (numpy.sqrt((a * a).sum() * (b * b).sum()) + 1e-9))
    )


def onto_image(
    reference: Image.Image, alignment: Alignment
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The reference moved onto its image, at that one's size, and the box of the image
    that it covers whole.

    Pixels are interpolated once, bicubically, from the reference at the image's size.
    """
    whole = covering(reference, alignment.size)
    a, b = _linear(alignment)
    data, inside_HW = _affine(alignment.size, (a, b, *alignment.shift), margin=0.0)
    moved = whole.transform(
        alignment.size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )
    left, top, right, bottom = 0, 0, *alignment.size
    while left < right and top < bottom:
        part = inside_HW[top:bottom, left:right]
        edges = (part[0], part[-1], part[:, 0], part[:, -1])
        outside = [1 - edge.mean() for edge in edges]
        worst = int(numpy.argmax(outside))
        if not outside[worst]:
            break
        top += worst == 0
        bottom -= worst == 1
        left += worst == 2
        right -= worst == 3
    return moved, (left, top, right, bottom)

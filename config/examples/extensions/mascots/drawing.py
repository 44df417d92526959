"""Draws mascots with Pillow: flat colours with darker outlines, four times as large and
averaged down.

A picture's unit is 1/128 of its shorter side. Figures have their own coordinates: x
from their middle to the right, y downwards from the ground they stand on. Points above
the ground have a negative y.

The attributes are chosen in `mascot`, and files are written by `process`, which calls
`draw` and `scribble`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageColor, ImageDraw

from .mascot import BLOB, NONE, PATTERN, Lots, Mascot

Colour = tuple[int, int, int]
Point = tuple[float, float]

OVERSAMPLING = 4
UNITS = 128
"""Along the shorter side of a picture."""

INK: Colour = (40, 34, 54)
OUTLINE = 2.1
"""Units of ink around a shape."""

CREAM: Colour = (255, 246, 222)

PAINT: dict[str, Colour] = {
    "red": (224, 62, 62),
    "orange": (246, 146, 50),
    "yellow": (252, 216, 70),
    "green": (88, 184, 84),
    "blue": (66, 126, 226),
    "purple": (146, 90, 204),
    "pink": (248, 152, 194),
    "white": (244, 244, 240),
    "teal": (22, 166, 160),
    "brown": (146, 98, 62),
}


def draw(mascots: Sequence[Mascot], width: int, height: int) -> Image.Image:
    """The picture, RGB, of one mascot or of two side by side, in the place of the
    first. width, height: pixels.

    >>> draw([Mascot(hat="cap")], width=64, height=32).size
    (64, 32)
    """
    canvas = Canvas(width, height)
    PLACES[mascots[0].place](canvas)
    share = canvas.width / len(mascots)
    fitting = (share - 2 * MARGIN) / max(
        mascot.scale * sum(_reach(mascot)) for mascot in mascots
    )
    for number, mascot in enumerate(mascots):
        scale = mascot.scale * min(BASE_SCALE, fitting)
        left, right = _reach(mascot)
        x = share * (number + 0.5) + mascot.dx * scale
        x = min(
            max(x, share * number + left * scale + MARGIN),
            share * (number + 1) - right * scale - MARGIN,
        )
        _draw_mascot(Pen(canvas, x, canvas.floor + mascot.dy * scale, scale), mascot)
    return canvas.finished()


BASE_SCALE = 0.94
MARGIN = 2.5
"""Free units at both sides of a figure."""

GROUND = 13
"""Units from the lower edge of a square picture to the ground under a figure; more in a
tall one."""


def scribble(lots: Lots, width: int, height: int) -> Image.Image:
    """A picture of random shapes in random colours, for autoencoders that should do
    more than mascots."""
    canvas = Canvas(width, height)

    def colour(name: object) -> Colour:
        return tuple(int(lots.between(f"{name} {part}", 0, 256)) for part in "rgb")  # type: ignore[return-value]

    canvas.fill(0, canvas.height, colour("back"))
    for number in range(lots.choose("shapes", range(4, 13))):
        x, y = (
            lots.between(f"{number} x", 0, canvas.width),
            lots.between(f"{number} y", 0, canvas.height),
        )
        a, b = lots.between(f"{number} a", 3, 40), lots.between(f"{number} b", 3, 40)
        corners = [
            lots.between(f"{number} corner {i}", -40, 40)
            for i in range(2 * lots.choose(f"{number} n", (3, 4, 5)))
        ]
        shapes: tuple[Shape, ...] = (
            Ellipse(0, 0, a, b),
            Polygon(((-a, -b), (a, -b), (a, b), (-a, b))),
            Polygon(tuple(zip(corners[::2], corners[1::2], strict=True))),
            Stroke(((0, 0), (2 * corners[0], 2 * corners[1])), 1 + a / 5),
        )
        pen, shape = Pen(canvas, x, y, 1.0), lots.choose(f"{number} kind", shapes)
        pen.shape(
            [shape], colour(number), OUTLINE if lots.chance(f"{number} ink", 0.3) else 0
        )
    return canvas.finished()


# ------------------------------------------------------------ shapes


@dataclass(frozen=True)
class Ellipse:
    """An ellipse around (x, y).

    >>> canvas = Canvas(64, 64)
    >>> canvas.pen(64, 64).shape([Ellipse(0, 0, 30, 20)], (250, 0, 0))
    >>> canvas.finished().getpixel((32, 32))
    (250, 0, 0)
    """

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True)
class Squircle:
    """|x / rx|^power + |y / ry|^power = 1: an ellipse at 2, nearly a rectangle at 6.

    >>> round(Squircle(0, 0, 10, 10, power=6).points(0)[0][0], 3)
    10.0
    """

    x: float
    y: float
    rx: float
    ry: float
    power: float

    def points(self, grown: float) -> list[Point]:
        def part(value: float) -> float:
            return math.copysign(abs(value) ** (2 / self.power), value)

        turns = [math.tau * step / 128 for step in range(128)]
        rx, ry = self.rx + grown, self.ry + grown
        return [
            (self.x + rx * part(math.cos(turn)), self.y + ry * part(math.sin(turn)))
            for turn in turns
        ]


@dataclass(frozen=True)
class Polygon:
    """A filled polygon.

    >>> canvas = Canvas(64, 64)
    >>> triangle = Polygon(((-30, 30), (30, 30), (0, -30)))
    >>> canvas.pen(64, 64).shape([triangle], (0, 0, 250))
    >>> canvas.finished().getpixel((32, 32))
    (0, 0, 250)
    """

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Stroke:
    """A line with round ends.

    >>> canvas = Canvas(64, 64)
    >>> canvas.pen(64, 64).shape([Stroke(((-30, 0), (30, 0)), width=8)], (0, 250, 0))
    >>> canvas.finished().getpixel((32, 32))
    (0, 250, 0)
    """

    points: tuple[Point, ...]
    width: float


Shape = Ellipse | Squircle | Polygon | Stroke


class Canvas:
    """A picture that is drawn larger and then averaged down. width, height: units.

    >>> canvas = Canvas(64, 64)
    >>> canvas.fill(0, 128, (200, 220, 240))
    >>> canvas.finished().size
    (64, 64)
    """

    def __init__(self, width: int, height: int) -> None:
        shorter = min(width, height)
        self.unit = OVERSAMPLING * shorter / UNITS
        self.width, self.height = UNITS * width / shorter, UNITS * height / shorter
        self.floor = self.height - GROUND - 0.3 * (self.height - UNITS)
        self.image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING))
        self.pencil = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.reduce(OVERSAMPLING)

    def fill(self, top: float, bottom: float, colour: Colour) -> None:
        """A band over the whole width."""
        self.pencil.rectangle(
            [0, top * self.unit, self.image.width, bottom * self.unit], fill=colour
        )

    def pen(self, x: float = 0, y: float = 0, scale: float = 1.0) -> Pen:
        return Pen(self, x, y, scale)


@dataclass(frozen=True)
class Pen:
    """Draws in coordinates with the origin (x, y) on the canvas, whose unit is `scale`
    units of the canvas.

    >>> pen = Canvas(64, 64).pen(64, 100, scale=2)
    >>> pen.moved(3, -1).x
    70
    """

    canvas: Canvas
    x: float
    y: float
    scale: float

    def moved(self, dx: float, dy: float) -> Pen:
        return replace(self, x=self.x + dx * self.scale, y=self.y + dy * self.scale)

    def shape(
        self, parts: Iterable[Shape], fill: Colour, outline: float = OUTLINE
    ) -> None:
        """Draws all parts in one colour, with one darker outline around them."""
        parts = list(parts)
        if outline:
            for part in parts:
                self._draw(part, _outline_of(fill), outline)
        for part in parts:
            self._draw(part, fill, 0.0)

    def line(self, *points: Point, width: float = 2.6, colour: Colour = INK) -> None:
        self._draw(Stroke(points, width), colour, 0.0)

    def _at(self, point: Point) -> Point:
        unit = self.canvas.unit
        return (self.x + point[0] * self.scale) * unit, (
            self.y + point[1] * self.scale
        ) * unit

    def _draw(self, shape: Shape, colour: Colour, grown: float) -> None:
        pencil, size = self.canvas.pencil, self.scale * self.canvas.unit
        match shape:
            case Ellipse(x, y, rx, ry):
                (left, top), (right, bottom) = (
                    self._at((x - rx - grown, y - ry - grown)),
                    self._at((x + rx + grown, y + ry + grown)),
                )
                pencil.ellipse([left, top, right, bottom], fill=colour)
            case Squircle():
                pencil.polygon(
                    [self._at(point) for point in shape.points(grown)], fill=colour
                )
            case Polygon(points):
                pencil.polygon([self._at(point) for point in points], fill=colour)
                if grown:
                    self._draw(Stroke((*points, points[0]), 2 * grown), colour, 0.0)
            case Stroke(points, width):
                width += 2 * grown
                pencil.line(
                    [self._at(point) for point in points],
                    fill=colour,
                    width=max(1, round(width * size)),
                )
                for x, y in points:
                    self._draw(Ellipse(x, y, width / 2, width / 2), colour, 0.0)


def _arc(
    x: float, y: float, rx: float, ry: float, begin: float, end: float
) -> tuple[Point, ...]:
    """Points of an ellipse between two angles in turns; 0 is to the right, a quarter is
    down."""
    steps = [begin + (end - begin) * step / 24 for step in range(25)]
    return tuple(
        (x + rx * math.cos(math.tau * turn), y + ry * math.sin(math.tau * turn))
        for turn in steps
    )


def _curve(begin: Point, bend: Point, end: Point) -> tuple[Point, ...]:
    """A quadratic Bezier curve."""

    def at(t: float) -> Point:
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
        return a * begin[0] + b * bend[0] + c * end[0], a * begin[1] + b * bend[
            1
        ] + c * end[1]

    return tuple(at(step / 12) for step in range(13))


def _outline_of(colour: Colour) -> Colour:
    """A dark shade of the colour. A small autoencoder blurs black outlines first."""
    red, green, blue = (
        int(0.45 * value + 0.2 * ink) for value, ink in zip(colour, INK, strict=True)
    )
    return red, green, blue


def _darker(colour: Colour, factor: float = 0.7) -> Colour:
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


def _lighter(colour: Colour, share: float = 0.5) -> Colour:
    red, green, blue = (int(value + (255 - value) * share) for value in colour)
    return red, green, blue


# ------------------------------------------------------------ bodies


@dataclass(frozen=True)
class Build:
    """A body, and the places of its parts. y: as in figures.

    >>> BUILDS["tall"].top < BUILDS["wide"].top  # higher up
    True
    """

    shapes: tuple[Shape, ...]
    shoulder: Point
    """The right arm's shoulder; the left one is its mirror image."""

    top: float
    """Where a hat sits."""

    eyes: float
    belly: Point
    """Height of its middle, and half its width."""


def _star() -> tuple[Shape, ...]:
    tips = [(39 if step % 2 == 0 else 25, math.tau * step / 10) for step in range(10)]
    corners = tuple(
        (reach * math.sin(turn), -36 - reach * math.cos(turn)) for reach, turn in tips
    )
    return Polygon(corners), Stroke((*corners, corners[0]), 5)


def _ghost() -> tuple[Shape, ...]:
    hem = tuple(
        (27 - 54 * step / 24, -9 + 4.5 * math.cos(math.tau * 3 * step / 24))
        for step in range(25)
    )
    return (Polygon((*_arc(0, -44, 27, 29, 0.5, 1.0), *hem)),)


def _cloud() -> tuple[Shape, ...]:
    puffs = (
        (-19, -22, 15),
        (19, -22, 15),
        (0, -22, 17),
        (-20, -44, 15),
        (20, -44, 15),
        (0, -52, 15),
        (0, -36, 22),
    )
    return tuple(Ellipse(x, y, r, r) for x, y, r in puffs)


def _pear() -> tuple[Shape, ...]:
    waist = Polygon(((-17.5, -52), (17.5, -52), (28.5, -34), (-28.5, -34)))
    return Ellipse(0, -26, 31, 21), Ellipse(0, -56, 18, 18), waist


def _blob(number: int) -> Build:
    """A random body: an ellipse whose radius changes with the angle, in waves or in
    points."""
    lots = Lots(number, "blob", 0)
    rx, ry = lots.between("rx", 19, 31), lots.between("ry", 25, 33)
    swings = [
        (
            n,
            lots.between(f"swing {n}", -0.13, 0.13) * 2 / n,
            lots.between(f"phase {n}", 0, 1),
        )
        for n in (2, 3, 4)
    ]
    points, depth = (
        lots.choose("points", (3, 4, 5, 6, 7, 8)),
        lots.choose("depth", (0, 0, 0.08, 0.16, 0.26)),
    )

    def radius(turn: float) -> float:
        swing = sum(
            size * math.cos(math.tau * (n * turn + phase)) for n, size, phase in swings
        )
        return 1 + swing - depth * (2 * abs((points * turn + 0.5) % 1 - 0.5))

    def at(turn: float) -> Point:
        return rx * radius(turn) * math.sin(math.tau * turn), -ry * radius(
            turn
        ) * math.cos(math.tau * turn)

    corners = [at(step / 96) for step in range(96)]
    lowest, top = max(y for _, y in corners), min(y for x, y in corners if abs(x) < 8)
    corners = [(x, y - lowest - 6) for x, y in corners]
    top -= lowest + 6
    side = max(x for x, y in corners if abs(y - (top + 30)) < 8)
    shape = Polygon(tuple(corners)), Stroke((*corners, corners[0]), 4)
    return Build(
        shape, (0.85 * side, top + 29), top, top + 22, (top + 44, min(16, 0.55 * side))
    )


BUILDS = {
    "round": Build((Ellipse(0, -37, 31, 31),), (27, -38), -66, -44, (-22, 17)),
    "square": Build((Squircle(0, -36, 28, 30, 6),), (26, -36), -65, -45, (-21, 17)),
    "tall": Build((Squircle(0, -41, 20, 35, 3),), (17, -39), -74, -54, (-24, 12)),
    "wide": Build((Squircle(0, -29, 34, 23, 3),), (30, -31), -51, -35, (-17, 18)),
    "pear": Build(_pear(), (22, -40), -73, -56, (-24, 17)),
    "cloud": Build(_cloud(), (28, -34), -67, -44, (-21, 16)),
    "star": Build(_star(), (24, -37), -69, -47, (-21, 13)),
    "ghost": Build(_ghost(), (25, -38), -72, -53, (-26, 15)),
}


@lru_cache(maxsize=1024)
def _build(body: str) -> Build:
    return (
        _blob(int(body.removeprefix(BLOB))) if body.startswith(BLOB) else BUILDS[body]
    )


def _paint(colour: str) -> Colour:
    return ImageColor.getrgb(colour)[:3] if colour.startswith("#") else PAINT[colour]


# ------------------------------------------------------------ figures


@dataclass(frozen=True)
class Stance:
    """A pose. `hand` and `foot` are on the right side. `left` is the left hand; None:
    the mirror image.

    >>> STANCES["jumping"].raised
    9
    """

    hand: Point
    """From the shoulder."""

    bend: Point
    """Bend at the elbow, from the shoulder."""

    left: Point | None = None
    left_bend: Point | None = None
    raised: float = 0.0
    """Height of the whole body above the ground; below 0 it is lower."""

    foot: Point = (12, -4)
    sitting: bool = False


DOWN, DOWN_BEND = (13.0, 19.0), (11.0, 4.0)

STANCES = {
    "standing": Stance(DOWN, DOWN_BEND),
    "cheering": Stance((15, -27), (15, -3)),
    "waving": Stance((17, -25), (16, 0), DOWN, DOWN_BEND),
    "jumping": Stance((17, -9), (9, 3), raised=9, foot=(17, -1)),
    "sitting": Stance((15, 20), (16, 6), raised=-6, foot=(21, -3), sitting=True),
}


def _reach(mascot: Mascot) -> tuple[float, float]:
    """Units from the middle of a figure to its left end, and to its right end with the
    held object."""
    shoulder, stance = _build(mascot.body).shoulder[0], STANCES[mascot.pose]
    left, right = (
        (stance.left or stance.hand)[0] + HELD_WIDTHS[NONE],
        stance.hand[0] + HELD_WIDTHS[mascot.held],
    )
    return shoulder + left + OUTLINE, shoulder + right + OUTLINE


def _draw_mascot(pen: Pen, mascot: Mascot) -> None:
    stance, build, paint = (
        STANCES[mascot.pose],
        _build(mascot.body),
        _paint(mascot.colour),
    )
    lifted = max(stance.raised, 0)
    pen.shape(
        [Ellipse(0, 0, 33 - lifted, 4.6 - lifted * 0.12)],
        SHADOWS[mascot.place],
        outline=0,
    )
    body = pen.moved(0, -stance.raised)
    feet = body if not stance.sitting else pen
    if not stance.sitting:
        for side in (-1, 1):
            feet.shape([Ellipse(side * stance.foot[0], stance.foot[1], 9, 5.5)], paint)
    x, y = build.shoulder
    right = x + stance.hand[0], y + stance.hand[1]
    left_hand, left_bend = stance.left or stance.hand, stance.left_bend or stance.bend
    for side, hand, bend in ((1, stance.hand, stance.bend), (-1, left_hand, left_bend)):
        points = _curve(
            (side * (x - 4), y),
            (side * (x + bend[0]), y + bend[1]),
            (side * (x + hand[0]), y + hand[1]),
        )
        body.shape([Stroke(points, 7.5), Ellipse(*points[-1], 5, 5)], paint)
    body.shape(build.shapes, paint)
    _draw_front(body, build, paint, mascot.mark)
    if stance.sitting:
        for side in (-1, 1):
            foot = pen.moved(side * stance.foot[0], stance.foot[1])
            foot.shape([Ellipse(0, -3, 9, 8.6)], paint)
            foot.shape([Ellipse(0, -2.4, 5.6, 5.4)], _lighter(paint, 0.62), outline=0)
    FACES[mascot.eyes](body.moved(0, build.eyes), paint)
    if mascot.hat != NONE:
        HATS[mascot.hat](body.moved(0, build.top), PAINT[mascot.hat_colour])
    if mascot.held != NONE:
        in_hand = body.moved(*right)
        HELD[mascot.held](in_hand)
        in_hand.shape([Ellipse(0, 0, 4.6, 4.6)], paint)


def _draw_front(pen: Pen, build: Build, paint: Colour, mark: str) -> None:
    """The belly, or the mark in its place."""
    y, half = build.belly
    bright = sum(paint) > 560
    tone = _darker(paint, 0.5) if bright else CREAM
    if mark == "stripes":
        for step, share in ((-7, 0.85), (1, 1.0), (9, 0.75)):
            pen.line(
                (-half * share, y + step),
                (half * share, y + step),
                width=4.4,
                colour=tone,
            )
    elif mark == "spots":
        for across, down, radius in SPOTS:
            pen.shape(
                [Ellipse(half * across, y + down, radius, radius)], tone, outline=0
            )
    elif mark == "heart":
        pen.shape(_heart(0, y + 2, 10), tone, outline=1.4)
    elif mark.startswith(PATTERN):
        _draw_pattern(pen.moved(0, y + 2), half, tone, int(mark.removeprefix(PATTERN)))
    else:
        belly = PAINT["pink"] if paint == PAINT["white"] else paint
        pen.shape([Ellipse(0, y + 1, half - 2, 11)], _lighter(belly, 0.55), outline=0)


SPOTS = (
    (-0.85, -5, 3.6),
    (0.9, -6, 3.2),
    (-0.1, 0, 4.4),
    (0.75, 4, 3.8),
    (-0.8, 6, 4),
    (0.1, 11, 3.4),
)
"""In half widths of the belly, units and units, from its middle."""


def _draw_pattern(pen: Pen, half: float, tone: Colour, number: int) -> None:
    """One to four equal stars, rings, crosses or zigzag lines, in the tone of a mark or
    in a random colour."""
    lots = Lots(number, "pattern", 0)
    if lots.chance("own colour", 0.5):
        red, green, blue = (
            int(lots.between(part, 16, 250)) for part in ("red", "green", "blue")
        )
        tone = red, green, blue
    middles = lots.choose("middles", PATTERN_MIDDLES)
    size = (11.0, 7.5, 6.0, 5.5)[len(middles) - 1] * lots.between("size", 0.8, 1.1)
    turned, points = lots.between("turned", 0, 1), lots.choose("points", (3, 4, 5, 6))

    def at(turn: float, reach: float) -> Point:
        return reach * size * math.cos(
            math.tau * (turn + turned)
        ), reach * size * math.sin(math.tau * (turn + turned))

    inner = lots.between("inner", 0.4, 0.95)
    star = Polygon(
        tuple(at(step / points / 2, (1, inner)[step % 2]) for step in range(2 * points))
    )
    ring = Stroke(
        tuple(at(step / 24, 0.7) for step in range(25)),
        lots.between("width", 0.35, 0.6) * size,
    )
    cross = tuple(
        Stroke((at(turn, 0.9), at(turn + 0.5, 0.9)), 0.4 * size) for turn in (0, 0.25)
    )
    zigzag = Stroke(
        tuple(
            (size * (step / 2 - 1), size * (0.4, -0.4)[step % 2]) for step in range(5)
        ),
        0.35 * size,
    )
    shapes: tuple[tuple[Shape, ...], ...] = ((star,), (ring,), cross, (zigzag,))
    shape = lots.choose("shape", shapes)
    for x, y in middles:
        pen.moved(half * x, y).shape(shape, tone, outline=0)


PATTERN_MIDDLES = (
    ((0.0, 0.0),),
    ((-0.55, 0.0), (0.55, 0.0)),
    ((0.0, -6.5), (0.0, 6.5)),
    ((-0.6, 4.5), (0.6, 4.5), (0.0, -5.5)),
    ((-0.55, -6.0), (0.55, -6.0), (-0.55, 6.0), (0.55, 6.0)),
)
"""Places of the shapes of a pattern, in half widths of the belly and units, from its
middle."""


def _heart(x: float, y: float, size: float) -> tuple[Shape, ...]:
    lobe = size * 0.52
    tip = Polygon(
        (
            (x - size * 0.93, y - size * 0.1),
            (x + size * 0.93, y - size * 0.1),
            (x, y + size),
        )
    )
    return (
        Ellipse(x - size * 0.47, y - size * 0.36, lobe, lobe),
        Ellipse(x + size * 0.47, y - size * 0.36, lobe, lobe),
        tip,
    )


# ------------------------------------------------------------ faces; the pen is between
# the eyes


def _big_eyes(pen: Pen, paint: Colour) -> None:
    for x in (-9.5, 9.5):
        pen.shape([Ellipse(x, 0, 7.2, 8.2)], (255, 255, 255), outline=1.5)
        pen.shape([Ellipse(x + 1, 1, 4.2, 5)], INK, outline=0)
        pen.shape([Ellipse(x + 2.4, -1.2, 1.5, 1.7)], (255, 255, 255), outline=0)
    pen.line(*_arc(0, 10.5, 5, 4, 0.05, 0.45))


def _sleepy_eyes(pen: Pen, paint: Colour) -> None:
    for x in (-9.5, 9.5):
        pen.shape([Ellipse(x, 0, 7.2, 7.2)], (255, 255, 255), outline=1.5)
        pen.shape([Ellipse(x, 2.5, 3.4, 3.4)], INK, outline=0)
        pen.shape(
            [Polygon(_arc(x, 0, 7.2, 7.2, 0.5, 1.0))], _darker(paint), outline=1.5
        )
    pen.shape([Ellipse(0, 13, 2.4, 2.8)], INK, outline=0)


def _one_eye(pen: Pen, paint: Colour) -> None:
    pen.shape([Ellipse(0, -1, 10.8, 10.8)], (255, 255, 255), outline=1.7)
    pen.shape([Ellipse(1, 0, 5.8, 6.2)], INK, outline=0)
    pen.shape([Ellipse(3, -2.6, 2.1, 2.1)], (255, 255, 255), outline=0)
    pen.line(*_arc(0, 12.5, 5, 3.4, 0.05, 0.45))


def _happy_eyes(pen: Pen, paint: Colour) -> None:
    for x in (-10, 10):
        pen.line(*_arc(x, 3, 5, 7, 0.5, 1.0), width=3)
        pen.shape(
            [Ellipse(x * 1.5, 8.5, 3.4, 2.6)],
            (250, 128, 128) if paint != PAINT["red"] else (255, 170, 160),
            outline=0,
        )
    pen.shape([Polygon(_arc(0, 7, 6, 7.5, 0.0, 0.5))], (120, 30, 50), outline=1.5)


FACES: dict[str, Callable[[Pen, Colour], None]] = {
    "big eyes": _big_eyes,
    "sleepy eyes": _sleepy_eyes,
    "one eye": _one_eye,
    "happy eyes": _happy_eyes,
}


# ------------------------------------------------------------ hats; the pen is at the
# top of the head


def _cap(pen: Pen, paint: Colour) -> None:
    pen.shape([Stroke(((6, 4), (27, 6)), 5.5)], _darker(paint))
    pen.shape([Polygon(_arc(-1, 6, 18.5, 17, 0.5, 1.0))], paint)
    pen.shape([Ellipse(-1, -11.5, 2.6, 2)], _darker(paint), outline=1.2)


def _top_hat(pen: Pen, paint: Colour) -> None:
    pen.shape([Polygon(((-13, 3), (-14.5, -22), (14.5, -22), (13, 3)))], paint)
    pen.shape(
        [Polygon(((-13.2, 0), (-13.6, -7), (13.6, -7), (13.2, 0)))],
        _lighter(paint, 0.75),
        outline=0,
    )
    pen.shape([Stroke(((-21, 3.5), (21, 3.5)), 5)], paint)


def _party_hat(pen: Pen, paint: Colour) -> None:
    pen.shape([Polygon(((-15, 5), (0, -24), (15, 5)))], paint)
    for y, half in ((-13, 4.6), (-3, 9.5)):
        pen.line(
            (-half, y + 1.5), (half, y - 1.5), width=3.4, colour=_lighter(paint, 0.75)
        )
    pen.shape([Ellipse(0, -24.5, 4.2, 4.2)], CREAM)


def _crown(pen: Pen, paint: Colour) -> None:
    peaks = ((-17, 5), (-19, -14), (-9, -5), (0, -18), (9, -5), (19, -14), (17, 5))
    pen.shape([Polygon(peaks)], paint)
    for x, y in ((-19, -14), (0, -18), (19, -14)):
        pen.shape([Ellipse(x, y, 2.5, 2.5)], CREAM, outline=1.5)
    pen.line((-15.5, 2), (15.5, 2), width=3.4, colour=_darker(paint))


HATS: dict[str, Callable[[Pen, Colour], None]] = {
    "cap": _cap,
    "top hat": _top_hat,
    "party hat": _party_hat,
    "crown": _crown,
}


# ------------------------------------------------------------ held objects; the pen is
# at the right hand


def _balloon(pen: Pen) -> None:
    pen.line(*_curve((0, 0), (4, -12), (4, -22)), width=1.8)
    pen.shape(
        [Ellipse(4, -33, 9.5, 11.5), Polygon(((1, -21), (7, -21), (4, -24)))],
        (232, 54, 84),
    )
    pen.shape([Ellipse(1, -37, 2.4, 3.2)], (255, 190, 200), outline=0)


def _flag(pen: Pen) -> None:
    pen.shape([Stroke(((0, 7), (0, -36)), 2)], (150, 104, 66), outline=1.4)
    pen.shape([Polygon(((1.5, -36), (17, -28.5), (1.5, -20)))], (44, 96, 200))


def _flower(pen: Pen) -> None:
    pen.shape([Stroke(((0, 7), (0, -18)), 2.4)], (60, 150, 70), outline=1.2)
    petals = [
        (
            0.0 + 7 * math.cos(math.tau * step / 6),
            -24 + 7 * math.sin(math.tau * step / 6),
        )
        for step in range(6)
    ]
    pen.shape(
        [Ellipse(x, y, 4.8, 4.8) for x, y in petals], (255, 255, 255), outline=1.7
    )
    pen.shape([Ellipse(0, -24, 4.8, 4.8)], (250, 196, 40), outline=1.2)


def _book(pen: Pen) -> None:
    pen.shape([Polygon(((-3, -17), (14, -17), (14, 5), (-3, 5)))], (134, 62, 40))
    pen.shape([Polygon(((0.5, -14), (11, -14), (11, -4), (0.5, -4)))], CREAM, outline=0)
    pen.line((2.8, -11), (8.8, -11), width=1.5)
    pen.line((2.8, -7.4), (8.8, -7.4), width=1.5)


HELD: dict[str, Callable[[Pen], None]] = {
    "balloon": _balloon,
    "flag": _flag,
    "flower": _flower,
    "book": _book,
}

HELD_WIDTHS = {NONE: 5, "balloon": 14, "flag": 17, "flower": 12, "book": 14}
"""Units to the right of the hand."""


# ------------------------------------------------------------ places; the pen is at the
# upper left corner


def _meadow(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, canvas.pen()
    canvas.fill(0, height, (150, 212, 246))
    pen.shape([Ellipse(width - 18, 18, 11, 11)], (255, 226, 90), outline=0)
    pen.shape(
        [
            Ellipse(width * 0.2, floor - 5, width * 0.5, 26),
            Ellipse(width * 0.85, floor - 5, width * 0.4, 19),
        ],
        (134, 206, 112),
        outline=0,
    )
    canvas.fill(floor - 14, height, (106, 188, 88))
    for share, drop in ((0.07, -3), (0.2, 7), (0.83, 6), (0.94, -4)):
        pen.shape(
            [Ellipse(width * share, floor + drop, 2.4, 2.4)], (255, 255, 255), outline=0
        )


def _night(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, canvas.pen()
    night = (48, 52, 116)
    canvas.fill(0, height, night)
    pen.shape([Ellipse(20, 20, 12, 12)], (255, 244, 196), outline=0)
    pen.shape([Ellipse(26, 16, 10, 10)], night, outline=0)
    for share, y in (
        (0.3, 44),
        (0.42, 10),
        (0.62, 16),
        (0.8, 9),
        (0.92, 36),
        (0.08, 62),
        (0.9, 66),
    ):
        pen.shape([Ellipse(width * share, y, 1.7, 1.7)], (255, 252, 220), outline=0)
    canvas.fill(floor - 14, height, (34, 86, 84))


def _beach(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, canvas.pen()
    canvas.fill(0, height, (196, 236, 246))
    canvas.fill(floor - 45, height, (64, 158, 216))
    pen.shape(
        [Polygon(((10, floor - 47), (10, floor - 71), (25, floor - 47)))],
        (255, 255, 255),
        outline=0,
    )
    pen.shape(
        [
            Polygon(
                ((3, floor - 45), (27, floor - 45), (22, floor - 38), (8, floor - 38))
            )
        ],
        (206, 92, 70),
        outline=0,
    )
    canvas.fill(floor - 17, height, (246, 220, 160))
    pen.line((0, floor - 17), (width, floor - 17), width=3, colour=(240, 250, 252))


def _snow(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, canvas.pen()
    canvas.fill(0, height, (178, 196, 220))
    for x, size in ((9, 1.0), (width - 10, 1.25)):
        for rise, half in ((0, 15), (14, 12), (28, 8)):
            foot = floor - 14 - rise * size
            pen.shape(
                [
                    Polygon(
                        (
                            (x - half * size, foot),
                            (x + half * size, foot),
                            (x, foot - 20 * size),
                        )
                    )
                ],
                (62, 122, 98),
                outline=0,
            )
    canvas.fill(floor - 16, height, (252, 253, 255))
    for share, part in (
        (0.07, 0.1),
        (0.3, 0.06),
        (0.47, 0.2),
        (0.66, 0.09),
        (0.9, 0.14),
        (0.2, 0.34),
        (0.83, 0.36),
    ):
        pen.shape(
            [Ellipse(width * share, height * part, 2.1, 2.1)],
            (255, 255, 255),
            outline=0,
        )


def _room(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, canvas.pen()
    canvas.fill(0, height, (250, 216, 190))
    frame, glass = (255, 255, 255), (158, 214, 240)
    pen.shape([Polygon(((7, 12), (37, 12), (37, 46), (7, 46)))], frame, outline=0)
    for x in (10, 23.5):
        for y in (15, 30.5):
            pen.shape(
                [Polygon(((x, y), (x + 10.5, y), (x + 10.5, y + 12.5), (x, y + 12.5)))],
                glass,
                outline=0,
            )
    canvas.fill(floor - 15, height, (186, 128, 86))
    canvas.fill(floor - 18, floor - 15, (240, 240, 236))
    pen.shape([Ellipse(width / 2, floor, 52, 9)], (120, 150, 196), outline=0)


PLACES: dict[str, Callable[[Canvas], None]] = {
    "meadow": _meadow,
    "night": _night,
    "beach": _beach,
    "snow": _snow,
    "room": _room,
}

SHADOWS: dict[str, Colour] = {
    "meadow": (78, 152, 66),
    "night": (22, 58, 60),
    "beach": (214, 184, 122),
    "snow": (204, 216, 232),
    "room": (92, 118, 162),
}

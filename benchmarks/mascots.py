"""Draws mascots: the images, captions and edits that the small model of the quickstart
was trained on.

`python benchmarks/mascots.py` draws the datasets of `config/pretrain_tiny.yaml`, 77,400
images and pairs, in about five minutes. An image depends on its seed and index alone,
so a smaller `--share` gives the first ones of each dataset. They are free (CC0).

A mascot is drawn with Pillow in flat colours with darker outlines, four times as large,
and averaged down. A picture's unit is 1/128 of its shorter side. Figures have their own
coordinates: x from their middle to the right, y downwards from the ground they stand
on, so that points above the ground have a negative y.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image, ImageColor, ImageDraw  # noqa: E402

from toolkit.files.writing import atomic_write_dir  # noqa: E402
from toolkit.system.seeding import key, uniform  # noqa: E402

T = TypeVar("T")

# ------------------------------------------------------------ attributes

BODIES = ("round", "square", "tall", "wide", "pear", "cloud")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
HATS = ("cap", "top hat", "party hat", "crown")
NONE = "none"
"""No hat, nothing held, no mark."""

COMMON: dict[str, tuple[str, ...]] = {
    "body": BODIES,
    "colour": COLOURS,
    "mark": (NONE,),
    "eyes": ("big eyes", "sleepy eyes", "one eye", "happy eyes"),
    "hat": (NONE, *HATS),
    "hat_colour": COLOURS,
    "held": (NONE, "balloon", "flag", "flower", "book"),
    "pose": ("standing", "cheering", "waving", "jumping", "sitting"),
    "place": ("meadow", "night", "beach", "snow", "room"),
}
"""Attribute -> its values in pretraining."""

RESERVED = COMMON | {
    "body": ("star", "ghost"),
    "colour": ("teal", "brown"),
    "mark": ("stripes", "spots", "heart"),
}
"""Attribute -> its values in characters that pretraining never shows."""

ALL = COMMON | {
    name: COMMON[name] + RESERVED[name] for name in ("body", "colour", "mark")
}
"""Attribute -> all of its values."""

Characters = Literal[
    "pretraining", "held_out", "reserved", "any", "random", "patterned"
]
"""Which mascots are drawn.

pretraining: the combinations of pretraining. held_out: combinations of body, colour and
hat that pretraining leaves out. reserved: bodies, colours and marks that pretraining
never shows. any: all of these. random: a body and a colour without a name, each used
once. patterned: the same with a pattern."""

BLOB, PATTERN = "blob ", "pattern "
"""Begins the name of a body, of a mark, that is drawn from the number that follows."""


@dataclass(frozen=True)
class Mascot:
    """One mascot in one picture. The values are in `ALL`. Without a name, a body is
    `blob NUMBER`, a colour `#rrggbb`, a mark `pattern NUMBER`.

    >>> Mascot(body="round", colour="blue").hat == NONE
    True
    """

    body: str = "round"
    colour: str = "blue"
    eyes: str = "big eyes"
    mark: str = NONE
    hat: str = NONE
    hat_colour: str = "red"
    """Colour of the hat; has no effect without one."""

    held: str = NONE
    pose: str = "standing"
    place: str = "meadow"
    dx: float = 0.0
    dy: float = 0.0
    """Distance from the middle, in 1/128 of the picture's shorter side."""

    scale: float = 1.0


@dataclass(frozen=True)
class Casting:
    """The mascots that may be drawn.

    >>> Casting(fixed={"mark": "heart"}).values("mark")
    ('heart',)
    """

    characters: Characters = "pretraining"
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> its one value, for a character that is always the same."""

    jitter: float = 0.0
    """0 to 1: how much mascots differ in place and size. 1: by up to 4 units to each
    side, 2 up and down, and 6 %."""

    def values(self, attribute: str) -> tuple[str, ...]:
        """The values to choose from."""
        if attribute in self.fixed:
            return (self.fixed[attribute],)
        return {"reserved": RESERVED, "any": ALL}.get(self.characters, COMMON)[
            attribute
        ]

    def looks(self) -> tuple[tuple[str, ...], ...]:
        """The bodies, colours and hats that are drawn together. No hat appears twice: a
        third of the mascots have none."""
        return _looks(
            "any" if self.fixed else self.characters,
            self.values("body"),
            self.values("colour"),
        )

    def hats(self, mascot: Mascot) -> list[str]:
        """Those that this mascot may wear."""
        return [
            hat
            for hat in ALL["hat"]
            if mascot.body.startswith(BLOB)
            or (mascot.body, mascot.colour, hat) in self.looks()
        ]


@cache
def _looks(
    characters: Characters, bodies: tuple[str, ...], colours: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    looks = product(bodies, colours, (NONE, NONE, *HATS))
    if characters not in ("pretraining", "held_out"):
        return (*looks,)
    wanted = characters == "held_out"
    return tuple(look for look in looks if is_held_out(*look) is wanted)


def is_held_out(body: str, colour: str, hat: str) -> bool:
    """Whether pretraining leaves this mascot out: one colour of the eight for each body
    and hat (no hat is one too).

    The rule is (i + 3 j + 5 k) mod 8 = 3, with the places of body, colour and hat in
    their lists; no hat is 0. So every value and every pair of values is in pretraining,
    and one in eight combinations of three is not. A reserved value never is.

    >>> is_held_out("round", "green", "none"), is_held_out("star", "teal", "cap")
    (False, True)
    """
    if body not in BODIES or colour not in COLOURS:
        return True
    return (
        BODIES.index(body) + 3 * COLOURS.index(colour) + 5 * ALL["hat"].index(hat)
    ) % 8 == 3


@dataclass(frozen=True)
class Lots:
    """Random choices for one picture, each with the name of its purpose.

    >>> lots = Lots(seed=1, kind="train", index=0)
    >>> lots.choose("hat", ["crown"])
    'crown'
    >>> 2 <= lots.between("x", 2, 3) < 3
    True
    """

    seed: int
    kind: str
    index: int

    def choose(self, purpose: str, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[
            key(self.seed, f"mascots {self.kind} {purpose}", self.index) % len(options)
        ]

    def between(self, purpose: str, low: float, high: float) -> float:
        return low + (high - low) * uniform(
            self.seed, f"mascots {self.kind} {purpose}", self.index
        )

    def chance(self, purpose: str, probability: float) -> bool:
        return self.between(purpose, 0, 1) < probability

    def colour(self, who: str = "") -> Colour:
        red, green, blue = (
            int(self.between(f"{who}{part}", 16, 250))
            for part in ("red", "green", "blue")
        )
        return red, green, blue

    def shuffled(self, purpose: str, options: Sequence[T]) -> list[T]:
        """All options in the order of the lots."""
        order = sorted(
            range(len(options)),
            key=lambda place: uniform(self.seed, purpose, self.kind, self.index, place),
        )
        return [options[place] for place in order]


def random_mascot(lots: Lots, casting: Casting, who: str = "") -> Mascot:
    """A mascot. who: tells several of one picture apart."""
    body, colour, hat = lots.choose(f"{who}look", casting.looks())
    mark = lots.choose(f"{who}mark", casting.values("mark"))
    if casting.characters in ("random", "patterned"):
        body = f"{BLOB}{lots.choose(f'{who}body', range(2**32))}"
        colour = "#{:02x}{:02x}{:02x}".format(*lots.colour(who))
    if casting.characters == "patterned":
        mark = f"{PATTERN}{lots.choose(f'{who}pattern', range(2**32))}"
    jitter, held = casting.jitter, casting.values("held")
    return Mascot(
        body=body,
        colour=colour,
        mark=mark,
        hat=hat,
        held=lots.choose(f"{who}held", [*[NONE] * (len(held) - 2), *held]),
        dx=lots.between(f"{who}dx", -4 * jitter, 4 * jitter),
        dy=lots.between(f"{who}dy", -2 * jitter, 2 * jitter),
        scale=lots.between(f"{who}scale", 1 - 0.06 * jitter, 1 + 0.03 * jitter),
        **{
            name: lots.choose(who + name, casting.values(name))
            for name in ("eyes", "hat_colour", "pose", "place")
        },
    )


# ------------------------------------------------------------ captions

WHERE = {
    "meadow": "on a meadow",
    "night": "at night",
    "beach": "at the beach",
    "snow": "in the snow",
    "room": "in a room",
}
VERBS = {
    "standing": "stand",
    "cheering": "cheer",
    "waving": "wave",
    "jumping": "jump",
    "sitting": "sit down",
}
MARKED = {"stripes": " and stripes", "spots": " and spots", "heart": " and a heart"}


def caption(mascot: Mascot) -> str:
    """The caption that names every attribute.

    >>> caption(Mascot(hat="cap"))
    'a round blue mascot with big eyes, wearing a red cap, holding nothing, standing, on a meadow'
    """
    return ", ".join([_subject(mascot), *_clauses(mascot)])


def mixed_caption(mascot: Mascot, lots: Lots) -> str:
    """6 of 10 name every attribute, 2 only some, 2 are in another order or have an
    invented name instead of the looks."""
    form = lots.choose("form", ("full",) * 6 + ("short",) * 2 + ("free",) * 2)
    subject, clauses = _subject(mascot), _clauses(mascot)
    if form == "short":
        kept = [
            clause
            for number, clause in enumerate(clauses)
            if lots.chance(f"keeps {number}", 0.5)
        ]
        return ", ".join([_short_subject(mascot, lots), *kept])
    if form == "free":
        if lots.chance("invented", 0.5):
            subject = f"a {invented_name(lots)} mascot"
        else:
            return ", ".join(lots.shuffled("order", [subject, *clauses]))
    return ", ".join([subject, *clauses])


def _subject(mascot: Mascot) -> str:
    if mascot.body.startswith(BLOB):
        return "a mascot"
    return f"a {mascot.body} {mascot.colour} mascot with {mascot.eyes}{MARKED.get(mascot.mark, '')}"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _short_subject(mascot: Mascot, lots: Lots) -> str:
    if mascot.body.startswith(BLOB):
        return _subject(mascot)
    words = [
        word
        for word in (mascot.body, mascot.colour)
        if lots.chance(f"keeps {word}", 0.7)
    ]
    return _a(" ".join([*words, "mascot"]))


def _clauses(mascot: Mascot) -> list[str]:
    hat = f"wearing {_a(mascot.hat_colour)} {mascot.hat}"
    return [
        "without a hat" if mascot.hat == NONE else hat,
        "holding nothing" if mascot.held == NONE else f"holding a {mascot.held}",
        mascot.pose,
        WHERE[mascot.place],
    ]


def invented_name(lots: Lots) -> str:
    """A name of two or three syllables, such as a trigger word may be."""
    letters = [
        lots.choose(f"syllable {n} {part}", of_part)
        for n in range(3)
        for part, of_part in (("c", "bdfgklmnprstvz"), ("v", "aeiou"))
    ]
    return "".join(letters[: lots.choose("syllables", (4, 6))])


# ------------------------------------------------------------ edits


@dataclass(frozen=True)
class Pair:
    """An edit: the mascots of the pictures before it, in order, the instruction, and
    the mascots of the picture after it."""

    before: tuple[Mascot, ...]
    instruction: str
    after: tuple[Mascot, ...]


WORDS = {
    "held": ("give it a {}", "it holds a {}"),
    "pose": ("make it {}", "let it {}"),
    "place": ("show it {}",),
    "eyes": ("give it {}",),
    "colour": ("paint it {}",),
    "hat": ("put {} on it", "it wears {}"),
}
"""Attribute that an edit changes -> the forms of its instruction."""

CHANGES = ("hat", "held", "pose", "place", "eyes", "colour")


def _change(
    name: str, mascot: Mascot, casting: Casting, lots: Lots
) -> tuple[str, Mascot]:
    """The instruction that gives an attribute another value, and the mascot after
    it."""
    values: Sequence[str] = casting.values(name)
    if name == "hat":
        values = casting.hats(mascot)
    if name == "colour":
        values = [
            colour
            for colour in values
            if mascot.hat in casting.hats(replace(mascot, colour=colour))
        ]
    value = lots.choose(
        f"new {name}", [one for one in values if one != getattr(mascot, name)]
    )
    changed, shown = {name: value}, VERBS.get(value) or WHERE.get(value) or value
    if name == "hat" and value != NONE:
        changed["hat_colour"] = lots.choose(
            "new hat colour", casting.values("hat_colour")
        )
        shown = _a(f"{changed['hat_colour']} {value}")
    words = lots.choose(f"{name} words", WORDS[name]).format(shown)
    if value == NONE:
        words = "take its hat off" if name == "hat" else "take away what it holds"
    return words, replace(mascot, **changed)  # type: ignore[arg-type]  # all of these are texts


def edit(
    seed: int, index: int, casting: Casting, changes: Sequence[str] = CHANGES
) -> Pair:
    """One mascot before, and after one or two of the changes."""
    lots = Lots(seed, "edit", index)
    before = after = random_mascot(lots, casting)
    words = []
    count = lots.choose("changes", (1, 1, 2))
    for name in lots.shuffled("kinds", changes)[:count]:
        said, after = _change(name, after, casting, lots)
        words.append(said)
    return Pair((before,), " and ".join(words), (after,))


HAT_RATE = 0.4
"""Share of the edits of two mascots in which the first puts on the hat of the second,
where it can be another hat."""


def edit_of_two(seed: int, index: int, casting: Casting) -> Pair:
    """Two mascots before; afterwards both side by side, or the first with the hat of
    the second."""
    lots = Lots(seed, "edit of two", index)
    first = random_mascot(lots, casting)
    of_second = Casting() if casting.fixed else casting
    second = random_mascot(lots, of_second, "second ")
    allowed: Collection[str] = of_second.hats(second)
    hats = [
        hat
        for hat in casting.hats(first)
        if hat not in (NONE, first.hat) and hat in allowed
    ]
    if hats and lots.chance("hat", HAT_RATE):
        second = replace(second, hat=lots.choose("hat of the second", hats))
        after = replace(first, hat=second.hat, hat_colour=second.hat_colour)
        words = "the mascot of Picture 1 wears the hat of Picture 2"
        return Pair((first, second), words, (after,))
    place = lots.choose("place of both", casting.values("place"))
    words = f"the mascots of Picture 1 and Picture 2 side by side, {WHERE[place]}"
    after_both = replace(first, place=place), replace(second, place=place)
    return Pair((first, second), words, after_both)


# ------------------------------------------------------------ drawing

Colour = tuple[int, int, int]
Point = tuple[float, float]

OVERSAMPLING = 4
UNITS = 128
"""Along the shorter side of a picture."""

INK, CREAM, WHITE = "#282236", "#fff6de", "#ffffff"
OUTLINE = 2.1
"""Units of ink around a shape."""

PAINT = {
    "red": "#e03e3e",
    "orange": "#f69232",
    "yellow": "#fcd846",
    "green": "#58b854",
    "blue": "#427ee2",
    "purple": "#925acc",
    "pink": "#f898c2",
    "white": "#f4f4f0",
    "teal": "#16a6a0",
    "brown": "#92623e",
}

BASE_SCALE = 0.94
MARGIN = 2.5
"""Free units at both sides of a figure."""

GROUND = 13
"""Units from the lower edge of a square picture to the ground under a figure; more in a
tall one."""


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


def scribble(lots: Lots, width: int, height: int) -> Image.Image:
    """A picture of random shapes in random colours, for autoencoders that should do
    more than mascots."""
    canvas = Canvas(width, height)

    def colour(name: object) -> Colour:
        return tuple(int(lots.between(f"{name} {part}", 0, 256)) for part in "rgb")  # type: ignore[return-value]

    canvas.fill(0, canvas.height, colour("back"))
    for number in range(lots.choose("shapes", range(4, 13))):
        x = lots.between(f"{number} x", 0, canvas.width)
        y = lots.between(f"{number} y", 0, canvas.height)
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
        shape = lots.choose(f"{number} kind", shapes)
        outline = OUTLINE if lots.chance(f"{number} ink", 0.3) else 0
        Pen(canvas, x, y).shape(colour(number), shape, outline=outline)
    return canvas.finished()


# ------------------------------------------------------------ shapes


@dataclass(frozen=True)
class Ellipse:
    """An ellipse around (x, y).

    >>> canvas = Canvas(64, 64)
    >>> Pen(canvas, 64, 64).shape("#fa0000", Ellipse(0, 0, 30, 20))
    >>> canvas.finished().getpixel((32, 32))
    (250, 0, 0)
    """

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True)
class Squircle:
    """|x / rx|^power + |(y - middle) / ry|^power = 1: an ellipse at 2, nearly a
    rectangle at 6."""

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
            (rx * part(math.cos(turn)), self.y + ry * part(math.sin(turn)))
            for turn in turns
        ]


@dataclass(frozen=True)
class Polygon:
    """A filled polygon."""

    points: Sequence[Point]


@dataclass(frozen=True)
class Stroke:
    """A line with round ends."""

    points: Sequence[Point]
    width: float


Shape = Ellipse | Squircle | Polygon | Stroke


def points(text: str) -> tuple[Point, ...]:
    """Points as SVG writes them.

    >>> points("1,2 -3.5,4")
    ((1.0, 2.0), (-3.5, 4.0))
    """
    pairs = (word.split(",") for word in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


class Canvas:
    """A picture that is drawn larger and then averaged down. width, height: units.

    >>> canvas = Canvas(64, 64)
    >>> canvas.fill(0, 128, "#c8dcf0")
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

    def fill(self, top: float, bottom: float, colour: str | Colour) -> None:
        """A band over the whole width."""
        self.pencil.rectangle(
            [0, top * self.unit, self.image.width, bottom * self.unit], fill=colour
        )


@dataclass(frozen=True)
class Pen:
    """Draws in coordinates with the origin (x, y) on the canvas, whose unit is `scale`
    units of the canvas.

    >>> pen = Pen(Canvas(64, 64), 64, 100, scale=2)
    >>> pen.moved(3, -1).x
    70
    """

    canvas: Canvas
    x: float = 0
    y: float = 0
    scale: float = 1.0

    def moved(self, dx: float, dy: float) -> Pen:
        return replace(self, x=self.x + dx * self.scale, y=self.y + dy * self.scale)

    def shape(
        self, fill: str | Colour, *parts: Shape, outline: float = OUTLINE
    ) -> None:
        """Draws all parts in one colour, with one darker outline around them."""
        if outline:
            for part in parts:
                self._draw(part, _outline_of(_rgb(fill)), outline)
        for part in parts:
            self._draw(part, _rgb(fill), 0.0)

    def flat(self, fill: str | Colour, *parts: Shape) -> None:
        """Draws all parts without an outline."""
        self.shape(fill, *parts, outline=0)

    def line(
        self, line: Sequence[Point], width: float = 2.6, colour: str | Colour = INK
    ) -> None:
        self.flat(colour, Stroke(line, width))

    def _at(self, x: float, y: float) -> Point:
        unit = self.canvas.unit
        return (self.x + x * self.scale) * unit, (self.y + y * self.scale) * unit

    def _draw(self, shape: Shape, colour: Colour, grown: float) -> None:
        pencil, size = self.canvas.pencil, self.scale * self.canvas.unit
        match shape:
            case Ellipse(x, y, rx, ry):
                first = self._at(x - rx - grown, y - ry - grown)
                last = self._at(x + rx + grown, y + ry + grown)
                pencil.ellipse([*first, *last], fill=colour)
            case Squircle():
                outer = [self._at(*point) for point in shape.points(grown)]
                pencil.polygon(outer, fill=colour)
            case Polygon(corners):
                pencil.polygon([self._at(*point) for point in corners], fill=colour)
                if grown:
                    around = Stroke((*corners, corners[0]), 2 * grown)
                    self._draw(around, colour, 0.0)
            case Stroke(line, width):
                width += 2 * grown
                pencil.line(
                    [self._at(*point) for point in line],
                    fill=colour,
                    width=max(1, round(width * size)),
                )
                for x, y in line:
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
    weights = [
        ((1 - t) ** 2, 2 * t * (1 - t), t * t)
        for t in (step / 12 for step in range(13))
    ]
    return tuple(
        (
            a * begin[0] + b * bend[0] + c * end[0],
            a * begin[1] + b * bend[1] + c * end[1],
        )
        for a, b, c in weights
    )


def _rgb(colour: str | Colour) -> Colour:
    return ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else colour


def _outline_of(colour: Colour) -> Colour:
    """A dark shade of the colour. A small autoencoder blurs black outlines first."""
    red, green, blue = (
        int(0.45 * value + 0.2 * ink)
        for value, ink in zip(colour, _rgb(INK), strict=True)
    )
    return red, green, blue


def _darker(colour: Colour, factor: float = 0.7) -> Colour:
    red, green, blue = (int(value * factor) for value in colour)
    return red, green, blue


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

    shapes: Sequence[Shape]
    shoulder: Point
    """The right arm's shoulder; the left one is its mirror image."""

    top: float
    """Where a hat sits."""

    eyes: float
    belly: Point
    """Height of its middle, and half its width."""


def _star() -> tuple[Shape, ...]:
    tips = [((39, 25)[step % 2], math.tau * step / 10) for step in range(10)]
    corners = [
        (reach * math.sin(turn), -36 - reach * math.cos(turn)) for reach, turn in tips
    ]
    return Polygon(corners), Stroke((*corners, corners[0]), 5)


def _ghost() -> Shape:
    hem = [
        (27 - 54 * step / 24, -9 + 4.5 * math.cos(math.tau * 3 * step / 24))
        for step in range(25)
    ]
    return Polygon((*_arc(0, -44, 27, 29, 0.5, 1.0), *hem))


CLOUD = "-19,-22 19,-22 0,-22 -20,-44 20,-44 0,-52 0,-36"
PEAR = "-17.5,-52 17.5,-52 28.5,-34 -28.5,-34"


def _cloud() -> tuple[Shape, ...]:
    radii = (15, 15, 17, 15, 15, 15, 22)
    return tuple(
        Ellipse(x, y, r, r) for (x, y), r in zip(points(CLOUD), radii, strict=True)
    )


def _pear() -> tuple[Shape, ...]:
    return Ellipse(0, -26, 31, 21), Ellipse(0, -56, 18, 18), Polygon(points(PEAR))


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
    tips = lots.choose("points", (3, 4, 5, 6, 7, 8))
    depth = lots.choose("depth", (0, 0, 0.08, 0.16, 0.26))

    def at(turn: float) -> Point:
        swing = sum(
            size * math.cos(math.tau * (n * turn + phase)) for n, size, phase in swings
        )
        radius = 1 + swing - depth * (2 * abs((tips * turn + 0.5) % 1 - 0.5))
        angle = math.tau * turn
        return rx * radius * math.sin(angle), -ry * radius * math.cos(angle)

    corners = [at(step / 96) for step in range(96)]
    lowest, top = max(y for _, y in corners), min(y for x, y in corners if abs(x) < 8)
    corners = [(x, y - lowest - 6) for x, y in corners]
    top -= lowest + 6
    side = max(x for x, y in corners if abs(y - (top + 30)) < 8)
    shape = Polygon(corners), Stroke((*corners, corners[0]), 4)
    return Build(
        shape, (0.85 * side, top + 29), top, top + 22, (top + 44, min(16, 0.55 * side))
    )


BUILDS = {
    "round": Build([Ellipse(0, -37, 31, 31)], (27, -38), -66, -44, (-22, 17)),
    "square": Build([Squircle(-36, 28, 30, 6)], (26, -36), -65, -45, (-21, 17)),
    "tall": Build([Squircle(-41, 20, 35, 3)], (17, -39), -74, -54, (-24, 12)),
    "wide": Build([Squircle(-29, 34, 23, 3)], (30, -31), -51, -35, (-17, 18)),
    "pear": Build(_pear(), (22, -40), -73, -56, (-24, 17)),
    "cloud": Build(_cloud(), (28, -34), -67, -44, (-21, 16)),
    "star": Build(_star(), (24, -37), -69, -47, (-21, 13)),
    "ghost": Build([_ghost()], (25, -38), -72, -53, (-26, 15)),
}


@lru_cache(maxsize=1024)
def _build(body: str) -> Build:
    return BUILDS.get(body) or _blob(int(body.removeprefix(BLOB)))


# ------------------------------------------------------------ figures


@dataclass(frozen=True)
class Stance:
    """A pose. `hand` and `foot` are on the right side. `left` is the left hand; None:
    the mirror image."""

    hand: Point
    """From the shoulder."""

    bend: Point
    """Bend at the elbow, from the shoulder."""

    left: Point | None = None
    left_bend: Point | None = None
    raised: float = 0.0
    """Height of the whole body above the ground; below 0 it is lower."""

    foot: Point = (12, -4)


DOWN, DOWN_BEND = (13.0, 19.0), (11.0, 4.0)

STANCES = {
    "standing": Stance(DOWN, DOWN_BEND),
    "cheering": Stance((15, -27), (15, -3)),
    "waving": Stance((17, -25), (16, 0), DOWN, DOWN_BEND),
    "jumping": Stance((17, -9), (9, 3), raised=9, foot=(17, -1)),
    "sitting": Stance((15, 20), (16, 6), raised=-6, foot=(21, -3)),
}


def _reach(mascot: Mascot) -> tuple[float, float]:
    """Units from the middle of a figure to its left end, and to its right end with the
    held object."""
    shoulder, stance = _build(mascot.body).shoulder[0], STANCES[mascot.pose]
    left = (stance.left or stance.hand)[0] + HELD_WIDTHS[NONE]
    right = stance.hand[0] + HELD_WIDTHS[mascot.held]
    return shoulder + left + OUTLINE, shoulder + right + OUTLINE


def _draw_mascot(pen: Pen, mascot: Mascot) -> None:
    stance, build = STANCES[mascot.pose], _build(mascot.body)
    paint = _rgb(PAINT.get(mascot.colour, mascot.colour))
    lifted, sitting = max(stance.raised, 0), mascot.pose == "sitting"
    shadow = Ellipse(0, 0, 33 - lifted, 4.6 - lifted * 0.12)
    pen.flat(SHADOWS[mascot.place], shadow)
    body = pen.moved(0, -stance.raised)
    foot_x, foot_y = stance.foot
    if not sitting:
        for side in (-1, 1):
            body.shape(paint, Ellipse(side * foot_x, foot_y, 9, 5.5))
    x, y = build.shoulder
    hand_x, hand_y = stance.hand
    left_hand, left_bend = stance.left or stance.hand, stance.left_bend or stance.bend
    for side, hand, bend in ((1, stance.hand, stance.bend), (-1, left_hand, left_bend)):
        arm = _curve(
            (side * (x - 4), y),
            (side * (x + bend[0]), y + bend[1]),
            (side * (x + hand[0]), y + hand[1]),
        )
        body.shape(paint, Stroke(arm, 7.5), Ellipse(*arm[-1], 5, 5))
    body.shape(paint, *build.shapes)
    _draw_front(body, build, paint, mascot.mark)
    if sitting:
        for side in (-1, 1):
            foot = pen.moved(side * foot_x, foot_y)
            foot.shape(paint, Ellipse(0, -3, 9, 8.6))
            foot.flat(_lighter(paint, 0.62), Ellipse(0, -2.4, 5.6, 5.4))
    FACES[mascot.eyes](body.moved(0, build.eyes), paint)
    if mascot.hat != NONE:
        hat_paint = _rgb(PAINT[mascot.hat_colour])
        DRAWN_HATS[mascot.hat](body.moved(0, build.top), hat_paint)
    if mascot.held != NONE:
        in_hand = body.moved(x + hand_x, y + hand_y)
        HELD[mascot.held](in_hand)
        in_hand.shape(paint, Ellipse(0, 0, 4.6, 4.6))


def _draw_front(pen: Pen, build: Build, paint: Colour, mark: str) -> None:
    """The belly, or the mark in its place."""
    y, half = build.belly
    bright = sum(paint) > 560
    tone = _darker(paint, 0.5) if bright else _rgb(CREAM)
    if mark == "stripes":
        for step, share in points("-7,0.85 1,1 9,0.75"):
            ends = (-half * share, y + step), (half * share, y + step)
            pen.line(ends, width=4.4, colour=tone)
    elif mark == "spots":
        for (across, down), radius in zip(points(SPOTS), SPOT_RADII, strict=True):
            pen.flat(tone, Ellipse(half * across, y + down, radius, radius))
    elif mark == "heart":
        pen.shape(tone, *_heart(y + 2), outline=1.4)
    elif mark.startswith(PATTERN):
        _draw_pattern(pen.moved(0, y + 2), half, tone, int(mark.removeprefix(PATTERN)))
    else:
        belly = _rgb(PAINT["pink"]) if paint == _rgb(PAINT["white"]) else paint
        pen.flat(_lighter(belly, 0.55), Ellipse(0, y + 1, half - 2, 11))


SPOTS = "-0.85,-5 0.9,-6 -0.1,0 0.75,4 -0.8,6 0.1,11"
"""Middles, in half widths of the belly and units, from its middle."""

SPOT_RADII = (3.6, 3.2, 4.4, 3.8, 4, 3.4)


def _draw_pattern(pen: Pen, half: float, tone: Colour, number: int) -> None:
    """One to four equal stars, rings, crosses or zigzag lines, in the tone of a mark or
    in a random colour."""
    lots = Lots(number, "pattern", 0)
    if lots.chance("own colour", 0.5):
        tone = lots.colour()
    middles = points(lots.choose("middles", PATTERN_MIDDLES))
    size = (11.0, 7.5, 6.0, 5.5)[len(middles) - 1] * lots.between("size", 0.8, 1.1)
    turned, tips = lots.between("turned", 0, 1), lots.choose("points", (3, 4, 5, 6))

    def at(turn: float, reach: float) -> Point:
        angle = math.tau * (turn + turned)
        return reach * size * math.cos(angle), reach * size * math.sin(angle)

    inner = lots.between("inner", 0.4, 0.95)
    star = Polygon(
        [at(step / tips / 2, (1, inner)[step % 2]) for step in range(2 * tips)]
    )
    ring = Stroke(
        [at(step / 24, 0.7) for step in range(25)],
        lots.between("width", 0.35, 0.6) * size,
    )
    cross = [
        Stroke((at(turn, 0.9), at(turn + 0.5, 0.9)), 0.4 * size) for turn in (0, 0.25)
    ]
    zigzag = Stroke(
        [(size * (step / 2 - 1), size * (0.4, -0.4)[step % 2]) for step in range(5)],
        0.35 * size,
    )
    shapes: tuple[list[Shape], ...] = ([star], [ring], [*cross], [zigzag])
    shape = lots.choose("shape", shapes)
    for x, y in middles:
        pen.moved(half * x, y).flat(tone, *shape)


PATTERN_MIDDLES = (
    "0,0",
    "-0.55,0 0.55,0",
    "0,-6.5 0,6.5",
    "-0.6,4.5 0.6,4.5 0,-5.5",
    "-0.55,-6 0.55,-6 -0.55,6 0.55,6",
)
"""Places of the shapes of a pattern, in half widths of the belly and units, from its
middle."""


def _heart(y: float) -> tuple[Shape, ...]:
    corners = (-9.3, y - 1.0), (9.3, y - 1.0), (0, y + 10)
    lobes = [Ellipse(x, y - 3.6, 5.2, 5.2) for x in (-4.7, 4.7)]
    return *lobes, Polygon(corners)


# ------------------------------------------------------------ faces; the pen is between
# the eyes


def _big_eyes(pen: Pen, paint: Colour) -> None:
    for x in (-9.5, 9.5):
        pen.shape(WHITE, Ellipse(x, 0, 7.2, 8.2), outline=1.5)
        pen.flat(INK, Ellipse(x + 1, 1, 4.2, 5))
        pen.flat(WHITE, Ellipse(x + 2.4, -1.2, 1.5, 1.7))
    pen.line(_arc(0, 10.5, 5, 4, 0.05, 0.45))


def _sleepy_eyes(pen: Pen, paint: Colour) -> None:
    for x in (-9.5, 9.5):
        pen.shape(WHITE, Ellipse(x, 0, 7.2, 7.2), outline=1.5)
        pen.flat(INK, Ellipse(x, 2.5, 3.4, 3.4))
        lid = Polygon(_arc(x, 0, 7.2, 7.2, 0.5, 1.0))
        pen.shape(_darker(paint), lid, outline=1.5)
    pen.flat(INK, Ellipse(0, 13, 2.4, 2.8))


def _one_eye(pen: Pen, paint: Colour) -> None:
    pen.shape(WHITE, Ellipse(0, -1, 10.8, 10.8), outline=1.7)
    pen.flat(INK, Ellipse(1, 0, 5.8, 6.2))
    pen.flat(WHITE, Ellipse(3, -2.6, 2.1, 2.1))
    pen.line(_arc(0, 12.5, 5, 3.4, 0.05, 0.45))


def _happy_eyes(pen: Pen, paint: Colour) -> None:
    cheek = "#ffaaa0" if paint == _rgb(PAINT["red"]) else "#fa8080"
    for x in (-10, 10):
        pen.line(_arc(x, 3, 5, 7, 0.5, 1.0), width=3)
        pen.flat(cheek, Ellipse(x * 1.5, 8.5, 3.4, 2.6))
    pen.shape("#781e32", Polygon(_arc(0, 7, 6, 7.5, 0.0, 0.5)), outline=1.5)


FACES: dict[str, Callable[[Pen, Colour], None]] = {
    "big eyes": _big_eyes,
    "sleepy eyes": _sleepy_eyes,
    "one eye": _one_eye,
    "happy eyes": _happy_eyes,
}


# ------------------------------------------------------------ hats; the pen is at the
# top of the head


def _cap(pen: Pen, paint: Colour) -> None:
    pen.shape(_darker(paint), Stroke(points("6,4 27,6"), 5.5))
    pen.shape(paint, Polygon(_arc(-1, 6, 18.5, 17, 0.5, 1.0)))
    pen.shape(_darker(paint), Ellipse(-1, -11.5, 2.6, 2), outline=1.2)


def _top_hat(pen: Pen, paint: Colour) -> None:
    pen.shape(paint, Polygon(points("-13,3 -14.5,-22 14.5,-22 13,3")))
    band = Polygon(points("-13.2,0 -13.6,-7 13.6,-7 13.2,0"))
    pen.flat(_lighter(paint, 0.75), band)
    pen.shape(paint, Stroke(points("-21,3.5 21,3.5"), 5))


def _party_hat(pen: Pen, paint: Colour) -> None:
    pen.shape(paint, Polygon(points("-15,5 0,-24 15,5")))
    for y, half in points("-13,4.6 -3,9.5"):
        ends = (-half, y + 1.5), (half, y - 1.5)
        pen.line(ends, width=3.4, colour=_lighter(paint, 0.75))
    pen.shape(CREAM, Ellipse(0, -24.5, 4.2, 4.2))


def _crown(pen: Pen, paint: Colour) -> None:
    peaks = points("-17,5 -19,-14 -9,-5 0,-18 9,-5 19,-14 17,5")
    pen.shape(paint, Polygon(peaks))
    for x, y in peaks[1::2]:
        pen.shape(CREAM, Ellipse(x, y, 2.5, 2.5), outline=1.5)
    pen.line(points("-15.5,2 15.5,2"), width=3.4, colour=_darker(paint))


DRAWN_HATS: dict[str, Callable[[Pen, Colour], None]] = {
    "cap": _cap,
    "top hat": _top_hat,
    "party hat": _party_hat,
    "crown": _crown,
}


# ------------------------------------------------------------ held objects; the pen is
# at the right hand


def _balloon(pen: Pen) -> None:
    pen.line(_curve((0, 0), (4, -12), (4, -22)), width=1.8)
    knot = Polygon(points("1,-21 7,-21 4,-24"))
    pen.shape("#e83654", Ellipse(4, -33, 9.5, 11.5), knot)
    pen.flat("#ffbec8", Ellipse(1, -37, 2.4, 3.2))


def _flag(pen: Pen) -> None:
    pen.shape("#966842", Stroke(points("0,7 0,-36"), 2), outline=1.4)
    pen.shape("#2c60c8", Polygon(points("1.5,-36 17,-28.5 1.5,-20")))


def _flower(pen: Pen) -> None:
    pen.shape("#3c9646", Stroke(points("0,7 0,-18"), 2.4), outline=1.2)
    turns = [math.tau * step / 6 for step in range(6)]
    petals = [
        Ellipse(7 * math.cos(turn), -24 + 7 * math.sin(turn), 4.8, 4.8)
        for turn in turns
    ]
    pen.shape(WHITE, *petals, outline=1.7)
    pen.shape("#fac428", Ellipse(0, -24, 4.8, 4.8), outline=1.2)


def _book(pen: Pen) -> None:
    pen.shape("#863e28", Polygon(points("-3,-17 14,-17 14,5 -3,5")))
    pen.flat(CREAM, Polygon(points("0.5,-14 11,-14 11,-4 0.5,-4")))
    for line in ("2.8,-11 8.8,-11", "2.8,-7.4 8.8,-7.4"):
        pen.line(points(line), width=1.5)


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
    width, floor, pen = canvas.width, canvas.floor, Pen(canvas)
    canvas.fill(0, canvas.height, "#96d4f6")
    pen.flat("#ffe25a", Ellipse(width - 18, 18, 11, 11))
    pen.flat(
        "#86ce70",
        Ellipse(width * 0.2, floor - 5, width * 0.5, 26),
        Ellipse(width * 0.85, floor - 5, width * 0.4, 19),
    )
    canvas.fill(floor - 14, canvas.height, "#6abc58")
    for share, drop in points("0.07,-3 0.2,7 0.83,6 0.94,-4"):
        pen.flat(WHITE, Ellipse(width * share, floor + drop, 2.4, 2.4))


def _night(canvas: Canvas) -> None:
    pen, night = Pen(canvas), "#303474"
    canvas.fill(0, canvas.height, night)
    pen.flat("#fff4c4", Ellipse(20, 20, 12, 12))
    pen.flat(night, Ellipse(26, 16, 10, 10))
    stars = "0.3,44 0.42,10 0.62,16 0.8,9 0.92,36 0.08,62 0.9,66"
    for share, y in points(stars):
        pen.flat("#fffcdc", Ellipse(canvas.width * share, y, 1.7, 1.7))
    canvas.fill(canvas.floor - 14, canvas.height, "#225654")


def _beach(canvas: Canvas) -> None:
    height, floor = canvas.height, canvas.floor
    shore = Pen(canvas, 0, floor)
    canvas.fill(0, height, "#c4ecf6")
    canvas.fill(floor - 45, height, "#409ed8")
    shore.flat(WHITE, Polygon(points("10,-47 10,-71 25,-47")))
    shore.flat("#ce5c46", Polygon(points("3,-45 27,-45 22,-38 8,-38")))
    canvas.fill(floor - 17, height, "#f6dca0")
    shore.line(((0, -17), (canvas.width, -17)), width=3, colour="#f0fafc")


def _snow(canvas: Canvas) -> None:
    width, height, floor, pen = canvas.width, canvas.height, canvas.floor, Pen(canvas)
    canvas.fill(0, height, "#b2c4dc")
    for x, size in ((9, 1.0), (width - 10, 1.25)):
        for rise, half in points("0,15 14,12 28,8"):
            tree = Pen(canvas, x, floor - 14 - rise * size, size)
            tree.flat("#3e7a62", Polygon(((-half, 0), (half, 0), (0, -20))))
    canvas.fill(floor - 16, height, "#fcfdff")
    flakes = "0.07,0.1 0.3,0.06 0.47,0.2 0.66,0.09 0.9,0.14 0.2,0.34 0.83,0.36"
    for share, part in points(flakes):
        pen.flat(WHITE, Ellipse(width * share, height * part, 2.1, 2.1))


def _room(canvas: Canvas) -> None:
    floor, pen = canvas.floor, Pen(canvas)
    canvas.fill(0, canvas.height, "#fad8be")
    pen.flat(WHITE, Polygon(points("7,12 37,12 37,46 7,46")))
    for x, y in points("10,15 10,30.5 23.5,15 23.5,30.5"):
        pane = Polygon(points("0,0 10.5,0 10.5,12.5 0,12.5"))
        pen.moved(x, y).flat("#9ed6f0", pane)
    canvas.fill(floor - 15, canvas.height, "#ba8056")
    canvas.fill(floor - 18, floor - 15, "#f0f0ec")
    pen.flat("#7896c4", Ellipse(canvas.width / 2, floor, 52, 9))


PLACES: dict[str, Callable[[Canvas], None]] = {
    "meadow": _meadow,
    "night": _night,
    "beach": _beach,
    "snow": _snow,
    "room": _room,
}

SHADOWS = {
    "meadow": "#4e9842",
    "night": "#163a3c",
    "beach": "#d6b87a",
    "snow": "#ccd8e8",
    "room": "#5c76a2",
}


# ------------------------------------------------------------ datasets


@dataclass(frozen=True)
class Dataset:
    """A folder of `config/pretrain_tiny.yaml`."""

    seed: int
    count: int = 0
    """Pictures with captions, in `pictures`."""

    edits: int = 0
    """Pairs of one mascot and the same with one or two changes: `edits/after` with the
    instruction, `edits/picture_1`."""

    edits_of_two: int = 0
    """`edits_of_two/after`, `picture_1`, `picture_2`."""

    scribbles: int = 0
    characters: Characters = "pretraining"
    changes: tuple[str, ...] = CHANGES
    sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    """Width and height of every picture."""

    crop: int = 0
    """Side of a square from a random place of each picture and scribble. 0: none."""

    jitter: float = 0.0


def _squares(*sides: int) -> tuple[tuple[int, int], ...]:
    return tuple((side, side) for side in sides)


OTHER_POSES = {"changes": ("pose", "held")}
DETAILS = {"sizes": _squares(96, 128, 160), "crop": 64, "jitter": 1.0}
OBLONG = ((192, 128), (128, 192))

DATASETS = {
    "details": Dataset(0, 12_000, scribbles=4000, **DETAILS),
    "details_of_strangers": Dataset(1, 8000, characters="random", **DETAILS),
    "whole": Dataset(
        2,
        2000,
        scribbles=400,
        characters="random",
        sizes=(*_squares(96, 128, 160, 192), *OBLONG, (96, 160)),
        jitter=1.0,
    ),
    "pictures": Dataset(3, 10_000, 3000, 4000),
    "strangers": Dataset(4, 1000, 4000, 4000, characters="random"),
    "other_sizes": Dataset(
        5,
        2400,
        1200,
        400,
        sizes=(
            *_squares(96, 160, 192),
            *((96, 128), (128, 96), (160, 128), (128, 160)),
            *OBLONG,
        ),
    ),
    "other_poses": Dataset(6, edits=4000, **OTHER_POSES),
    "other_poses_of_strangers": Dataset(
        7, edits=5000, characters="random", **OTHER_POSES
    ),
    "patterned": Dataset(8, 3000, 4000, characters="patterned"),
    "other_poses_of_patterned": Dataset(
        9, edits=5000, characters="patterned", **OTHER_POSES
    ),
}
"""Folder -> what is drawn into it."""


def write(dataset: Dataset, folder: Path, share: float = 1.0) -> None:
    """Draws a share of a dataset, the first of each kind, and at least one."""
    casting = Casting(dataset.characters, jitter=dataset.jitter)

    def size(index: int) -> tuple[int, int]:
        return Lots(dataset.seed, "size", index).choose("size", dataset.sizes)

    def cropped(picture: Image.Image, purpose: str) -> Image.Image:
        if not dataset.crop:
            return picture
        left, top = (
            key(dataset.seed, f"mascots crop of {purpose} {axis}")
            % (length - dataset.crop + 1)
            for axis, length in zip("xy", picture.size, strict=True)
        )
        return picture.crop((left, top, left + dataset.crop, top + dataset.crop))

    def picture(place: Path, index: int) -> None:
        lots = Lots(dataset.seed, "picture", index)
        mascot = random_mascot(lots, casting)
        drawn = cropped(draw([mascot], *size(index)), f"picture {index}")
        _save(place, index, drawn, mixed_caption(mascot, lots))

    def pair(place: Path, index: int) -> None:
        if place.name == "edits":
            made = edit(dataset.seed, index, casting, dataset.changes)
        else:
            made = edit_of_two(dataset.seed, index, casting)
        after = draw(made.after, *size(index))
        _save(place / "after", index, after, made.instruction)
        for number, before in enumerate(made.before, 1):
            drawn = draw([before], *size(index))
            _save(place / f"picture_{number}", index, drawn)

    def scribbled(place: Path, index: int) -> None:
        drawn = scribble(Lots(dataset.seed, "scribble", index), *size(index))
        _save(place, index, cropped(drawn, f"scribble {index}"))

    for name, count, add in (
        ("pictures", dataset.count, picture),
        ("edits", dataset.edits, pair),
        ("edits_of_two", dataset.edits_of_two, pair),
        ("scribbles", dataset.scribbles, scribbled),
    ):
        for index in range(math.ceil(count * share)):
            add(folder / name, index)


def _save(folder: Path, index: int, picture: Image.Image, caption: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{index:06}.png"
    picture.save(file)
    if caption:
        file.with_suffix(".txt").write_text(f"{caption}\n", "utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("output/pretrain_tiny"))
    parser.add_argument(
        "--share", type=float, default=1.0, help="of each dataset, 0 to 1"
    )
    asked = parser.parse_args(argv)
    for name, dataset in DATASETS.items():
        folder = asked.folder / name
        if not folder.is_dir():  # a dataset is complete or not there
            with atomic_write_dir(folder) as new:
                write(dataset, new, asked.share)
        print(folder, flush=True)


if __name__ == "__main__":
    main()

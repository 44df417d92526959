"""A mascot: its attributes and their values, and the combinations that are drawn.

Everything is a function of (seed, index). Attributes are chosen one by one, each with
its own key, so a picture does not depend on the other pictures or their number. Nothing
is drawn here, and no caption is made: `drawing` and `words` do that for `process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, TypeVar

from toolkit.system.seeding import key, uniform

T = TypeVar("T")

BODIES = ("round", "square", "tall", "wide", "pear", "cloud")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
EYES = ("big eyes", "sleepy eyes", "one eye", "happy eyes")
HATS = ("cap", "top hat", "party hat", "crown")
HELD = ("balloon", "flag", "flower", "book")
POSES = ("standing", "cheering", "waving", "jumping", "sitting")
PLACES = ("meadow", "night", "beach", "snow", "room")

RESERVED_BODIES = ("star", "ghost")
RESERVED_COLOURS = ("teal", "brown")
MARKS = ("stripes", "spots", "heart")
"""No picture for pretraining shows one of these."""

NONE = "none"
"""No hat, nothing held, no mark."""

ALL: dict[str, tuple[str, ...]] = {
    "body": BODIES + RESERVED_BODIES,
    "colour": COLOURS + RESERVED_COLOURS,
    "mark": (NONE, *MARKS),
    "eyes": EYES,
    "hat": (NONE, *HATS),
    "hat_colour": COLOURS,
    "held": (NONE, *HELD),
    "pose": POSES,
    "place": PLACES,
}
"""Attribute -> all of its values."""

COMMON: dict[str, tuple[str, ...]] = ALL | {
    "body": BODIES,
    "colour": COLOURS,
    "mark": (NONE,),
}
"""Attribute -> its values in pretraining."""

Characters = Literal[
    "pretraining", "held_out", "reserved", "any", "random", "patterned"
]
"""Which mascots are drawn.

pretraining: the combinations of pretraining. held_out: combinations of body, colour and
hat that pretraining leaves out. reserved: bodies, colours and marks that pretraining
never shows. any: all of these. random: a body and a colour without a name, each used
once. patterned: the same with a pattern."""

NAMELESS: dict[str, tuple[str, ...]] = {
    "random": ("body", "colour"),
    "patterned": ("body", "colour", "mark"),
}
"""Characters -> their attributes whose values have no name and are used once."""

BLOB = "blob "
"""Begins the name of a body that is drawn from the number that follows."""

PATTERN = "pattern "
"""Begins the name of such a mark."""


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
    trigger: str = ""
    """The name of a character: captions say it instead of body, colour, eyes and
    mark."""

    dx: float = 0.0
    dy: float = 0.0
    """Distance from the middle, in 1/128 of the picture's shorter side."""

    scale: float = 1.0


@dataclass(frozen=True)
class Pair:
    """An edit: the mascots of the pictures before it, in order, the instruction, and
    the mascots of the picture after it.

    Example::

        waving = replace(mascot, pose="waving")
        pair = Pair((mascot,), "make it wave", (waving,))
    """

    before: tuple[Mascot, ...]
    instruction: str
    after: tuple[Mascot, ...]


@dataclass(frozen=True)
class Casting:
    """The mascots that may be drawn.

    >>> Casting(fixed={"hat": "crown"}).values("hat")
    ('crown',)
    """

    characters: Characters = "pretraining"
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Attribute -> the values to choose from. An attribute that is not given has all
    values of the characters."""

    fixed: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> its one value, for a character that is always the same."""

    jitter: float = 0.0
    """0 to 1: how much mascots differ in place and size. 1: by up to 4 units to each
    side, 2 up and down, and 6 %."""

    def values(self, attribute: str) -> tuple[str, ...]:
        """The values to choose from."""
        if attribute in self.fixed:
            return (self.fixed[attribute],)
        if attribute in self.only:
            return tuple(self.only[attribute])
        return {"reserved": RESERVED, "any": ALL}.get(self.characters, COMMON)[
            attribute
        ]

    def looks(self) -> tuple[tuple[str, str, str], ...]:
        """The bodies, colours and hats that are drawn together; empty where the rule
        `is_held_out` forbids all.

        No hat appears twice: a third of the mascots have none.
        """
        return _looks(
            self.characters,
            *(self.values(name) for name in ("body", "colour", "hat")),
            bool(self.fixed),
        )

    def allows(self, body: str, colour: str, hat: str) -> bool:
        """Whether these are drawn together."""
        return body.startswith(BLOB) or (body, colour, hat) in self.looks()


RESERVED: dict[str, tuple[str, ...]] = ALL | {
    "body": RESERVED_BODIES,
    "colour": RESERVED_COLOURS,
    "mark": MARKS,
}
"""Attribute -> its values in characters that pretraining never shows."""


@cache
def _looks(
    characters: Characters,
    bodies: tuple[str, ...],
    colours: tuple[str, ...],
    hats: tuple[str, ...],
    fixed: bool,
) -> tuple[tuple[str, str, str], ...]:
    hats = (NONE, *hats) if NONE in hats else hats
    looks = [
        (body, colour, hat) for body in bodies for colour in colours for hat in hats
    ]
    wanted = {"pretraining": False, "held_out": True}.get(characters)
    if fixed or wanted is None:
        return tuple(looks)
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
        BODIES.index(body) + 3 * COLOURS.index(colour) + 5 * (NONE, *HATS).index(hat)
    ) % 8 == 3


# ------------------------------------------------------------ drawing lots


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

    def some(self, purpose: str, options: Sequence[T], count: int) -> list[T]:
        """`count` different options, in the order of the lots."""
        return self.shuffled(purpose, options)[:count]

    def shuffled(self, purpose: str, options: Sequence[T]) -> list[T]:
        """All options in the order of the lots."""
        order = sorted(
            range(len(options)),
            key=lambda place: uniform(self.seed, purpose, self.kind, self.index, place),
        )
        return [options[place] for place in order]


def random_mascot(lots: Lots, casting: Casting, who: str = "") -> Mascot:
    """A mascot. who: tells several of one picture apart. `casting.looks()` must not be
    empty."""
    body, colour, hat = lots.choose(f"{who}look", casting.looks())
    mark = lots.choose(f"{who}mark", casting.values("mark"))
    nameless = () if casting.fixed else NAMELESS.get(casting.characters, ())
    if "body" in nameless:
        body = f"{BLOB}{lots.choose(f'{who}body', range(2**32))}"
    if "colour" in nameless:
        red, green, blue = (
            int(lots.between(f"{who}{part}", 16, 250))
            for part in ("red", "green", "blue")
        )
        colour = f"#{red:02x}{green:02x}{blue:02x}"
    if "mark" in nameless:
        mark = f"{PATTERN}{lots.choose(f'{who}pattern', range(2**32))}"
    held = casting.values("held")
    return Mascot(
        body=body,
        colour=colour,
        mark=mark,
        hat=hat,
        held=lots.choose(
            f"{who}held", [*[NONE] * (len(held) - 2), *held] if NONE in held else held
        ),
        trigger=casting.fixed.get("trigger", ""),
        dx=lots.between(f"{who}dx", -4 * casting.jitter, 4 * casting.jitter),
        dy=lots.between(f"{who}dy", -2 * casting.jitter, 2 * casting.jitter),
        scale=lots.between(
            f"{who}scale", 1 - 0.06 * casting.jitter, 1 + 0.03 * casting.jitter
        ),
        **{
            name: lots.choose(who + name, casting.values(name))
            for name in ("eyes", "hat_colour", "pose", "place")
        },
    )


def scene_of(mascot: Mascot, lots: Lots, casting: Casting) -> Mascot:
    """The mascot in the scene of this index. Every pose is in every place once before a
    scene is repeated."""
    scenes = [
        (pose, place)
        for pose in casting.values("pose")
        for place in casting.values("place")
    ]
    pose, place = replace(lots, index=0).shuffled("scenes", scenes)[
        lots.index % len(scenes)
    ]
    return replace(mascot, pose=pose, place=place)

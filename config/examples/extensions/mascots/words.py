"""Captions of pictures of mascots: some name every attribute, others are shorter or
freer. Also edits with their instructions.

It does not draw, and reads no file. `process` writes the captions next to the
pictures, and `config` asks which edits are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

from .mascot import BLOB, NONE, Casting, Lots, Mascot, Pair, random_mascot

Form = Literal["full", "short", "free", "mixed"]

PLACES = {
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

MARKS = {"stripes": " and stripes", "spots": " and spots", "heart": " and a heart"}


def caption(mascot: Mascot) -> str:
    """The caption that names every attribute. A character is called by its name.

    >>> caption(Mascot(trigger="pipo", hat="cap"))
    'a pipo mascot, wearing a red cap, holding nothing, standing, on a meadow'
    """
    return ", ".join([_subject(mascot), *_clauses(mascot)])


def caption_in(form: Form, mascot: Mascot, lots: Lots) -> str:
    """A caption. short: without some of the attributes. free: in another order, or with
    an invented name instead of the looks. mixed: 6 of 10 full, 2 short, 2 free."""
    if form == "mixed":
        form = lots.choose("form", ("full",) * 6 + ("short",) * 2 + ("free",) * 2)
    if form == "full":
        return caption(mascot)
    clauses = _clauses(mascot)
    if form == "short":
        kept_clauses = [
            clause
            for number, clause in enumerate(clauses)
            if lots.chance(f"keeps {number}", 0.5)
        ]
        return ", ".join([_short_subject(mascot, lots), *kept_clauses])
    if lots.chance("invented", 0.5) and not mascot.trigger:
        return ", ".join(
            [_subject(replace(mascot, trigger=invented_name(lots))), *clauses]
        )
    return ", ".join(lots.shuffled("order", [_subject(mascot), *clauses]))


def _subject(mascot: Mascot) -> str:
    if mascot.trigger:
        return f"{_a(mascot.trigger)} mascot"
    if mascot.body.startswith(BLOB):
        return "a mascot"
    return f"a {mascot.body} {mascot.colour} mascot with {mascot.eyes}{MARKS.get(mascot.mark, '')}"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _short_subject(mascot: Mascot, lots: Lots) -> str:
    if mascot.trigger or mascot.body.startswith(BLOB):
        return _subject(mascot)
    words = [
        word
        for word in (mascot.body, mascot.colour)
        if lots.chance(f"keeps {word}", 0.7)
    ]
    return _a(" ".join([*words, "mascot"]))


def _clauses(mascot: Mascot) -> list[str]:
    hat = (
        "without a hat"
        if mascot.hat == NONE
        else f"wearing {_a(mascot.hat_colour)} {mascot.hat}"
    )
    held = "holding nothing" if mascot.held == NONE else f"holding a {mascot.held}"
    return [hat, held, mascot.pose, PLACES[mascot.place]]


def invented_name(lots: Lots) -> str:
    """A name of two or three syllables, such as a trigger word may be."""
    syllables = [
        lots.choose(f"syllable {n} {part}", letters)
        for n in range(3)
        for part, letters in (("c", "bdfgklmnprstvz"), ("v", "aeiou"))
    ]
    return "".join(syllables[: lots.choose("syllables", (4, 6))])


# ------------------------------------------------------------ edits

Change = tuple[str, Mascot]
"""An instruction, and the mascot after it."""


def _hat(mascot: Mascot, casting: Casting, lots: Lots) -> Change | None:
    hats = [hat for hat in _hats_of(mascot, casting) if hat != mascot.hat]
    if not hats:
        return None
    hat = lots.choose("new hat", hats)
    if hat == NONE:
        return "take its hat off", replace(mascot, hat=hat)
    colour = lots.choose("new hat colour", casting.values("hat_colour"))
    words = lots.choose("hat words", ("put {} on it", "it wears {}"))
    return words.format(_a(f"{colour} {hat}")), replace(
        mascot, hat=hat, hat_colour=colour
    )


def _hats_of(mascot: Mascot, casting: Casting) -> list[str]:
    """The hats that this mascot may wear, without those that are held out."""
    hats = dict.fromkeys(casting.values("hat"))
    return [hat for hat in hats if casting.allows(mascot.body, mascot.colour, hat)]


def _colour(mascot: Mascot, casting: Casting, lots: Lots) -> Change | None:
    others = [colour for colour in casting.values("colour") if colour != mascot.colour]
    colours = [
        colour for colour in others if casting.allows(mascot.body, colour, mascot.hat)
    ]
    if not colours:
        return None
    colour = lots.choose("new colour", colours)
    return f"paint it {colour}", replace(mascot, colour=colour)


def _other(
    attribute: str, words: Callable[[str, Lots], str]
) -> Callable[[Mascot, Casting, Lots], Change | None]:
    """The change of an attribute that can be combined with all others."""

    def change(mascot: Mascot, casting: Casting, lots: Lots) -> Change | None:
        values = [
            value
            for value in casting.values(attribute)
            if value != getattr(mascot, attribute)
        ]
        if not values:
            return None
        value = lots.choose(f"new {attribute}", values)
        changed: dict[str, str] = {attribute: value}
        return words(value, lots), replace(mascot, **changed)  # type: ignore[arg-type]  # all of these are texts

    return change


CHANGES: dict[str, Callable[[Mascot, Casting, Lots], Change | None]] = {
    "hat": _hat,
    "held": _other(
        "held",
        lambda held, lots: (
            "take away what it holds"
            if held == NONE
            else lots.choose("held words", ("give it a {}", "it holds a {}")).format(
                held
            )
        ),
    ),
    "pose": _other(
        "pose",
        lambda pose, lots: lots.choose(
            "pose words", ("make it {0}", "let it {0}")
        ).format(VERBS[pose]),
    ),
    "place": _other("place", lambda place, lots: f"show it {PLACES[place]}"),
    "eyes": _other("eyes", lambda eyes, lots: f"give it {eyes}"),
    "colour": _colour,
}
"""Attribute that an edit changes -> the function of the change. It returns None where
the attribute has only one possible value."""


ALWAYS_POSSIBLE = ("held", "pose", "place", "eyes")
"""Attributes that can be changed in every mascot, where they have two values."""


def can_edit(casting: Casting, changes: Collection[str] = CHANGES) -> bool:
    """Whether one of the changes is possible in any of its mascots."""
    return any(
        name in changes and len(set(casting.values(name))) > 1
        for name in ALWAYS_POSSIBLE
    )


def edit(
    seed: int, index: int, casting: Casting, changes: Collection[str] = CHANGES
) -> Pair:
    """One mascot before, and after one or two of the changes; `can_edit` must hold."""
    lots = Lots(seed, "edit", index)
    before = after = random_mascot(lots, casting)
    words: list[str] = []
    for kind in lots.shuffled("kinds", list(changes)):
        if len(words) < lots.choose("changes", (1, 1, 2)) and (
            change := CHANGES[kind](after, casting, lots)
        ):
            words.append(change[0])
            after = change[1]
    return Pair((before,), " and ".join(words), (after,))


HAT_RATE = 0.4
"""Share of the edits of two mascots in which the first puts on the hat of the
second."""


def edit_of_two(
    seed: int, index: int, casting: Casting, hat_rate: float = HAT_RATE
) -> Pair:
    """Two mascots before; afterwards both side by side, or the first with the hat of
    the second. hat_rate: 0 to 1, the share of hats where it can be another hat."""
    lots = Lots(seed, "edit of two", index)
    first = random_mascot(lots, casting)
    of_second = Casting() if casting.fixed else casting
    second = random_mascot(lots, of_second, "second ")
    hats = [
        hat
        for hat in _hats_of(first, casting)
        if hat not in (NONE, first.hat) and hat in _hats_of(second, of_second)
    ]
    if hats and lots.chance("hat", hat_rate):
        second = replace(second, hat=lots.choose("hat of the second", hats))
        after = replace(first, hat=second.hat, hat_colour=second.hat_colour)
        return Pair(
            (first, second),
            "the mascot of Picture 1 wears the hat of Picture 2",
            (after,),
        )
    place = lots.choose("place of both", casting.values("place"))
    words = f"the mascots of Picture 1 and Picture 2 side by side, {PLACES[place]}"
    return Pair(
        (first, second),
        words,
        (replace(first, place=place), replace(second, place=place)),
    )

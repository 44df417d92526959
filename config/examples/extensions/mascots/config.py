"""The section of `type: mascots`.

It checks the attributes against each other and against the characters that are held
out. It draws nothing: `process` does, with `mascot`, `drawing` and `words`. The reader
of jobs (`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import (
    OneOf,
    WritePathStr,
    as_list,
    reader_of,
    schema_of_list,
    value_error,
)
from toolkit.config.reading.process import Diagnostic, JobContext, ProcessConfig
from toolkit.files.writing import file_in_the_way, why_not_replaced
from toolkit.plan.run_plan import RunPlan

from .mascot import ALL, MARKS, NAMELESS, Casting
from .words import ALWAYS_POSSIBLE, CHANGES, HAT_RATE, can_edit

RECIPE = "mascots.json"
"""File in the folder with the settings that decide the pictures."""

LEAST_SIDE, MOST_SIDE = 32, 1024
"""Pixels of a picture's sides."""

CHARACTERS = ("pretraining", "held_out", "reserved", "any", "random", "patterned")
FORMS = ("mixed", "full", "short", "free")


def _size(value: Any) -> tuple[int, int]:
    sides = value
    if isinstance(value, int) and not isinstance(value, bool):
        sides = (value, value)
    elif isinstance(value, str) and (
        match := re.fullmatch(r"\s*(\d{1,6})\s*(?:[x×]\s*(\d{1,6})\s*)?", value)
    ):
        sides = (int(match[1]), int(match[2] or match[1]))
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or not all(isinstance(side, int) for side in sides)
    ):
        raise value_error(
            f"{value!r} is not a size. Write pixels such as 128, or width x height such as '192x128'."
        )
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
        raise value_error(
            f"{value!r} is out of range: sides are {LEAST_SIDE} to {MOST_SIDE} pixels."
        )
    return sides[0], sides[1]


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


Sizes = Annotated[
    tuple[
        Annotated[tuple[int, int], BeforeValidator(_size), PlainSerializer(_size_text)],
        ...,
    ],
    BeforeValidator(as_list),
    Field(min_length=1),
    schema_of_list({"anyOf": [{"type": "integer"}, {"type": "string"}]}),
]


def _one_of(names: Collection[str]) -> tuple[BeforeValidator, WithJsonSchema]:
    """Annotations of a text that is one of these names."""
    return BeforeValidator(reader_of(names, {})), WithJsonSchema(
        {"type": "string", "enum": list(names)}
    )


def _some_of(names: Collection[str]) -> tuple[BeforeValidator, WithJsonSchema]:
    """Annotations of a list of these names."""
    read = reader_of(names, {})

    def read_all(given: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(read, as_list(given))))

    items = {"type": "array", "items": {"type": "string", "enum": list(names)}}
    return BeforeValidator(read_all), WithJsonSchema(
        {"anyOf": [{"type": "string"}, items]}
    )


Names = tuple[str, ...]


class OnlyConfig(StrictModel):
    """`only`: values to choose from, one or a list. An attribute that is not given has
    all of its values.

    Example:
        only: {pose: [standing, jumping], hat: [none, cap]}
    """

    body: Annotated[Names, *_some_of(ALL["body"])] = ()
    """Shapes of the body."""

    colour: Annotated[Names, *_some_of(ALL["colour"])] = ()
    """Colours of the body."""

    mark: Annotated[Names, *_some_of(ALL["mark"])] = ()
    """Marks on the belly."""

    eyes: Annotated[Names, *_some_of(ALL["eyes"])] = ()
    """Eyes, and the mouth that belongs to them."""

    hat: Annotated[Names, *_some_of(ALL["hat"])] = ()
    """Hats."""

    hat_colour: Annotated[Names, *_some_of(ALL["hat_colour"])] = ()
    """Colours of hats."""

    held: Annotated[Names, *_some_of(ALL["held"])] = ()
    """Objects in the hand."""

    pose: Annotated[Names, *_some_of(ALL["pose"])] = ()
    """Poses."""

    place: Annotated[Names, *_some_of(ALL["place"])] = ()
    """Places."""

    def given(self) -> dict[str, Names]:
        """Attribute -> its values, for the attributes that are given."""
        return {name: values for name in ALL if (values := getattr(self, name))}


class CharacterConfig(StrictModel):
    """`character`: one mascot that is in all pictures. Captions call it by its trigger
    word and do not say how it looks. Bodies 'star' and 'ghost', colours 'teal' and
    'brown', and marks are in no picture for pretraining.

    Example:
        character: {trigger: pipo, body: star, colour: teal, mark: stripes}
    """

    example: ClassVar[str] = "{trigger: pipo, body: star, colour: teal, mark: stripes}"

    trigger: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^\S(.*\S)?$")]
    """Its name: 'pipo' makes captions such as "a pipo mascot, wearing a red cap, ..."
    of it."""

    body: Annotated[str, *_one_of(ALL["body"])] = "star"
    """Shape of its body."""

    colour: Annotated[str, *_one_of(ALL["colour"])] = "teal"
    """Colour of its body."""

    mark: Annotated[str, *_one_of(ALL["mark"])] = MARKS[0]
    """Mark on its belly."""

    eyes: Annotated[str, *_one_of(ALL["eyes"])] = "big eyes"
    """Its eyes."""


class MascotsConfig(ProcessConfig):
    """`type: mascots`: draws pictures of mascots with captions. The same settings give
    the same files.

    Example:
        type: mascots
        path: output/pictures
        count: 48
        captions: free
    """

    process_types: ClassVar[tuple[str, ...]] = ("mascots",)

    path: WritePathStr
    """Folder to write. In it: `pictures`; `edits/after`, `edits/picture_1`;
    `edits_of_two/after`, `picture_1`, `picture_2`; `scribbles`."""

    count: int = Field(default=100, ge=0, le=1_000_000)
    """Pictures with captions. 0: none."""

    edits: int = Field(default=0, ge=0, le=1_000_000)
    """Pairs: a mascot, and the same with one or two changes; the caption is the
    instruction. 0: none."""

    changes: Annotated[Names, *_some_of(CHANGES)] = tuple(CHANGES)
    """Attributes that edits may change: hat, held, pose, place, eyes and colour, all by
    default. One of held, pose, place and eyes must be among them, as not every mascot
    can have another hat or colour."""

    edits_of_two: int = Field(default=0, ge=0, le=1_000_000)
    """Two mascots, and both of them in one picture, or the first with the hat of the
    second. 0: none."""

    hat_rate: float = Field(default=HAT_RATE, ge=0, le=1)
    """Share of `edits_of_two` in which the first mascot puts on the hat of the second,
    where it can be another one; in the others both are side by side. 0 to 1."""

    instruction: str = ""
    """Caption of all pairs, such as a word that names the edit. Empty: a description of
    the change."""

    scribbles: int = Field(default=0, ge=0, le=1_000_000)
    """Pictures of any shapes in any colours, without captions: for autoencoders that
    should do more than mascots. 0: none."""

    size: Sizes = ((128, 128),)
    """Pixels of a picture's sides, or width x height such as `192x128`; of a list each
    picture has one. 32 to 1024; everything can be recognised from 64 on."""

    crop: int = Field(default=0, ge=0, le=MOST_SIDE)
    """Keep a square of this side, in pixels, from a random place of each picture and
    scribble: to train an autoencoder on details. Captions describe the whole picture.
    0: whole pictures."""

    mascots: Annotated[
        Literal["pretraining", "held_out", "reserved", "any", "random", "patterned"],
        OneOf(),
    ] = "pretraining"
    """Which combinations are drawn. pretraining: all but one colour of the eight for
    each body and hat. held_out: only these. reserved: bodies, colours and marks that
    occur in neither. any: all of the above. random: each picture has a unique body and
    colour, which its caption does not name. patterned: and a unique pattern on its
    belly."""

    only: OnlyConfig = Field(default_factory=OnlyConfig)
    """Values to choose from."""

    character: CharacterConfig | None = None
    """One mascot that is in all pictures, instead of many."""

    jitter: float = Field(default=0.0, ge=0, le=1)
    """How much mascots differ in place and size. 0: all stand in the middle and have
    one size; a model draws firmer outlines then. 1: moved by up to 3 % of a side and
    scaled by up to 6 %, better for an autoencoder and for whatever recognises
    mascots."""

    captions: Annotated[Literal["mixed", "full", "short", "free"], OneOf()] = "mixed"
    """full: all attributes. short: some of them. free: in any order, or with an
    invented name instead of the looks. mixed: 6 of 10 full, 2 short, 2 free."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides all pictures; 0 is a valid seed."""

    overwrite: bool = False
    """Replace the files that this program wrote in the folder. Off: complete pictures
    of the same settings are kept."""

    def folder(self) -> Path:
        """`path` as an absolute path."""
        return Path(self.path).expanduser().resolve()

    def casting(self) -> Casting:
        """The mascots that may be drawn."""
        fixed = self.character.model_dump() if self.character else {}
        return Casting(self.mascots, self.only.given(), fixed, self.jitter)

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the pictures, as plain data."""
        left_out = {
            "type",
            "name",
            "path",
            "overwrite",
            *([] if self.instruction else ["instruction"]),
        }
        return self.model_dump(mode="json", exclude=left_out)

    def total(self) -> int:
        """Pictures and pairs."""
        return self.count + self.edits + self.edits_of_two + self.scribbles

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder."""
        return frozenset({self.folder()})

    def outputs_exist(self, job: JobContext) -> bool:
        """Whether the folder is complete: it exists only then."""
        return (self.folder() / RECIPE).is_file()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A file or a folder of somebody else in the way, and settings that leave
        nothing to draw."""
        if file := file_in_the_way(self.folder()):
            yield Diagnostic(("path",), f"'{file}' is a file. Give a folder to write.")
        elif reason := why_not_replaced(self.folder()):
            yield Diagnostic(("path",), reason)
        if self.crop and not LEAST_SIDE <= self.crop <= min(map(min, self.size)):
            message = f"{self.crop} is out of range: {LEAST_SIDE} to the shortest side of 'size', or 0."
            yield Diagnostic(("crop",), message)
        if not self.total():
            yield Diagnostic(
                ("count",),
                "nothing to draw. Give count, edits, edits_of_two or scribbles above 0.",
            )
        yield from self._check_character() if self.character else self._check_only()
        if self.edits and not can_edit(self.casting(), self.changes):
            named = " or ".join(
                name for name in ALWAYS_POSSIBLE if name in self.changes
            )
            if named:
                yield Diagnostic(
                    ("only",),
                    f"leaves nothing to change in an edit. Allow two values of {named}.",
                )
            else:
                message = f"not every mascot can change so. Add one of {', '.join(ALWAYS_POSSIBLE)}."
                yield Diagnostic(("changes",), message)

    def _check_character(self) -> Iterable[Diagnostic]:
        if "mascots" in self.model_fields_set:
            yield Diagnostic(
                ("mascots",), "'character' is drawn alone. Remove one of the two."
            )
        for name in ("body", "colour", "mark", "eyes"):
            if getattr(self.only, name):
                yield Diagnostic(
                    ("only", name), "'character' says what it is. Remove it here."
                )

    def _check_only(self) -> Iterable[Diagnostic]:
        everything, amiss = Casting(self.mascots), False
        for name, values in self.only.given().items():
            if name in NAMELESS.get(self.mascots, ()):
                amiss = True
                message = f"'mascots: {self.mascots}' gives each its own. Remove one of the two."
                yield Diagnostic(("only", name), message)
            elif unknown := [
                value for value in values if value not in everything.values(name)
            ]:
                amiss = True
                message = f"{unknown[0]!r} is not among the mascots of {self.mascots!r}. Write 'mascots: any'."
                yield Diagnostic(("only", name), message)
        if not amiss and not self.casting().looks():
            message = f"no body, colour and hat of these are together in {self.mascots!r}. Allow more of them."
            yield Diagnostic(("only",), message)

    def plan(self, job: JobContext) -> RunPlan:
        """The number of pictures of each kind."""
        parts = {
            "pictures": self.count,
            "edits": self.edits,
            "edits of two": self.edits_of_two,
            "scribbles": self.scribbles,
        }
        drawn = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
        sizes = ", ".join(map(_size_text, self.size))
        return RunPlan(
            self.type,
            self.display_name(job),
            (),
            0,
            0,
            0,
            notes=(f"draws {drawn} at {sizes} in {self.path}",),
        )

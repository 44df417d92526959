"""The meaning of the columns of a table: by the names that libraries and public
datasets give them, or by the keys of the job.

`columns.csv` is the list of names, each with its source. A name with `paths_only` has
other meanings too: such a column counts only if all its values are names of image
files, so that `source: flickr` is not a control image. `datasets` writes `X_file_name`, or
`X_file_names` for lists, where an image X is a separate file: such a column is X.
"""

from __future__ import annotations

import csv
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.data.pixels.images import IMAGE_SUFFIXES
from toolkit.data.scan.directory import split_suffix
from toolkit.data.scan.partners import in_yaml


class KnownName(NamedTuple):
    """A name of a column.

    >>> [known.name for known in known_names() if known.role == "tags"]
    ['tags']
    """

    role: str
    """`image`, `prompt`, `tags` or `control`: as the keys of
    `datasets[].columns`, and kohya's tags."""

    name: str
    """In lower case, without `_file_name`; of `control` with any number behind it."""

    source: str
    """The program or data set that uses the name."""

    paths_only: bool
    """Whether it counts only where all values are names of image files."""


@cache
def known_names() -> tuple[KnownName, ...]:
    """Every name that is known without `columns`. Of one role, earlier names take
    precedence."""
    file = Path(__file__).with_name("columns.csv")
    with file.open(encoding="utf-8", newline="") as rows:
        return tuple(
            KnownName(**row | {"paths_only": row["paths_only"] == "yes"})
            for row in csv.DictReader(rows)
        )


class Unfit(ValueError):
    """A row, or a whole table, that cannot be used: why, and what to do."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what, as they are written in it. Of `image` and
    `prompt` the first is used that a row has.

    >>> columns = Columns(image=("file_name",), prompt=("text",))
    >>> columns.is_table
    True
    """

    image: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    """In slot order."""

    mask: tuple[str, ...] = ()
    weight: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    is_of_pairs: bool = False
    """Whether control images and masks without a row are left out of the training. This
    is False for the names that were known before `columns`, so that runs with them
    continue as they began."""

    @property
    def is_table(self) -> bool:
        """Whether the table describes images: it has a column for the image and another
        one for its caption or its control image."""
        return bool(self.image and (self.prompt or self.control))


def columns_of(rows: Sequence[Mapping[Any, Any]], given: ColumnsConfig) -> Columns:
    """The columns of a table. given: `datasets[].columns`, which goes before the known
    names of a role.

    Raises Unfit for a given column that no row has.

    >>> rows = [{"input_image": "a.png", "edited_image": "b.png"}]
    >>> columns = columns_of(rows, ColumnsConfig())
    >>> columns.image, columns.control
    (('edited_image',), ('input_image',))
    """
    written = dict.fromkeys(key for row in rows for key in row if isinstance(key, str))
    by_name = {key.strip().lower(): key for key in written}
    of_role = {
        role: _given(getattr(given, role), by_name, role)
        for role in ColumnsConfig.model_fields
    }
    taken = {*chain.from_iterable(of_role.values())}
    for role in ("image", "prompt", "tags", "control"):
        if not of_role.get(role):
            free = [key for key in written if key not in taken]
            of_role[role] = _known(role, free, rows)
    early = {
        known.name
        for known in known_names()
        if known.role == "control" and not known.paths_only
    }
    controls = {
        re.sub("_[0-9]+$", "", key.strip().lower()) for key in of_role["control"]
    }
    return Columns(
        **of_role,
        is_of_pairs=bool(of_role["mask"] or given.control or controls - early),
    )


def _given(
    names: Iterable[str], by_name: Mapping[str, str], role: str
) -> tuple[str, ...]:
    missing = [name for name in names if name.strip().lower() not in by_name]
    if missing:
        raise Unfit(
            f"has no column {missing[0]!r}, which 'columns' gives as {role!r}. "
            f"Its columns are {', '.join(by_name.values())}"
        )
    return tuple(by_name[name.strip().lower()] for name in names)


def _known(
    role: str, written: Iterable[str], rows: Sequence[Mapping[Any, Any]]
) -> tuple[str, ...]:
    """The columns of a role, by their known names: of control images in the order of
    the numbers behind the names, else in the order of the list."""
    names = {known.name: known for known in known_names() if known.role == role}
    ranks = {name: rank for rank, name in enumerate(names)}
    found: list[tuple[int, Any, str]] = []
    for place, key in enumerate(written):
        name = _base(key)
        order: tuple[int, Any] = (ranks.get(name, -1), -place)
        if role == "control":
            match = re.fullmatch(r"(.+)_([0-9]+)", name)
            order = (-1, key)
            if match and name not in names:
                name = match[1]
                order = (int(match[2]), key)
        if name in names and (not names[name].paths_only or are_images(key, rows)):
            found.append((*order, key))
    return tuple(key for *_, key in sorted(found))


def _base(column: str) -> str:
    """The name of a column without the ending that `datasets` adds for images."""
    name = column.strip().lower()
    return name.removesuffix("_file_name").removesuffix("_file_names") or name


def are_images(column: str, rows: Sequence[Mapping[Any, Any]]) -> bool:
    """Whether a column has values, and all of them are names of image files."""
    values = [value for row in rows for value in texts_in(row.get(column))]
    suffixes = {split_suffix(value)[1] for value in values}
    return bool(values) and suffixes <= IMAGE_SUFFIXES


JOINED = re.compile(r"""["']\s+["']""")
"""Texts of a list without a comma, as numpy writes them: Python would join them."""

NO_TEXT = "."
"""In the place of a value that is not text. It is not the name of a file."""


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a value, one or a list, without empty ones. A list may be written in
    a cell, as JSON or Python has it. Any other value yields NO_TEXT.

    >>> [*texts_in('["a.png", "b.png"]')]
    ['a.png', 'b.png']
    """
    is_list = isinstance(value, str) and value.lstrip().startswith(("[", "("))
    if is_list and not JOINED.search(value):
        with suppress(ValueError, SyntaxError):
            inside = literal_eval(value.strip())
            value = [*inside] if {*map(type, inside)} <= {str} else value
    values = value if isinstance(value, list) else [value]
    for text in values:
        if isinstance(text, str):
            if text.strip():
                yield text.strip()
        elif text is not None:
            yield NO_TEXT


def first_of(row: Mapping[Any, Any], columns: Iterable[str]) -> str | None:
    """The first of `columns` that `row` has; None where it has none of them.

    >>> first_of({"image": "a.png", "text": "a cat"}, ("caption", "text"))
    'text'
    """
    return next((column for column in columns if column in row), None)


# ---------------------------------------------------------------- what a message asks


def to_fill_in(
    given: ColumnsConfig, pictures: Sequence[str], roles: Iterable[str]
) -> str:
    """The remedy for columns of which nothing says what they are: the key of the job
    with open places, for a message. given: what the job gives, which stays. pictures:
    columns of images besides those that are trained. roles: that are open too.

    >>> to_fill_in(ColumnsConfig(image=("after",)), ["before"], ["prompt"])
    "Fill in 'columns: {image: after, prompt: ..., control: ...}' (or mask, or ignore)"
    """
    fields = dict(given) | {
        "control": [*given.control, *["..."] * len(pictures)],
        **{role: ["..."] for role in roles},
    }
    return f"Fill in {in_job(fields)}{' (or mask, or ignore)' * bool(pictures)}"


def in_job(roles: Mapping[str, Sequence[str]]) -> str:
    """The key of the job that gives these columns, for a message.

    >>> in_job({"image": ["after"], "control": ["a", "b"], "mask": []})
    "'columns: {image: after, control: [a, b]}'"
    """
    lists = {role: ", ".join(map(in_yaml, names)) for role, names in roles.items()}
    says = ", ".join(
        f"{role}: [{listed}]" if len(roles[role]) > 1 else f"{role}: {listed}"
        for role, listed in lists.items()
        if listed
    )
    return f"'columns: {{{says}}}'"


def ignoring(columns: Iterable[str], given: ColumnsConfig) -> str:
    """The key of the job that leaves these columns out, for a message. given: what it
    gives, which stays."""
    return in_job(dict(given) | {"ignore": [*given.ignore, *columns]})


def is_text(text: str) -> bool:
    """Whether a text is neither a number nor the name of a file nor an address.

    >>> [is_text(text) for text in ("cat", "0.5", "a.png", "https://x.org/1")]
    [True, False, False, False]
    """
    is_name = split_suffix(text)[1] in IMAGE_SUFFIXES or "://" in text
    return bool(text) and not is_name and not re.fullmatch(r"[\d.,:+eE/-]+", text)

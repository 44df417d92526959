"""The findings of a scan, errors and notes, and the words of their messages.

A scan has one `ScanFindings`. Every stage adds to it, so that all errors are reported
at once and notes keep the order of the stages. Below it are functions that interpret
the names of folders (repeats, splits, regularisation) and functions for the words of
messages, which the plan, `lint` and the page use too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.captions import captions_of
from toolkit.data.scan.directory import DirectoryListing, ScanCache
from toolkit.data.scan.repeats import REPEATS
from toolkit.data.scan.tables import Table, read_table
from toolkit.errors import Diagnostic
from toolkit.files.unreadable import denied

REGULARISATION = (
    "its name says that these are regularisation images, and they are trained as what is to be learned, with the "
    "trigger word. If they are, give the folder as a dataset with 'is_reg: true'"
)
"""Message for a folder that `named_as_regularisation` knows and its dataset does
not."""

_LISTED_NAMES = 20


@dataclass(frozen=True)
class ScanFindings:
    """Errors, notes and unused files of all datasets. Each stage of the scan adds to
    them.

    >>> findings = ScanFindings(ScanCache(), read_captions=True)
    >>> findings.mistake("photos/a.png", "is empty. Copy it again")
    >>> findings.mistakes[0].place
    'photos/a.png'
    """

    scan_cache: ScanCache
    read_captions: bool
    """Whether the training does; otherwise missing ones are not reported."""

    mistakes: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    """Files that are not used although they seem intended for use, and why. The lists
    below have the same form."""

    unpaired: list[tuple[str, str]] = field(default_factory=list)
    held_out: list[tuple[str, str]] = field(default_factory=list)
    mask_faults: list[tuple[str, str]] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)
    """Folders whose numbers are probably not repeats, and why."""

    of_pairs: set[str] = field(default_factory=set)
    """Tables whose control images and masks are not trained where they have no row."""

    tables: dict[tuple[str, int], Table] = field(default_factory=dict)
    """The tables that were read, by path and entry of `datasets`."""

    def table(self, path: str, dataset: DatasetConfig, called: str = "") -> Table:
        """The table of captions in a file, as an entry of `datasets` has it; each is
        read once. called: as of `read_table`."""
        key = (path, id(dataset))
        if key not in self.tables:
            several = dataset.captions == "lines"
            self.tables[key] = read_table(path, dataset.columns, called, several)
        return self.tables[key]

    def mistake(self, place: str, message: str) -> None:
        """Adds an error that stops the job. place: the file, folder or key that it is
        about."""
        self.mistakes.append(Diagnostic((place,), message))

    def note(self, place: str, message: str) -> None:
        """Adds a line of the plan. place: as of `mistake`."""
        self.notes.append(f"{place}: {message}")

    def warn(self, place: str, message: str) -> None:
        """Adds a warning. place: as of `mistake`."""
        self.note(f"warning: {place}", message)

    def not_used(
        self,
        listing: DirectoryListing,
        names: Sequence[str],
        reason: str,
        remedy: str,
        listed: list[tuple[str, str]],
    ) -> None:
        """Notes files that are not used although they seem intended for use. listed: the
        list of the findings that they are added to."""
        self.warn(
            listing.folder,
            f"{count_of(len(names), 'file')} not used, {reason}: {shorten(names)}. {remedy}",
        )
        listed += [(listing.path(name), f"{reason}. {remedy}") for name in names]

    def listing(self, folder: str, key: str = "") -> DirectoryListing | None:
        """The folder, or None where it cannot be read. key: of its path in the config,
        for the message."""
        begin = f"{key} cannot be read as a folder".lstrip()
        try:
            return self.scan_cache.listing(folder)
        except PermissionError:
            cause = denied(Path(folder).expanduser())
            self.mistake(folder, f"{begin}: {cause.what}. {cause.remedy}")
        except OSError as error:
            self.mistake(folder, f"{begin}: {error.strerror or error}")
        return None


# ---------------------------------------------------------------- what the names of
# folders say


_REGULARISATION = re.compile(
    r"(?:.*[_\W])?(?:regs?|regulari[sz]ation(?:s|_?images)?)(?:[_\W].*)?|class(?:es|_?images)?",
    re.IGNORECASE,
)


def named_as_regularisation(folder: str) -> bool:
    """Whether the name of a folder says that its images are regularisation images, as
    kohya's users have it: `1_reg`, `reg_dog`, `regularization`, `class`.

    >>> named_as_regularisation("photos/1_reg"), named_as_regularisation("photos/maya")
    (True, False)
    """
    name = os.path.basename(os.path.abspath(folder))
    repeats = REPEATS.match(name)
    return bool(_REGULARISATION.fullmatch(name, repeats.end() if repeats else 0))


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> names of folders for it. Source: datasets 5.2.0, `SPLIT_KEYWORDS`."""


def split_of(name: str) -> str:
    """`train`, `validation` or `test`, where the name of a folder says so, with any
    number around it; else ''.

    >>> split_of("val_2"), split_of("photos")
    ('validation', '')
    """
    word = re.sub(r"^[\W_0-9]+|[\W_0-9]+$", "", name.lower())
    return next((split for split, words in SPLITS.items() if word in words), "")


def held_out_folders(names: Iterable[str]) -> list[str]:
    """The folders among neighbours that are not for training by their names, such as
    `validation` and `test`. Empty where no neighbour is named as the training split.

    >>> held_out_folders(["train", "test", "val"]), held_out_folders(["test", "maya"])
    (['test', 'val'], [])
    """
    splits = {name: split_of(name) for name in names}
    if "train" not in splits.values():
        return []
    return [name for name, split in splits.items() if split not in ("", "train")]


def repeats_of(folder: str) -> int:
    """The uses per epoch of each image that the name of a folder asks for; 0 where the
    name does not begin with such a number.

    >>> repeats_of("datasets/10_maya"), repeats_of("datasets/maya")
    (10, 0)
    """
    return int(matched_name(folder, REPEATS) or 0)


def matched_name(folder: str, pattern: re.Pattern[str]) -> str:
    """The first group of `pattern` in the name of a folder, matched from its beginning;
    empty where it does not match.

    >>> matched_name("datasets/10_maya", re.compile(r"([0-9]+)_"))
    '10'
    """
    # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
    match = pattern.match(os.path.basename(os.path.abspath(folder)))
    return match[1] if match else ""


def texts_of(text: str, dataset: DatasetConfig) -> list[str]:
    """The captions of an image by the text of its file or row: one, empty for none, or
    several."""
    return (captions_of(text) or [""]) if dataset.captions == "lines" else [text]


# ---------------------------------------------------------------- words of messages


def count_of(number: int, what: str, several: str = "") -> str:
    """A number with its noun: `1 file`, `2,000 files`. several: the plural, where it
    does not end with `s`.

    >>> count_of(1, "file"), count_of(2000, "match", "matches")
    ('1 file', '2,000 matches')
    """
    if number != 1:
        what = several or f"{what}s"
    return f"{number:,} {what}"


def shorten(names: Iterable[str]) -> str:
    """The names joined by commas. After the first 20 only their number follows.

    >>> shorten(["a.png", "b.png"]), shorten(map(str, range(25)))[-13:]
    ('a.png, b.png', '19 and 5 more')
    """
    names = list(names)
    more = len(names) - _LISTED_NAMES
    listed = ", ".join(names[:_LISTED_NAMES])
    return f"{listed} and {more} more" if more > 0 else listed

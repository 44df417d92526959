"""Votes on pairs of images of the same prompt.

`pairs_of` makes the pairs of a folder's images. `Ballot` says which pair is next, and
writes the votes. Each vote is one line of `votes.jsonl` in the folder of the images, and
is on the disk before the request is answered. Training can read that file as a table of
pairs (docs/preferences.md). The images themselves are not changed, and the job that
learns from the votes is written by `extensions.tools.ui.preference_job`.

The only caller is the page for votes (`extensions.tools.ui.views.votes`).
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice, pairwise, zip_longest
from pathlib import Path
from typing import Any
from zlib import crc32

from extensions.tools.shared.candidates import VOTES, Group
from extensions.tools.ui.state import inside
from toolkit.data.pixels.images import IMAGE_SUFFIXES, ImageError, image_size
from toolkit.data.scan.columns import UNDECIDED
from toolkit.files.redact import redact_json
from toolkit.files.writing import (
    folder_lock,
    fsync,
    os_error_as_run_error,
    read_regular,
    write_text,
)
from toolkit.train.run_reader import row_of

MOST_COMPARED = 4
"""Up to so many images of a prompt, each image is paired with every other one. In a
larger group it is paired with the next one only."""

LEFT, RIGHT, SAME, BAD = CHOICES = ("left", "right", "same", "both bad")


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, as they are shown.

    Example::

        pair = pairs_of(read_groups(folder))[0]
        print(pair.group.prompt, pair.left, pair.right)
    """

    left: str
    right: str
    group: Group

    @property
    def names(self) -> frozenset[str]:
        """The names of both images, in no order."""
        return frozenset((self.left, self.right))


def pairs_of(groups: Iterable[Group]) -> list[Pair]:
    """The pairs to vote on: the first pair of each group, then the second, and so on.

    A hash of the names decides which image is on the left, so the side does not show
    which image is newer.
    """
    columns = [_pairs_of_group(group) for group in groups]
    pairs = {}
    for row in zip_longest(*columns):
        for pair in row:
            if pair and len(pair.names) == 2:
                pairs[pair.names] = pair
    return [*pairs.values()]


def _pairs_of_group(group: Group) -> list[Pair]:
    files = [f for f in group.files if Path(f).suffix.lower() in IMAGE_SUFFIXES]
    is_small = len(files) <= MOST_COMPARED
    pairs = []
    for one, other in combinations(files, 2) if is_small else pairwise(files):
        is_turned = crc32(f"{one}\n{other}".encode()) & 1
        pairs.append(Pair(other, one, group) if is_turned else Pair(one, other, group))
    return pairs


@dataclass
class Ballot:
    """The pairs of a folder and the votes on them.

    Example::

        ballot = Ballot(folder, pairs_of(read_groups(folder)))
        for pair in ballot.next_pairs(1):
            ballot.vote(pair.names, "left")
    """

    folder: Path
    pairs: Sequence[Pair]

    @cached_property
    def votes(self) -> list[dict[str, Any]]:
        """The lines of `votes.jsonl`. A line that is not an object is read as an empty
        one."""
        return [_row(line) for line in self._lines()]

    @property
    def file(self) -> Path:
        """Path of `votes.jsonl`. Raises HTTPException 404 for a link that leads out of
        the folder."""
        return inside(self.folder, VOTES)

    @property
    def decided(self) -> list[dict[str, Any]]:
        """The votes for one of both images. Training uses only these."""
        return [row for row in self.votes if "better" in row]

    def next_pairs(self, most: int) -> list[Pair]:
        """The first pairs that have no vote yet and can be shown, at most `most`."""
        known = {_names(row) for row in self.votes}
        left = (pair for pair in self.pairs if pair.names not in known)
        return [*islice(filter(self._is_shown, left), most)]

    def _is_shown(self, pair: Pair) -> bool:
        """Whether both images exist, have the same size, and differ."""
        left, right = (inside(self.folder, name) for name in (pair.left, pair.right))
        with suppress(ImageError, OSError):
            is_same_size = image_size(left) == image_size(right)
            return is_same_size and not filecmp.cmp(left, right, shallow=False)
        return False

    def vote(self, names: frozenset[str], choice: str) -> bool:
        """Writes a vote on a pair. The same vote again changes nothing.

        names: of both images. choice: one of CHOICES. Returns False for an unknown pair
        or choice, and if the pair has another vote already. Raises RunError if the disk
        cannot be written.
        """
        pair = next((pair for pair in self.pairs if pair.names == names), None)
        if pair is None or choice not in CHOICES:
            return False
        row: dict[str, Any] = {UNDECIDED: choice, "images": sorted(names)}
        if choice == LEFT:
            row = {"better": pair.left, "worse": pair.right}
        elif choice == RIGHT:
            row = {"better": pair.right, "worse": pair.left}
        row |= {"prompt": pair.group.prompt, "control": [*pair.group.control]}
        row = redact_json(row)
        with folder_lock(self.folder):
            lines = self._lines()
            for stands in map(_row, lines):
                if _names(stands) == names:
                    return stands == row
            self._write([*lines, json.dumps(row, ensure_ascii=False)])
        return True

    def undo(self, count: int) -> None:
        """Removes the last vote if there are exactly `count` of them. Otherwise somebody
        has voted meanwhile, and nothing is removed."""
        with folder_lock(self.folder):
            lines = self._lines()
            if count and len(lines) == count:
                self._write(lines[:-1])

    def _lines(self) -> list[str]:
        try:
            text = read_regular(self.file).decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n") if line.strip()]

    def _write(self, lines: Sequence[str]) -> None:
        """Replaces the file by a new one that is on the disk already, so a kill leaves no
        part of a line."""
        write_text(self.file, "".join(f"{line}\n" for line in lines))
        with os_error_as_run_error(self.folder):
            fsync(self.folder)
        self.__dict__.pop("votes", None)


def _row(line: str) -> dict[str, Any]:
    return row_of(line.encode()) or {}


def _names(row: dict[str, Any]) -> frozenset[str]:
    images = row.get("images", [row.get("better"), row.get("worse")])
    if isinstance(images, list):
        return frozenset(name for name in images if isinstance(name, str))
    return frozenset()

"""Votes on the images of a prompt: which pairs there are, and what was said of each.

Each vote is a line of `votes.jsonl` beside the images, on the disk before it is
answered; the file is a table of pairs as it stands (docs/preferences.md)."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, zip_longest
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

MOST_COMPARED = 4
"""Up to so many images of a prompt are each compared with each; in a larger group only
with the next one."""

LEFT, RIGHT, SAME, BAD = CHOICES = ("left", "right", "same", "both bad")


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, as they are shown."""

    left: str
    right: str
    group: Group

    @property
    def names(self) -> frozenset[str]:
        """Both, in no order."""
        return frozenset((self.left, self.right))


def pairs_of(groups: Iterable[Group]) -> list[Pair]:
    """The pairs to vote on: one of each group, then the second of each. Which image is
    left is drawn from their names, so that no order in time is seen."""
    columns = []
    for group in groups:
        files = []
        for file in group.files:
            if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                files.append(file)
        couples = (
            combinations(files, 2) if len(files) <= MOST_COMPARED else pairwise(files)
        )
        columns.append(
            [
                Pair(b, a, group)
                if crc32(f"{a}\n{b}".encode()) & 1
                else Pair(a, b, group)
                for a, b in couples
            ]
        )
    pairs = {}
    for row in zip_longest(*columns):
        for pair in row:
            if pair and len(pair.names) == 2:
                pairs[pair.names] = pair
    return [*pairs.values()]


@dataclass
class Ballot:
    """The pairs of a folder and the votes on them."""

    folder: Path
    pairs: Sequence[Pair]

    @cached_property
    def votes(self) -> list[dict[str, Any]]:
        """Lines of `votes.jsonl`; one that is not an object counts as an empty one."""
        return [_row(line) for line in self._lines()]

    @property
    def file(self) -> Path:
        """`votes.jsonl`. Raises HTTPException 404 for a link that leads out of the
        folder."""
        return inside(self.folder, VOTES)

    @property
    def decided(self) -> list[dict[str, Any]]:
        """The votes that a run learns from."""
        return [row for row in self.votes if "better" in row]

    def next_pairs(self, most: int) -> list[Pair]:
        """The first pairs without a vote that can be shown."""
        known = {_names(row) for row in self.votes}
        pairs: list[Pair] = []
        for pair in self.pairs:
            if len(pairs) == most:
                break
            if pair.names not in known and self._is_shown(pair):
                pairs.append(pair)
        return pairs

    def _is_shown(self, pair: Pair) -> bool:
        """Whether both images are there, of one size, and not the same."""
        with suppress(ImageError, OSError):
            left, right = (
                inside(self.folder, name) for name in (pair.left, pair.right)
            )
            return image_size(left) == image_size(right) and not filecmp.cmp(
                left, right, shallow=False
            )
        return False

    def vote(self, names: frozenset[str], choice: str) -> bool:
        """Writes what somebody says of a pair, once; False where it is none, or another
        vote on it stands. Raises RunError where the disk cannot be written."""
        pair = next(
            (candidate for candidate in self.pairs if candidate.names == names), None
        )
        if pair is None or choice not in CHOICES:
            return False
        better, worse = (
            (pair.left, pair.right) if choice == LEFT else (pair.right, pair.left)
        )
        verdict: dict[str, Any] = {UNDECIDED: choice, "images": sorted(names)}
        if choice in (LEFT, RIGHT):
            verdict = {"better": better, "worse": worse}
        row: dict[str, Any] = {
            **verdict,
            "prompt": pair.group.prompt,
            "control": [*pair.group.control],
        }
        row = redact_json(row)
        with folder_lock(self.folder):
            lines = self._lines()
            for stands in map(_row, lines):
                if _names(stands) == names:
                    return stands == row
            self._write([*lines, json.dumps(row, ensure_ascii=False)])
        return True

    def undo(self, count: int) -> None:
        """Takes the last of `count` lines out; none where there are more or less by
        now."""
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
        """A file beside the old one takes its place, and both are on the disk: no
        moment leaves a piece of a line."""
        write_text(self.file, "".join(f"{line}\n" for line in lines))
        with os_error_as_run_error(self.folder):
            fsync(self.folder)
        self.__dict__.pop("votes", None)


def _row(line: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return {}


def _names(row: dict[str, Any]) -> frozenset[str]:
    images = row.get("images", [row.get("better"), row.get("worse")])
    if isinstance(images, list):
        return frozenset(name for name in images if isinstance(name, str))
    return frozenset()

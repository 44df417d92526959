"""Absolute paths of this machine in texts that are given away: each becomes the name of
its file or folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir

from toolkit.files.redact import redact_text

_HOMES = (r"/(?:home|Users)/[^/\s\"'<>]+", r"[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s\"'<>]+")
"""Folders that hold files of users on any machine."""


def public_text(run: Path, settings: object) -> Callable[[str], str]:
    """Redacts a text, and shortens the paths in it: below a home, the working
    directory, the folder of the run, that of temporary files, and what else the
    settings of the run name.

    run: its folder. settings: JSON data.
    """
    homes = {
        str(Path.home()),
        str(Path.cwd()),
        str(run.resolve().parent),
        gettempdir(),
        *_absolute(settings),
    }
    known = sorted(
        (path.rstrip("/\\") for path in homes if len(Path(path).parts) > 1),
        key=len,
        reverse=True,
    )
    places = "|".join((*map(re.escape, known), *_HOMES))
    pattern = re.compile(
        rf"(?<![\w./:-])(?:{places})(?![\w.-])(?P<below>[/\\][^\s\"'<>|,;)]*)?"
    )

    def last_part(match: re.Match[str]) -> str:
        below = re.split(r"[/\\]+", (match["below"] or "").rstrip("/\\"))[-1]
        return below or ("~" if Path(match[0]) == Path.home() else _name_of(match[0]))

    return lambda text: pattern.sub(last_part, redact_text(text))


def _name_of(path: str) -> str:
    """The last part of a path; of a home, whose name is that of a person, `~`."""
    whole = any(re.fullmatch(home, path.rstrip("/\\")) for home in _HOMES)
    if whole:
        return "~"
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def _absolute(data: object) -> Iterator[str]:
    """The absolute paths among the texts of JSON data."""
    if isinstance(data, dict | list | tuple):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _absolute(value)
    elif isinstance(data, str) and Path(data).is_absolute():
        yield data

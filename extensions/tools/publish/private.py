"""Removes absolute paths of this machine from texts that are published: each becomes
the name of its file or folder.

Secrets are redacted by `toolkit.files.redact`, which is called first. Images and
captions are not read. `process` calls it for the model card and for the metadata of
LoRA files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir

from toolkit.files.redact import redact_text

_HOMES = (r"/(?:home|Users)/[^/\s\"'<>]+", r"[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s\"'<>]+")
"""Folders that hold files of users on any machine."""


def public_text(run: Path, settings: object) -> Callable[[str], str]:
    """A function that redacts a text and shortens the paths in it. These are paths
    below a home, the working directory, the folder that contains the run, the folder of
    temporary files, and other absolute paths in the settings of the run.

    run: its folder. settings: JSON data.

    >>> public = public_text(Path("output/my_char"), {"model": "/data/models/qwen"})
    >>> public("trained with /data/models/qwen/vae")
    'trained with vae'
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
    """The last part of a path; `~` for a home, because it has the name of a person."""
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

"""Why a file cannot be read, and the remedy, where the file itself is not damaged:
permissions, a disk that does not answer, a pointer of Git LFS or a copied link in place
of the file.

Downloading a file again only helps against damage, so other causes are told apart here.
Readers of images, captions, configs and weights call `cause_of` or `explained` when
they fail. Imports no torch.

Source of the pointer's form: git-lfs, docs/spec.md, "The Pointer".
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from toolkit.files.writing import read_regular
from toolkit.shortage import shortage

GIT_LFS = "what Git LFS has in the place of a file that was not downloaded"
"""A pointer, in words."""

AGAIN = "Copy or download the model again."
"""The remedy for a file of a model that is damaged or missing."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_LINK = re.compile(r"(?:\.{1,2}/|/)[^\s\0]+")
"""The contents of a link that was copied as a text file: `../../blobs/0123abc` of a hub
cache."""

LONGEST = 1024
"""Bytes of a pointer or a link: larger files are neither."""

_IN_ITS_PLACE = "Put the safetensors file in its place"
_KINDS = {
    "it is a web page": "Download the file itself: this is the page of one, or of a login",
    "it is a GGUF file": _IN_ITS_PLACE,
    "it is a pickle of torch": _IN_ITS_PLACE,
    "it is an image": _IN_ITS_PLACE,
    "it is an image or a film": _IN_ITS_PLACE,
}
"""What `safetensors_io.read_header` says of a file of another kind -> the remedy."""


class Cause(NamedTuple):
    """Why a file cannot be read.

    >>> stand_in(b"../../blobs/0123abc").what
    "it is a link that became a text file: it holds '../../blobs/0123abc'"
    """

    what: str
    """In words that follow the name of the file and a colon."""

    remedy: str
    """Without a full stop."""


def cause_of(path: Path, error: Exception) -> Cause | None:
    """Why a file could not be read; None where it is probably damaged.

    >>> cause_of(Path("a"), PermissionError(13, "Permission denied", "a")).what
    'Permission denied'
    """
    short = shortage(error)
    if short:
        return Cause(short.what, short.remedy)
    if isinstance(error, PermissionError):
        return denied(path)
    if isinstance(error, OSError) and error.errno in (
        errno.EINVAL,
        errno.ELOOP,
        errno.EISDIR,
    ):
        return Cause(str(error.strerror), "Put the file itself in its place")
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return Cause(str(error.strerror), "Look whether its disk is mounted and works")
    head = b""
    with suppress(OSError):
        if path.stat().st_size <= LONGEST:
            head = read_regular(path)
    remedy = _KINDS.get(str(error))
    return stand_in(head) or (Cause(str(error), remedy) if remedy else None)


def stand_in(contents: bytes) -> Cause | None:
    """The cause where something else is in place of a file, by its whole contents: a
    pointer of Git LFS, or a link that became text. Else None."""
    text = contents.decode("utf-8", "replace").strip()
    if len(contents) > LONGEST or not _LINK.fullmatch(text):
        return pointer(contents)
    return Cause(
        f"it is a link that became a text file: it holds {text[:80]!r}",
        "Copy the folder with the files that its links lead to (cp -rL, rsync -aL)",
    )


def in_its_place(contents: bytes) -> str:
    """`stand_in` by the first bytes of a file (`LONGEST` and one more): cause and remedy
    in words that follow its name; empty for the file itself."""
    cause = stand_in(contents)
    return f"{cause.what.replace('it is', 'is', 1)}. {cause.remedy}" if cause else ""


def pointer(contents: bytes) -> Cause | None:
    """The cause where Git LFS has left a pointer in place of a file, by its whole
    contents; None for other files."""
    if len(contents) > LONGEST or not contents.startswith(_POINTER):
        return None
    return Cause(
        f"it is {GIT_LFS}",
        "Run 'git lfs pull' in its repository, or download the file by itself",
    )


def explained(path: Path, error: Exception, damaged: str, again: str) -> str:
    """Why a file cannot be read, with the remedy. damaged, again: the words where it is
    damaged.

    >>> explained(Path("a"), ValueError("it is cut off"), "damaged weights", "Copy or download the model again.")
    'damaged weights (it is cut off). Copy or download the model again.'
    """
    cause = cause_of(path, error)
    if cause:
        return f"not readable ({cause.what}). {cause.remedy}."
    return f"{damaged} ({error}). {again}"


def unread_file(folder: Path) -> str:
    """The first file of a folder that cannot be read for another reason than damage,
    explained; empty: none."""
    place, cause = folder, None
    try:
        for place in filter(Path.is_file, sorted(folder.iterdir())):
            with place.open("rb") as opened:
                cause = stand_in(opened.read(LONGEST + 1))
            if cause:
                break
    except OSError as error:
        cause = cause_of(place, error)
    return f"{place}: not readable ({cause.what}). {cause.remedy}." if cause else ""


def denied(path: Path) -> Cause:
    """Who owns what may not be read, the file or a folder above it, and who asks."""
    file = Path(os.path.realpath(path))  # of a link what it leads to
    place = _closed(file)
    status = None
    with suppress(OSError):
        status = place.stat()
    if status is None or not hasattr(os, "getuid"):
        return Cause(
            "Permission denied",
            f"Give read permission of {place} to the user who runs this program",
        )
    is_folder = place.is_dir()
    rights = "rx" if is_folder else "r"
    is_owner = status.st_uid == os.getuid()
    what = (
        f"Permission denied: {'it' if place == file else place} belongs to "
        f"{_user(status.st_uid)}, mode {status.st_mode & 0o777:03o}"
    )
    who = "" if is_owner else f", and this program runs as {_user(os.getuid())}"
    command = (
        f"Run: chmod {'u' if is_owner else 'a'}+{rights} {shlex.quote(str(place))}"
    )
    by = "" if is_owner else ", as the owner or root; or run this program as the owner"
    if os.access(place, os.R_OK | (os.X_OK if is_folder else 0)):  # not by its mode
        return Cause(
            f"{what}{who}",
            "Look at the rights of its mount, its access list and the container's",
        )
    return Cause(f"{what}{who}", f"{command}{by}")


def _closed(path: Path) -> Path:
    """The first folder on the way that may not be entered, or the file."""
    folders = reversed(path.parents)
    return next((one for one in folders if not os.access(one, os.X_OK)), path)


def _user(uid: int) -> str:
    """`root (uid 0)`; of a user without a name, as in a container, the number."""
    import pwd  # not on Windows, where nobody asks

    with suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"uid {uid}"

"""Lists files of a folder that are not used, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from toolkit.data.directory import DirectoryListing, split_suffix

_UNREAD_IMAGES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
_TEXT_SUFFIXES = frozenset({".txt", ".caption", ".cap", ".json"})
_LISTED_NAMES = 20


def ignored_files(
    listing: DirectoryListing, captions: Sequence[list[str]], caption_ext: Sequence[str]
) -> Iterator[str]:
    """One note per reason. captions: as of `caption_files`; caption_ext: the suffixes they have."""
    if any(len(names) - names.count("") == len(listing.files) for names in captions):
        return  # each has one caption, and there is nothing else
    used = set(chain.from_iterable(captions))
    reasons: dict[str, list[str]] = {}
    for name, written in listing.files.items():
        if written not in used:
            reasons.setdefault(_why_ignored(name, listing, caption_ext), []).append(written)
    for reason, names in reasons.items():
        yield f"{listing.folder}: ignored, {reason}: {shorten(names)}"


def shorten(names: Iterable[str]) -> str:
    """A list that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more


def _why_ignored(name: str, listing: DirectoryListing, caption_ext: Sequence[str]) -> str:
    suffix = split_suffix(name)[1]
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not supported (convert to PNG or JPEG)"
    if name.endswith(tuple(map(str.lower, caption_ext))):
        return "caption without an image"
    if suffix in _TEXT_SUFFIXES and name.removesuffix(suffix) in listing.images:
        return f"not a caption, because caption_ext is {' '.join(caption_ext)}"
    return "not an image"

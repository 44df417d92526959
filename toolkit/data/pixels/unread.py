"""Files of valid kinds that are not read: each is refused by its name. `other_kind`
tells what a file is that is not named as an image.

`images`, `colours` and `tiff` raise `Unread`; `images` adds the name of the file. It
does not look at the pixels.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.files.parquet import kind_of_picture

SAVE_IT = "Save it as sRGB PNG or JPEG"

_OTHER_FORMATS = {
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"8BPS": "a Photoshop document",
    b"v/1\x01": "an OpenEXR image",
    b"%PDF": "a PDF",
    **dict.fromkeys(
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "a TIFF that is damaged, or not grey, RGB or CMYK of 8 or 16 bits",
    ),
}
"""First bytes of files that are not read -> their kind."""


class Unread(ValueError):
    """A valid file of a kind that is not read; the message names the kind, as in `a
    JPEG XL`."""

    @property
    def reason(self) -> str:
        """The kind, and what to do."""
        return f"is {self}, which is not read. {SAVE_IT}"


def unread_kind(beginning: bytes) -> str:
    """The kind of a file that no decoder takes, by its first bytes; empty: unknown.

    >>> unread_kind(b"8BPS")
    'a Photoshop document'
    """
    kinds = (
        kind for begin, kind in _OTHER_FORMATS.items() if beginning.startswith(begin)
    )
    return next(kinds, "") or unread_jpeg(beginning)


def unread_jpeg(beginning: bytes) -> str:
    """The kind of a JPEG that its decoder does not read, by the marker that begins its
    frame; else empty.

    Source of the layout: ITU-T T.81, table B.1 and B.2.2.
    """
    at = 2 if beginning[:2] == b"\xff\xd8" else len(beginning)
    while at + 9 <= len(beginning) and beginning[at] == 0xFF:
        marker = beginning[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            bits = beginning[at + 4]
            return "" if bits == 8 else f"a JPEG of {bits} bits"
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return "a lossless JPEG"
        at += 2 + int.from_bytes(beginning[at + 2 : at + 4], "big")
    return ""


_VIDEO = ("a video", "Take single frames as PNG")
_RAW = ("a camera's raw file", "Export it as PNG or JPEG")
_UNREAD = "Convert it to PNG or JPEG"
_ENDINGS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"), _VIDEO),
    **dict.fromkeys((".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".3gp"), _VIDEO),
    **dict.fromkeys((".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef"), _RAW),
    **dict.fromkeys((".nrw", ".arw", ".sr2", ".srf", ".srw", ".orf"), _RAW),
    **dict.fromkeys((".rw2", ".raf", ".pef", ".x3f", ".3fr", ".iiq"), _RAW),
    **{
        ending: (f"a {ending} file, which is not read", _UNREAD)
        for ending in (".jp2", ".psd", ".svg", ".exr", ".tga", ".ppm", ".jxr", ".ico")
    },
}
"""Ending of a file -> what it is, and what to do. Raw files begin as TIFF."""


def stranger(beginning: bytes) -> tuple[str, str]:
    """What is in the place of an image, and what to do: a video, or a web page; empty
    for anything else. beginning: the first bytes of a file."""
    is_film = beginning[4:8] in (b"moov", b"mdat", b"wide") or (
        beginning[4:8] == b"ftyp" and not kind_of_picture(beginning)
    )
    is_film |= beginning[:4] == b"RIFF" and beginning[8:12] == b"AVI "
    if is_film or beginning.startswith((b"\x1aE\xdf\xa3", b"FLV\1")):
        return _RAW if beginning[8:12] == b"crx " else _VIDEO
    if beginning.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "Download the image itself"
    return "", ""


def other_kind(name: str, beginning: bytes = b"") -> tuple[str, str]:
    """What a file is that is not named as an image and seems to be one, or a video, and
    what to do; both empty for any other. beginning: its first bytes.

    >>> other_kind("clip.MP4"), other_kind("notes.md", b"# Notes")
    (('a video', 'Take single frames as PNG'), ('', ''))
    """
    by_ending = _ENDINGS.get(Path(name).suffix.lower(), ("", ""))
    ending = kind_of_picture(beginning)
    is_text = ending == ".bmp" and any(beginning[6:10])  # it begins with BM
    if ending and not is_text and not (by_ending == _RAW and ending == ".tif"):
        return (
            f"an image that does not end with {ending}",
            f"Rename it to end with {ending}",
        )
    film = stranger(beginning)
    return film if film in (_VIDEO, _RAW) else by_ending


def kind_of_file(path: str) -> tuple[str, str]:
    """`other_kind` of a file, with its first bytes where it can be read."""
    try:
        with open(path, "rb") as file:
            return other_kind(path, file.read(64))
    except OSError:
        return other_kind(path)

"""Files of kinds that are not read are called by their name."""

from pathlib import Path

import pytest

from toolkit.data.pixels.images import ImageError, inspect_image, open_image
from toolkit.data.pixels.unread import SAVE_IT

KINDS = {
    "a JPEG of 12 bits": b"\xff\xd8\xff\xe0\0\x04ab\xff\xc1\0\x11\x0c\0\x10\0\x10\3",
    "a lossless JPEG": b"\xff\xd8\xff\xc3\0\x11\x08\0\x10\0\x10\3",
    "a JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a JPEG XL": b"\xff\x0a",
    "a JPEG XL, which": b"\0\0\0\x0cJXL \r\n\x87\n",
    "an OpenEXR image": b"v/1\x01",
    "a Photoshop document": b"8BPS",
    "a PDF": b"%PDF",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_are_called_by_their_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(KINDS[kind] + bytes(40))
    for read in (open_image, inspect_image):
        with pytest.raises(ImageError, match=rf"is {kind}.* {SAVE_IT}$"):
            read(path)
    with pytest.raises(ImageError, match=f"shard/1: is {kind}.* {SAVE_IT}$"):
        open_image("shard/1", data=path.read_bytes())


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"\n<!DOCTYPE html>\n", "is a web page. Download the image itself"),
        (b"\0\0\0\x20ftypisom", "is a video. Take single frames as PNG"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "is a video. Take single frames as PNG"),
        (b"\x1aE\xdf\xa3", "is a video. Take single frames as PNG"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video. Take single frames as PNG"),
        (b"\0\0\0\x18ftypcrx ", "is a camera's raw file. Export it as PNG or JPEG"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_named(
    tmp_path: Path, begin: bytes, reason: str
) -> None:
    (tmp_path / "a.png").write_bytes(begin + bytes(40))
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.png")
    assert caught.value.reason == reason

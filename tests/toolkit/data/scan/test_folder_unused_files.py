from pathlib import Path

import pytest

from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.found import shorten


@pytest.mark.parametrize(
    ("names", "suffixes", "found"),
    [
        ("a.png a.txt a.CAPTION b.png b.v2.txt", (".txt", ".caption", ".v2.txt"), []),
        (
            "a.png a.txt a.CAPTION b.png b.v2.txt",
            (".txt",),
            [
                "not a caption, because caption_ext is .txt: a.CAPTION",
                "caption without an image: b.v2.txt",
            ],
        ),
        (
            "a.png a.txt b.png c.txt",
            (".txt", ".txt"),
            ["caption without an image: c.txt"],
        ),
        (
            "a.png a.txt a.caption b.caption b.png c.txt",
            (".caption", ".txt"),
            ["caption without an image: c.txt"],
        ),
    ],
)
def test_files_that_are_neither_image_nor_caption(
    tmp_path: Path,
    image,
    dataset,
    names: str,
    suffixes: tuple[str, ...],
    found: list[str],
) -> None:
    for name in names.split():
        image(tmp_path / name) if name.endswith(".png") else (
            tmp_path / name
        ).write_text("text")
    notes = scan_datasets([dataset(tmp_path, caption_ext=suffixes)], "sks").notes
    assert [
        note.partition(" not used, ")[2].partition(". ")[0]
        for note in notes
        if " not used, " in note
    ] == found


def test_a_long_list_stays_short() -> None:
    assert shorten(str(number) for number in range(3)) == "0, 1, 2"
    assert shorten(map(str, range(1000))).endswith("18, 19 and 980 more")

from pathlib import Path

import pytest

from toolkit.data.scan.folder import scan_datasets


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

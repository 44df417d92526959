from pathlib import Path

from toolkit.data.captions import caption_files
from toolkit.data.directory import list_folder
from toolkit.data.folder import ignored_files, shorten


def notes(folder: Path, *suffixes: str) -> list[str]:
    listing = list_folder(str(folder))
    found = ignored_files(listing, caption_files(listing, suffixes), suffixes)
    return [f"{each.reason}: {', '.join(each.names)}" for each in found]


def test_a_caption_of_any_wanted_suffix_is_used(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "a.CAPTION", "b.png", "b.v2.txt"):
        (tmp_path / name).touch()
    assert notes(tmp_path, ".txt", ".caption", ".v2.txt") == []
    assert notes(tmp_path, ".txt") == [
        "not a caption, because caption_ext is .txt: a.CAPTION",
        "caption without an image: b.v2.txt",
    ]


def test_as_many_other_files_as_captions_are_noticed(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "b.png", "c.txt"):
        (tmp_path / name).touch()
    assert notes(tmp_path, ".txt", ".txt") == ["caption without an image: c.txt"]
    (tmp_path / "a.caption").touch()
    (tmp_path / "b.caption").touch()
    assert notes(tmp_path, ".caption", ".txt") == ["caption without an image: c.txt"]


def test_a_long_list_stays_short() -> None:
    assert shorten(str(number) for number in range(3)) == "0, 1, 2"
    assert shorten(map(str, range(1000))).endswith("18, 19 and 980 more")

import os
import socket
import tracemalloc
from pathlib import Path

from toolkit.data.scan.directory import list_folder, real_path
from toolkit.data.scan.fingerprint import version_of


def test_entries_are_sorted_and_hidden_ones_unseen(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "c.txt", "a.png", "Z.webp", "x.gif"):
        (tmp_path / name).touch()
    for name in ("sub", ".git"):
        (tmp_path / name).mkdir()
    listing = list_folder(str(tmp_path))
    assert list(listing.images) == ["Z", "a", "b", "x"]
    assert listing.images["a"] == ("a.JPG", "a.png")
    assert list(listing.files) == ["c.txt"] and listing.subfolders == ("sub",)


def test_names_match_in_any_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "e\u0301.png").touch()  # decomposed, as macOS writes it
    (tmp_path / "\u00e9.TXT").touch()
    listing = list_folder(str(tmp_path))
    assert list(listing.images) == ["\u00e9"] and list(listing.files) == ["\u00e9.txt"]


def test_seen_counts_by_suffix(tmp_path: Path) -> None:
    for name in ("a.psd", "b.PSD", "c.txt", "README"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert (
        list_folder(str(tmp_path)).describe()
        == "2 .psd, 1 .txt, 1 without suffix, 1 subfolder(s)"
    )


def test_broken_and_looping_links_do_not_stop_the_listing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    listing = list_folder(str(tmp_path))
    assert list(listing.images) == ["gone"] and listing.subfolders == ()
    assert listing.versions == {"gone.png": None, "loop": None}


def test_each_file_has_its_own_version(tmp_path: Path) -> None:
    for index, name in enumerate(("b.png", "a.txt", "c.png")):
        (tmp_path / name).write_bytes(b"x" * index)
    for name in ("b", "aa"):
        (tmp_path / name).mkdir()
    (tmp_path / "ab.png").symlink_to("nowhere.png")
    listing = list_folder(str(tmp_path))
    assert list(listing.versions) == [
        "a.txt",
        "ab.png",
        "b.png",
        "c.png",
    ] and listing.subfolders == ("aa", "b")
    own = {
        name: version_of((tmp_path / name).stat())
        for name in ("a.txt", "b.png", "c.png")
    }
    assert listing.versions == own | {"ab.png": None}


def test_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").touch()
    listing = list_folder("~/data")
    assert listing.folder == "~/data" and listing.path("a.png") == str(
        tmp_path / "data" / "a.png"
    )
    assert real_path("~/data") == real_path(str(tmp_path / "data"))


def test_pipes_sockets_and_devices_are_no_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has a limit of its own
    os.mkfifo("pipe.png")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.txt").symlink_to("pipe.png")
    (tmp_path / "file.png").touch()
    (tmp_path / "sub").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        listing = list_folder(str(tmp_path))
    assert {
        name: reason.split(",")[0] for name, reason in listing.no_files.items()
    } == {
        "pipe.png": "is a pipe",
        "socket.png": "is a socket",
        "to_pipe.txt": "is a pipe",
        "zero.txt": "is a device",
    }
    assert {
        name for name, version in listing.versions.items() if version is None
    } == set(listing.no_files)


def test_a_listing_takes_no_more_memory_than_what_it_keeps(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:05}.txt").touch()
    tracemalloc.start()
    try:
        listing = list_folder(str(tmp_path))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing.versions) == 2000 and list(listing.versions) == sorted(
        listing.versions
    )
    assert peak < 1.6 * kept, "what `stat` gave is three times that"


def test_names_alone_are_those_of_a_whole_listing(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "sub/b.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    (tmp_path / "broken.png").symlink_to(tmp_path / "none")
    whole, names = (
        list_folder(str(tmp_path)),
        list_folder(str(tmp_path), names_only=True),
    )
    assert names.images == whole.images == {"a": ("a.png",), "broken": ("broken.png",)}
    assert (
        (names.files, names.subfolders)
        == (whole.files, whole.subfolders)
        == ({"a.txt": "a.txt"}, ("link", "sub"))
    )
    assert set(names.versions) == set(whole.versions) and not any(
        names.versions.values()
    )

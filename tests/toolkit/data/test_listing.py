from pathlib import Path

from toolkit.data.listing import join, list_folder, same_place


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
    for name in ("a.heic", "b.HEIC", "c.txt", "README"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert list_folder(str(tmp_path)).seen() == "2 .heic, 1 .txt, 1 without suffix, 1 subfolder(s)"


def test_broken_and_looping_links_do_not_stop_the_listing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    listing = list_folder(str(tmp_path))
    assert list(listing.images) == ["gone"] and listing.subfolders == ()


def test_join_keeps_what_the_user_wrote() -> None:
    assert join("data", "40_a") == join("data/", "40_a") == "data/40_a"


def test_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").touch()
    listing = list_folder("~/data")
    assert listing.folder == "~/data" and listing.path("a.png") == str(tmp_path / "data" / "a.png")
    assert same_place("~/data") == same_place(str(tmp_path / "data"))

"""Zip files as folders of images."""

import math
import os
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from toolkit.files import archives, writing
from toolkit.files.archives import Limits, archive_in, opened, unpacked


def archive(path: Path, **members: str) -> str:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return str(path)


def test_a_path_leads_to_an_archive_or_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive(tmp_path / "A.ZIP", a="a")
    (tmp_path / "folder.zip").mkdir()
    assert archive_in(file) == (file, "")
    assert archive_in(f"{file}/before/2") == (file, "before/2")
    assert (
        archive_in(f"{tmp_path}/folder.zip")
        is archive_in(f"{tmp_path}/no.zip")
        is archive_in("a")
        is None
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert archive_in("~/A.ZIP") == (file, "")


def test_an_archive_is_unpacked_once_for_each_of_its_versions(tmp_path: Path) -> None:
    file, home = str(tmp_path / "a.zip"), tmp_path / "home"
    archive(
        tmp_path / "a.zip", **{"x/a.txt": "1", ".hidden": "", "__MACOSX/x/a.txt": ""}
    )
    folder = unpacked(file, home)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == [
        "x",
        "x/a.txt",
    ]
    (folder / "x" / "a.txt").write_text("kept")
    assert (
        unpacked(file, home) == folder
        and (folder / "x" / "a.txt").read_text() == "kept"
    )
    os.utime(archive(tmp_path / "a.zip", **{"a.txt": "2"}), (1, 1))
    again = unpacked(file, home)
    assert list(home.iterdir()) == [again] and (again / "a.txt").read_text() == "2"
    unpacked(archive(tmp_path / "b.zip", b="b"), home)
    assert len(list(home.iterdir())) == 2


def linked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        member = zipfile.ZipInfo("a")
        member.external_attr = 0o120777 << 16
        file.writestr(member, "/etc/passwd")


def encrypted(path: Path) -> None:
    archive(path, a="a")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: archive(path, **{"../a": "a"}),
            "'../a' leads out of the archive. Unpack it",
        ),
        (lambda path: archive(path, **{"/a": "a"}), "'/a' leads out of the archive"),
        (linked, "'a' leads out of the archive"),
        (encrypted, "'a' is encrypted. Unpack it"),
        (
            lambda path: path.write_bytes(b"PK\3\4" + bytes(99)),
            "is not a readable zip file",
        ),
        (
            lambda path: path.write_text(
                "version https://git-lfs.github.com/spec/v1\n"
            ),
            "is what Git LFS has in the place",
        ),
        (
            lambda path: path.write_bytes(
                Path(archive(path, x="a" * 999)).read_bytes().replace(b"aaa", b"bbb")
            ),
            "CRC",
        ),
    ],
)
def test_an_archive_that_cannot_be_used_leaves_nothing(
    tmp_path: Path, make, message: str
) -> None:
    make(tmp_path / "a.zip")
    with pytest.raises(OSError, match=message):
        unpacked(str(tmp_path / "a.zip"), tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == [] and not (tmp_path / "a").exists()


def test_an_archive_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "free_space", lambda path: writing.MARGIN + 4)
    unpacked(archive(tmp_path / "a.zip", a="1234"), tmp_path)
    with pytest.raises(
        OSError, match=r"needs 5 B unpacked, and 1.* are free in .*Make room"
    ):
        unpacked(archive(tmp_path / "b.zip", a="12345"), tmp_path)


def test_an_archive_from_elsewhere_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files, of bytes, and of bytes for each packed one; at a limit it is taken.
    What is stored is as large packed, and 200 zeros are a few bytes."""
    monkeypatch.setattr(archives, "FREE_RATIO", 10)
    stored = archive(tmp_path / "stored.zip", a="1234", b="12345678")
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(200))
        packed = file.infolist()[0].compress_size
    zeros, ratio = str(tmp_path / "zeros.zip"), math.ceil(200 / packed)

    for path, limits, refusal in (
        (stored, Limits(files=2, most_bytes=12, ratio=1), ""),
        (stored, Limits(files=1, most_bytes=12, ratio=1), "more than 1 files"),
        (stored, Limits(files=2, most_bytes=11, ratio=1), "12 B unpacked, at most 11"),
        (zeros, Limits(files=1, most_bytes=200, ratio=ratio), ""),
        (zeros, Limits(files=1, most_bytes=200, ratio=ratio - 1), "200 B unpacked"),
    ):
        refused = pytest.raises(OSError, match=refusal) if refusal else nullcontext()
        with refused, opened(path, limits) as (_, members):
            assert len(members) == limits.files, limits

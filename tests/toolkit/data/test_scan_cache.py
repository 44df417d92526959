"""What a scan remembers shortens the next one and changes nothing of what it finds."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from toolkit.data import captions, column_file, directory, file_hashes, image_probe, scan_cache
from toolkit.data.file_hashes import file_digest
from toolkit.data.folder import DatasetScan, scan_datasets
from toolkit.data.scan_cache import ScanCache
from toolkit.errors import DataErrors

MIN_FILE_AGE_NS = scan_cache.MIN_FILE_AGE_NS


def new_process() -> None:
    """One that has not seen any file."""
    for known in (file_hashes._known, file_hashes._recalled, file_hashes._computed):
        known.clear()


@pytest.fixture(autouse=True)
def settled(monkeypatch) -> None:
    """Files that were written a moment ago count as old ones."""
    monkeypatch.setattr(scan_cache, "MIN_FILE_AGE_NS", -(10**12))
    new_process()


@pytest.fixture
def data(tmp_path: Path, image) -> Path:
    """Six images, captions in two of the ways, references, masks; one image has a damaged profile."""
    for index in range(6):
        image(tmp_path / "3_data" / f"p{index}.png", 64 + index, 48)
        image(tmp_path / "before" / f"p{index}.png", 32, 48)
        image(tmp_path / "masks" / f"p{index}.png", 64 if index else 10, 48)
        (tmp_path / "3_data" / f"p{index}.txt").write_text(f"ünï {index}\r\nline", encoding="utf-8")
    (tmp_path / "3_data" / "p5.txt").write_text(" ")
    (tmp_path / "3_data" / "p4.txt").rename(tmp_path / "3_data" / "p4.TXT")
    Image.new("RGBA", (40, 40)).save(tmp_path / "3_data" / "é.png", icc_profile=b"no profile")
    return tmp_path / "3_data"


@pytest.fixture
def scan(tmp_path: Path, data: Path, dataset) -> Callable[..., DatasetScan]:
    """Scans as a new process does, with a manifest or without; keeps what was learned."""

    def run(remember: bool = True, save: bool = True, **changes) -> DatasetScan:
        new_process()
        given = {"control_path": (str(tmp_path / "before"),), "control_optional": True, "default_caption": "a thing"}
        section = dataset(data, **(given | {"mask_path": str(tmp_path / "masks"), "mask_optional": True} | changes))
        found = scan_datasets([section, dataset(data)], "sks", 1.0, ScanCache(tmp_path / "kept") if remember else None)
        if save:
            found.scan_cache.save()
        return found

    return run


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that were read since."""
    seen: list[str] = []

    def watched(module, name: str, path_of: Callable) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (seen.append(Path(path_of(args[0])).name), original(*args))[1])

    watched(image_probe, "inspect_image", str)
    watched(image_probe, "read_header", str)
    watched(captions, "read_caption", str)
    watched(file_hashes, "sha256_of", str)
    return seen


def test_the_second_scan_reads_nothing_and_finds_the_same(scan, reads) -> None:
    first = scan()
    assert len(reads) == 7 + 6 + 6 + 6  # images, references, masks, captions; both datasets use one folder
    reads.clear()
    again = scan()
    assert reads == []
    assert again == first == scan(remember=False)
    assert any("profile" in note for note in again.notes) and any("stretched" in note for note in again.notes)


def test_digests_are_remembered(scan, reads) -> None:
    first = scan()
    wanted = {sample.image: file_digest(sample.image) for sample in first.samples}
    assert all(hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest for path, digest in wanted.items())
    first.scan_cache.save()
    again = scan()
    reads.clear()
    assert {sample.image: file_digest(sample.image) for sample in again.samples} == wanted
    assert reads == []


def test_a_folder_of_two_names_is_digested_once(data: Path, tmp_path: Path, dataset, reads) -> None:
    (tmp_path / "link").symlink_to(data)

    def start() -> None:
        new_process()
        found = scan_datasets([dataset(data), dataset(tmp_path / "link")], None, 1.0, ScanCache(tmp_path / "kept"))
        for sample in found.samples:
            file_digest(sample.image)
        found.scan_cache.save()

    start()
    reads.clear()
    start()
    assert reads == []


def test_what_changed_is_read_again_and_only_that(scan, data: Path, reads) -> None:
    scan()
    Image.new("RGB", (99, 48)).save(data / "p1.png")
    (data / "p2.txt").write_text("other")
    (data / "p3.png").unlink()
    (data / "p3.txt").rename(data / "new.txt")
    (data / "p0.png").rename(data / "new.png")
    reads.clear()
    found = scan()
    assert sorted(set(reads)) == ["new.png", "new.txt", "p1.png", "p2.txt"]
    assert found == scan(remember=False)
    assert {sample.size.width for sample in found.samples if sample.name == "p1.png"} == {99}


def test_a_change_of_equal_size_with_its_time_set_back_is_noticed(scan, data: Path) -> None:
    scan()
    caption = data / "p1.txt"
    before = caption.stat()
    contents = caption.read_bytes()
    caption.write_bytes(contents.replace(b"line", b"LINE"))
    os.utime(caption, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert caption.stat().st_size == before.st_size
    assert any("LINE" in sample.caption for sample in scan().samples)


def test_a_picture_replaced_in_place_by_one_of_equal_size_is_noticed(scan, data: Path, reads) -> None:
    first = scan()
    before = {sample.name: file_digest(sample.image) for sample in first.samples}
    first.scan_cache.save()
    picture = data / "p1.png"
    stat, torn = picture.stat(), bytearray(picture.read_bytes())
    torn[torn.index(b"IDAT") + 4] ^= 0xFF
    picture.write_bytes(torn)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert picture.stat().st_size == stat.st_size and picture.stat().st_mtime_ns == stat.st_mtime_ns
    reads.clear()
    with pytest.raises(DataErrors, match=r"p1\.png"):  # it was read again, and is torn
        scan(save=False)
    assert set(reads) == {"p1.png"}
    assert file_digest(str(picture)) == hashlib.sha256(torn).hexdigest() != before["p1.png"]


def test_another_file_under_the_name_of_a_removed_one_is_noticed(scan, data: Path, tmp_path: Path, reads) -> None:
    first = scan()
    wanted = {sample.name: file_digest(sample.image) for sample in first.samples}
    first.scan_cache.save()
    for name in ("p1.png", "p1.txt"):  # as old as the one it replaces
        stat = (data / name).stat()
        other = tmp_path / f"other{Path(name).suffix}"
        other.write_bytes((data / name.replace("1", "2")).read_bytes())
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (data / name).unlink()
        other.rename(data / name)
    reads.clear()
    found = scan()
    assert sorted(set(reads)) == ["p1.png", "p1.txt"]
    assert found == scan(remember=False, save=False)
    assert file_digest(str(data / "p1.png")) == wanted["p2.png"] != wanted["p1.png"]


def test_a_folder_under_the_name_of_another_has_nothing_of_it(scan, data: Path, image, reads) -> None:
    scan()
    data.rename(data.with_name("away"))
    for index in range(6):
        image(data / f"p{index}.png", 200, 100 + index)
    reads.clear()
    found = scan()
    assert sorted(name for name in reads if not name.endswith(".txt")) == [f"p{index}.png" for index in range(6)]
    assert found == scan(remember=False, save=False)
    assert {sample.caption for sample in found.samples} == {"sks a thing", "sks"}
    for path in data.iterdir():
        path.unlink()
    data.rmdir()
    data.with_name("away").rename(data)
    assert scan() == scan(remember=False, save=False)


def test_a_file_of_another_name_is_another_one_whatever_its_version(scan, data: Path, monkeypatch, reads) -> None:
    monkeypatch.setattr(directory, "version_of", lambda stat: bytes(24))
    scan()
    (data / "p5.png").rename(data / "p9.png")
    reads.clear()
    assert scan(save=False) == scan(remember=False, save=False)
    assert "p9.png" in reads


def test_files_that_are_not_used_come_and_go_and_nothing_is_read(scan, data: Path, reads) -> None:
    first = scan()
    for change in ((data / "notes.md").touch, (data / "0.md").touch, scan, (data / "notes.md").unlink):
        change()
        reads.clear()
        assert scan(save=False).samples == first.samples
        assert reads == []


def test_a_change_within_one_step_of_the_clock_is_noticed(scan, data: Path, monkeypatch) -> None:
    """Times in steps of 2 s, as some file systems keep them; all contents are of one length."""

    def coarse(stat: os.stat_result) -> bytes:
        step = 2 * 10**9
        times = (time // step * step for time in (stat.st_mtime_ns, stat.st_ctime_ns))
        return struct.pack("<qqq", stat.st_size, *times)

    monkeypatch.setattr(directory, "version_of", coarse)
    monkeypatch.setattr(scan_cache, "MIN_FILE_AGE_NS", MIN_FILE_AGE_NS)
    for text in ("one", "two", "six"):
        (data / "p1.txt").write_text(text)
        assert any(sample.caption == f"sks {text}" for sample in scan().samples)


def test_only_changed_files_are_digested_again(scan, data: Path, reads) -> None:
    def digests_now() -> dict[str, str]:
        found = scan()
        reads.clear()
        taken = {sample.name: file_digest(sample.image) for sample in found.samples}
        found.scan_cache.save()
        return taken

    first = digests_now()
    assert len(reads) == len(first) == 7
    Image.new("RGB", (64, 48), "blue").save(data / "p0.png")
    (data / "new.png").write_bytes((data / "p1.png").read_bytes())
    second = digests_now()
    assert sorted(reads) == ["new.png", "p0.png"]
    assert (
        second == {**first, "new.png": first["p1.png"], "p0.png": second["p0.png"]}
        and second["p0.png"] != first["p0.png"]
    )
    assert digests_now() == second and reads == []


def test_a_scan_that_needs_no_digest_makes_none(scan, monkeypatch) -> None:
    first = scan()
    for sample in first.samples:
        file_digest(sample.image)
    first.scan_cache.save()
    monkeypatch.setattr(scan_cache, "_digests_of", None)
    assert scan() == first


def test_touched_files_are_read_again(scan, data: Path, reads) -> None:
    scan()
    os.utime(data / "p1.png", (1, 1))
    reads.clear()
    scan()
    assert set(reads) == {"p1.png"}


def test_what_changed_a_moment_ago_is_not_remembered(scan, reads, monkeypatch) -> None:
    monkeypatch.setattr(scan_cache, "MIN_FILE_AGE_NS", 10**13)
    scan()
    reads.clear()
    scan()
    assert len(reads) == 25


def test_offenders_are_named_at_each_start(scan, data: Path) -> None:
    (data / "p1.png").write_bytes(b"no picture")
    (data / "p2.txt").write_bytes(b"\xff")
    messages = []
    for _ in range(2):
        with pytest.raises(DataErrors) as caught:
            scan()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "p1.png" in messages[0] and "p2.txt" in messages[0]


def damages(document: bytes) -> list[bytes]:
    """Ways in which a stored manifest can be wrong; the last ones have a digest that fits."""
    _, _, contents = document.partition(b"\n")
    draw = random.Random(7)
    broken = [b"", b"{}", document[: len(document) // 2], document[1:], b"\xff" * 100]
    for _ in range(30):
        changed = bytearray(document)
        changed[draw.randrange(len(changed))] ^= 0xFF
        broken.append(bytes(changed))
    for other in (b"[]", b"null", b"{}", b"[" * 10_000):
        broken.append(hashlib.sha256(other).hexdigest().encode() + b"\n" + other)
    return broken + others(document) if contents else broken + [b""] * len(TAMPERED)


TAMPERED = ("format", "facts", "kinds", "names", "versions", "digests", "captions")


def others(document: bytes) -> list[bytes]:
    """What another version of the program may have written: of each part a little less, or another number."""
    facts, found = column_file.load_columns(document)
    del facts["lengths"]
    less = [facts | {"format": 1}, facts | {"facts": facts["facts"][:-1]}, facts | {"kinds": facts["kinds"][:-1]}]
    ends = {"names": found["names"].rindex(b"/", 0, -1) + 1, "versions": -24, "digests": -32, "captions": 0}
    parts = [found | {name: found[name][:end] if end else b"x\0" * 99} for name, end in ends.items()]
    return [column_file.dump_columns(other, found) for other in less] + [
        column_file.dump_columns(facts, part) for part in parts
    ]


def test_a_damaged_manifest_is_none(scan, tmp_path: Path, reads) -> None:
    wanted = scan(remember=False)
    scan()
    stored = {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert len(stored) == 3
    for kind, _ in enumerate(damages(b"\n")):
        for path, document in stored.items():
            path.write_bytes(damages(document)[kind])
        reads.clear()
        assert scan(save=False) == wanted
        assert len(reads) == 25, kind
    scan()
    assert {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == stored


def test_a_folder_that_cannot_be_written_is_enough(scan, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file in the way")
    assert scan() == scan() == scan(remember=False)


def test_no_manifest_is_made_where_nothing_is_new(scan, data: Path, monkeypatch) -> None:
    scan()
    made = []
    make = scan_cache._document
    monkeypatch.setattr(scan_cache, "_document", lambda listing: made.append(listing.place.name) or make(listing))
    found = scan()
    assert made == []
    file_digest(found.samples[0].image)
    found.scan_cache.save()
    assert made == ["3_data"]
    for change in ((data / "p1.txt").unlink, (data / "p2.txt").touch):
        made.clear()
        change()
        scan()
        assert made == ["3_data"]


def test_nothing_is_written_without_a_save_or_where_nothing_is_new(scan, tmp_path: Path, monkeypatch) -> None:
    scan(save=False)
    assert not (tmp_path / "kept").exists()
    scan()
    monkeypatch.setattr(scan_cache, "atomic_write", None)
    scan()


def test_writers_at_once_leave_a_whole_manifest(scan, tmp_path: Path, data: Path, dataset, reads) -> None:
    def work() -> None:
        for _ in range(10):
            found = scan_datasets([dataset(data)], None, 1.0, ScanCache(tmp_path / "kept"))
            os.utime(data / "p1.png")
            found.scan_cache.save()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = scan()
    reads.clear()
    assert scan() == wanted == scan(remember=False, save=False)
    assert not [path.name for path in (tmp_path / "kept").iterdir() if path.suffix != ".columns"]


def test_secrets_stay_in_the_users_files(scan, tmp_path: Path, data: Path) -> None:
    secret = "hf_" + "Abc123" * 6
    (data / "p1.txt").write_text(f"a thing {secret}")
    first = scan()
    assert scan() == first and any(secret in sample.caption for sample in first.samples)
    stored = [path.read_bytes() for path in (tmp_path / "kept").iterdir()]
    assert any(b"p2.txt" in document for document in stored)
    assert not any(secret.encode() in document for document in stored)


def test_many_pictures_are_known_by_their_headers_and_few_are_read_whole(scan, data: Path, monkeypatch) -> None:
    wanted = scan(remember=False)
    monkeypatch.setattr(image_probe, "READ_WHOLE", 5)
    assert scan(remember=False) == wanted
    torn = bytearray((data / "p1.png").read_bytes())
    torn[torn.index(b"IDAT") + 4] ^= 0xFF  # its pixels: only who reads them notices
    (data / "p1.png").write_bytes(torn)
    scan()
    monkeypatch.setattr(image_probe, "READ_WHOLE", 100)
    with pytest.raises(DataErrors, match=r"p1\.png"):
        scan()
    monkeypatch.setattr(image_probe, "READ_WHOLE", 5)
    (data / "p2.png").write_bytes((data / "p2.png").read_bytes()[:80])
    with pytest.raises(DataErrors) as caught:
        scan()
    assert [Path(mistake.place).name for mistake in caught.value.errors] == ["p2.png"]

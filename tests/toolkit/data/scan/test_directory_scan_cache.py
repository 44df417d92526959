"""What a scan remembers shortens the next one and changes nothing of what it finds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.toolkit.data.pixels.test_colours import gama
from toolkit.data.scan import captions, directory, fingerprint, folder_check
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import file_digest, image_digest
from toolkit.data.scan.folder import DatasetScan, scan_datasets
from toolkit.errors import DataErrors

MIN_FILE_AGE_NS = directory.MIN_FILE_AGE_NS


def new_process() -> None:
    """One that has not seen any file."""
    fingerprint._known.clear()
    fingerprint._readings.clear()


@pytest.fixture(autouse=True)
def settled(monkeypatch) -> None:
    """Files that were written a moment ago count as old ones."""
    monkeypatch.setattr(directory, "MIN_FILE_AGE_NS", -(10**12))
    new_process()


@pytest.fixture
def data(tmp_path: Path, image) -> Path:
    """Six images, captions in two of the ways, references, masks; one image has a
    damaged profile."""
    for index in range(6):
        image(tmp_path / "3_data" / f"p{index}.png", 64 + index, 48)
        image(tmp_path / "before" / f"p{index}.png", 32, 48)
        image(tmp_path / "masks" / f"p{index}.png", 64 if index else 10, 48)
        (tmp_path / "3_data" / f"p{index}.txt").write_text(
            f"ünï {index}\r\nline", encoding="utf-8"
        )
    (tmp_path / "3_data" / "p5.txt").write_text(" ")
    (tmp_path / "3_data" / "p4.txt").rename(tmp_path / "3_data" / "p4.TXT")
    Image.new("RGBA", (40, 40), "red").save(
        tmp_path / "3_data" / "é.png", icc_profile=b"no profile"
    )
    return tmp_path / "3_data"


@pytest.fixture
def scan(tmp_path: Path, data: Path, dataset) -> Callable[..., DatasetScan]:
    """Scans as a new process does, with a manifest or without; keeps what was
    learned."""

    def run(remember: bool = True, save: bool = True, **changes) -> DatasetScan:
        new_process()
        given = {
            "control_path": (str(tmp_path / "before"),),
            "control_optional": True,
            "default_caption": "a thing",
        }
        section = dataset(
            data,
            **(
                given
                | {"mask_path": str(tmp_path / "masks"), "mask_optional": True}
                | changes
            ),
        )
        found = scan_datasets(
            [section, dataset(data)],
            "sks",
            ScanCache(tmp_path / "kept") if remember else None,
        )
        if save:
            found.scan_cache.save()
        return found

    return run


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the images that were read since, and of files that were hashed."""
    seen: list[str] = []

    def watched(module, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda path: (seen.append(Path(path).name), original(path))[1]
        )

    watched(folder_check, "inspect_image")
    watched(folder_check, "inspect_header")
    watched(fingerprint, "sha256_of")
    return seen


def digests(found: DatasetScan) -> dict[str, str]:
    return {sample.name: file_digest(sample.image) for sample in found.samples}


def test_the_second_start_reads_no_image_and_finds_the_same(scan, reads) -> None:
    first = scan()
    # images, references, masks; both datasets use one folder
    assert len(reads) == 7 + 6 + 6
    wanted = digests(first)
    first.scan_cache.save()
    reads.clear()
    again = scan()
    assert digests(again) == wanted and reads == []
    assert again == first == scan(remember=False)
    assert any("profile" in note for note in again.notes) and any(
        "stretched" in note for note in again.notes
    )


def test_the_second_start_knows_the_colours_without_reading_a_header(
    scan, data: Path, monkeypatch
) -> None:
    whole = (data / "p0.png").read_bytes()
    (data / "p0.png").write_bytes(whole[:33] + gama(0.8) + whole[33:])
    first = scan()
    assert first.converted == ((str(data / "p0.png"), "gamma 0.8"),)
    wanted = {sample.image: image_digest(sample.image) for sample in first.samples}
    assert wanted[str(data / "p0.png")] != file_digest(data / "p0.png")
    first.scan_cache.save()
    asked: list[str] = []
    monkeypatch.setattr(
        fingerprint, "image_reading", lambda path: asked.append(path) or ""
    )
    again = scan()
    assert again.converted == first.converted
    assert {
        sample.image: image_digest(sample.image) for sample in again.samples
    } == wanted and not asked


def test_each_folder_is_listed_once_per_start(scan, data: Path, monkeypatch) -> None:
    listed = []
    listing = directory.list_folder
    monkeypatch.setattr(
        directory,
        "list_folder",
        lambda *path: listed.append(Path(path[0]).name) or listing(*path),
    )
    read = []
    text = captions.read_text
    monkeypatch.setattr(
        captions, "read_text", lambda path: read.append(Path(path).name) or text(path)
    )
    scan()
    assert (
        sorted(listed) == ["3_data", "before", "masks"]
        and sorted(read) == sorted(set(read))
        and len(read) == 6
    )


def test_what_changed_is_read_again_and_only_that(scan, data: Path, reads) -> None:
    first = scan()
    before = digests(first)
    first.scan_cache.save()
    Image.new("RGB", (99, 48)).save(data / "p1.png")
    (data / "p3.png").unlink()
    (data / "p0.png").rename(data / "new.png")
    os.utime(data / "p2.png", (1, 1))
    # of the same size, with its time set back: only the time of the entry tells
    picture = data / "p4.png"
    stat, other = picture.stat(), bytearray(picture.read_bytes())
    other[-1] ^= 0xFF
    picture.write_bytes(other)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reads.clear()
    found = scan()
    assert sorted(reads) == ["new.png", "p1.png", "p2.png", "p4.png"]
    assert found == scan(remember=False, save=False)
    assert (
        digests(found)["p4.png"]
        == hashlib.sha256(other).hexdigest()
        != before["p4.png"]
    )
    assert {
        sample.size.width for sample in found.samples if sample.name == "p1.png"
    } == {99}


def test_a_folder_under_the_name_of_another_has_nothing_of_it(
    scan, data: Path, image
) -> None:
    scan()
    data.rename(data.with_name("away"))
    for index in range(6):
        image(data / f"p{index}.png", 200, 100 + index)
    assert scan() == scan(remember=False, save=False)


def test_a_change_within_one_step_of_the_clock_is_noticed(
    scan, data: Path, monkeypatch, reads
) -> None:
    monkeypatch.setattr(directory, "MIN_FILE_AGE_NS", MIN_FILE_AGE_NS)
    scan()
    reads.clear()
    scan()
    assert len(reads) == 19  # all were written a moment ago


def test_offenders_are_named_at_each_start(scan, data: Path) -> None:
    (data / "p1.png").write_bytes(b"no picture")
    (data / "p2.txt").write_bytes(b"\xff")
    messages = []
    for _ in range(2):
        with pytest.raises(DataErrors) as caught:
            scan()
        messages.append(str(caught.value))
    assert (
        messages[0] == messages[1]
        and "p1.png" in messages[0]
        and "p2.txt" in messages[0]
    )


def test_a_damaged_or_foreign_cache_file_is_ignored(
    scan, tmp_path: Path, reads
) -> None:
    wanted = scan()
    stored = {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert len(stored) == 3
    document = next(iter(stored.values()))
    known = json.loads(document.partition(b"\n")[2])
    flipped = bytearray(document)
    flipped[len(flipped) // 2] ^= 0x01
    others = (
        {**known, "format": 3},
        [],
        None,
        {},
        {**known, "images": []},
        {**known, "images": {"p1.png": [1]}},
    )
    signed = [json.dumps(other).encode() for other in (*others, "[" * 10)] + [
        b"[" * 10_000
    ]
    signed = [
        hashlib.sha256(text).hexdigest().encode() + b"\n" + text for text in signed
    ]
    for contents in (
        b"",
        b"{}",
        document[: len(document) // 2],
        bytes(flipped),
        *signed,
    ):
        for path in stored:
            path.write_bytes(contents)
        reads.clear()
        assert scan(save=False) == wanted
        assert len(reads) == 19
    scan()
    assert {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == stored


def test_only_a_save_with_news_writes_and_need_not_be_able_to(
    scan, tmp_path: Path, monkeypatch
) -> None:
    scan(save=False)
    assert not (tmp_path / "kept").exists()
    (tmp_path / "kept").write_text("a file in the way")
    wanted = scan()
    (tmp_path / "kept").unlink()
    scan()
    monkeypatch.setattr(directory, "atomic_write", None)
    assert scan() == wanted


def test_names_with_secrets_stay_out_of_the_cache(
    scan, tmp_path: Path, data: Path
) -> None:
    secret = "hf_" + "Abc123" * 6
    (data / "p1.png").rename(data / f"{secret}.png")
    first = scan()
    assert scan() == first and any(secret in sample.image for sample in first.samples)
    stored = [path.read_bytes() for path in (tmp_path / "kept").iterdir()]
    assert any(b"p2.png" in document for document in stored)
    assert not any(secret.encode() in document for document in stored)


def test_many_images_are_known_by_their_headers_and_few_are_read_whole(
    scan, data: Path, monkeypatch, reads
) -> None:
    wanted = scan(remember=False)
    monkeypatch.setattr(folder_check, "READ_WHOLE", 5)
    assert scan(remember=False) == wanted
    torn = bytearray((data / "p1.png").read_bytes())
    torn[torn.index(b"IDAT") + 4] ^= 0xFF  # its pixels: only who reads them notices
    (data / "p1.png").write_bytes(torn)
    scan()
    reads.clear()
    scan()
    assert reads == []  # headers are remembered, too
    monkeypatch.setattr(folder_check, "READ_WHOLE", 100)
    with pytest.raises(DataErrors, match=r"p1\.png"):
        scan()
    monkeypatch.setattr(folder_check, "READ_WHOLE", 5)
    (data / "p2.png").write_bytes((data / "p2.png").read_bytes()[:80])
    with pytest.raises(DataErrors) as caught:
        scan()
    assert [Path(mistake.place).name for mistake in caught.value.errors] == ["p2.png"]

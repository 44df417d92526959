"""Files that are sent: in pieces with resume, checked by what they hold, never over
another one."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui import uploads
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import client_of
from tests.running import largest_file


def png(
    colour: str = "red",
    size: tuple[int, int] = (40, 30),
    mode: str = "RGB",
    kind: str = "PNG",
) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour if mode == "RGB" else 9).save(stream, kind)
    return stream.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def ui(ui: Ui) -> Ui:
    (ui.datasets / "d").mkdir()
    return ui


@pytest.fixture
def page(ui: Ui) -> TestClient:
    return client_of(ui, headers={"accept": "application/json"})


def piece(
    page: TestClient,
    name: str,
    whole: bytes,
    start: int = 0,
    end: int | None = None,
    **query: Any,
) -> Any:
    part = whole[start:end]
    query = {
        "name": name,
        "size": len(whole),
        "offset": start,
        "hash": f"{zlib.crc32(part):08x}",
    } | query
    return page.post(f"/datasets/d/upload?{urlencode(query)}", content=part)


def send(page: TestClient, name: str, whole: bytes) -> list[dict[str, str]]:
    """What became of a file, or of those in a zip."""
    answer = piece(page, name, whole)
    if answer.status_code == 422:
        return [
            {
                "name": name,
                "state": "refused",
                "text": answer.json()["detail"]
                if answer.text[:1] == "{"
                else answer.text,
            }
        ]
    assert answer.status_code in (200, 202), answer.text
    told = answer.json()["told"]
    while told["state"] == "checking":
        time.sleep(0.02)
        told = page.get(
            "/datasets/d/upload", params={"name": name, "size": len(whole)}
        ).json()["told"]
    return list(told["files"])


def files(ui: Ui) -> dict[str, bytes]:
    root = ui.datasets / "d"
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file()
    }


@pytest.mark.slow
def test_nothing_that_is_there_is_replaced(page: TestClient, ui: Ui) -> None:
    red, blue, green = png("red"), png("blue"), png("green")
    assert [send(page, "a.png", content)[0]["state"] for content in (red, red, blue, blue)] == [
        "added", "same", "renamed", "same"
    ]  # fmt: skip
    jpeg = png("green", kind="JPEG")
    assert send(page, "a.jpg", jpeg)[0]["text"] == "a-3.jpg", (
        "one of a stem would share the caption"
    )
    decomposed = unicodedata.normalize("NFD", "é.png")
    (ui.datasets / "d" / decomposed).write_bytes(red)
    assert send(page, "é.png", green)[0]["text"] == "é-2.png"
    assert files(ui) == {
        "a.png": red,
        "a-2.png": blue,
        "a-3.jpg": jpeg,
        decomposed: red,
        "é-2.png": green,
    }


@pytest.mark.slow
def test_an_upload_goes_on_where_it_was_after_the_page_was_killed(
    page: TestClient, ui: Ui
) -> None:
    whole = png(size=(300, 300)) + b"\0" * 3000
    third = len(whole) // 3
    assert piece(page, "x.png", whole, 0, third).json() == {"offset": third}
    again = client_of(Ui(ui.output, ui.datasets, ui.jobs, "", 0.0))
    there = again.get(
        "/datasets/d/upload", params={"name": "x.png", "size": len(whole)}
    ).json()
    assert there == {
        "offset": third,
        "hash": f"{zlib.crc32(whole[:third]):08x}",
        "told": None,
    }
    twice = piece(again, "x.png", whole, 0 + third, 2 * third)
    assert twice.json() == {"offset": 2 * third}
    late = piece(again, "x.png", whole, third, 2 * third)
    assert late.status_code == 409 and late.json()["offset"] == 2 * third, (
        "a piece that came twice"
    )
    assert (
        piece(again, "x.png", whole, 2 * third).json()["told"]["files"][0]["state"]
        == "added"
    )
    assert files(ui) == {"x.png": whole}
    assert not list((ui.own / "uploads").iterdir())


def test_a_piece_that_was_damaged_on_its_way_is_not_kept(
    page: TestClient, ui: Ui
) -> None:
    whole = png()
    answer = piece(page, "x.png", whole, 0, 20, hash="00000000")
    assert answer.status_code == 409 and answer.json()["offset"] == 0
    assert piece(page, "x.png", whole, 0, 20).status_code == 200
    assert (
        piece(page, "x.png", whole + b"more", 20, None, size=len(whole)).status_code
        == 409
    ), "longer than it said"
    assert piece(page, "x.png", whole, 0, 10).json() == {"offset": 10}, (
        "another file begins anew"
    )


def test_two_files_of_one_name_and_size_are_kept_apart_by_their_keys(
    page: TestClient, ui: Ui
) -> None:
    red, blue = png("red", kind="BMP"), png("blue", kind="BMP")
    assert len(red) == len(blue)
    assert piece(page, "x.bmp", red, 0, 20, key="1").json() == {"offset": 20}
    assert piece(page, "x.bmp", blue, 0, 10, key="2").json() == {"offset": 10}
    assert (
        piece(page, "x.bmp", red, 20, key="1").json()["told"]["files"][0]["state"]
        == "added"
    )
    assert (
        piece(page, "x.bmp", blue, 10, key="2").json()["told"]["files"][0]["state"]
        == "renamed"
    )
    assert files(ui) == {"x.bmp": red, "x-2.bmp": blue}


def test_a_piece_that_is_too_large_is_refused(page: TestClient) -> None:
    whole = b"x" * (uploads.PIECE + 1)
    assert piece(page, "x.png", whole).status_code == 413


def header_of_huge_png() -> bytes:
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 999)), (b"IEND", b"")]
    sealed = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
        for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def test_what_is_not_taken_says_why_and_leaves_nothing(
    page: TestClient, ui: Ui
) -> None:
    for name, content, says in (
        ("cut.jpg", png(size=(400, 400), kind="JPEG")[:-300], "truncated"),
        ("vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a JPEG"),
        ("page.jpg", b"<!DOCTYPE html><script>alert(1)</script>", "is a web page"),
        ("huge.png", header_of_huge_png(), "megapixels"),
        ("moving.webp", png(kind="GIF"), "GIF"),
        (
            "a.svg",
            b"<svg/>",
            "is a .svg file, which is not read. Convert it to PNG or JPEG",
        ),
        ("a.mp4", b"", "is a video. Take single frames as PNG"),
        ("a.CR2", b"", "is a camera's raw file. Export it as PNG or JPEG"),
        (
            "a.gif",
            b"GIF89a",
            "cannot be trained on: .gif. Save an image as PNG, a caption as .txt",
        ),
        ("nul.txt", b"a\0b", "zero byte"),
        ("latin.txt", "é".encode("latin-1"), "not UTF-8"),
        ("long.txt", b"x" * 100_001, "100 kB"),
        ("n" * 300 + ".png", png(), "304 bytes"),
        ("a/b.png", png(), "'/'"),
        ("..", png(), "hidden"),
        ("a\\b.png", png(), "'/'"),
        ("a\nb.png", png(), "control"),
        (".hidden.png", png(), "hidden"),
        ("empty.png", b"", "is empty"),
        ("zip.zip", b"PK\x03\x04 not really", "not a readable zip file"),
        ("table.csv", b"\xff\xfe", "not UTF-8"),
        ("a.crop", b"2 0", "two numbers from 0 to 1"),
    ):
        (told,) = send(page, name, content)
        assert told["state"] == "refused" and says in told["text"], told
        assert files(ui) == {} and not list((ui.own / "uploads").glob("*")), name


def test_what_training_reads_is_taken_as_it_is(page: TestClient, ui: Ui) -> None:
    sent = {
        "写真.png": png("red"),
        "画像.png": png("blue"),
        "deep.png": png(mode="I;16"),
        "print.jpg": png(mode="CMYK", kind="JPEG"),
        "jpeg.png": png("green", kind="JPEG"),
        "CON.png": png("navy"),
        "AUX.txt": b"",
        "bom.txt": b"\xef\xbb\xbfwords",
        "a<b>&\"'.png": png("teal"),
        "a.caption": b"x",
        "jpeg.crop": b"0.5 0\n",
    }
    for name, content in sent.items():
        assert send(page, name, content)[0]["state"] == "added", name
    assert files(ui) == sent
    assert page.get("/datasets/d", headers={"accept": "text/html"}).status_code == 200


def test_a_zip_is_unpacked_file_by_file(page: TestClient, ui: Ui) -> None:
    red, blue = png("red"), png("blue")
    (ui.datasets / "d" / "a.png").write_bytes(red)
    (ui.datasets / "d" / "a.txt").write_text("of the first")
    content = {
        "set/a.txt": b"of the second", "set/a.png": blue, "set/20_wide/写.png": red, "set/other/b.png": blue,
        "__MACOSX/._a.png": b"x", "set/.DS_Store": b"x", "set/inner.zip": zipped({"c.png": red}),
        "set/vector.svg": b"<svg/>",
        "set/cut.png": b"x",
    }  # fmt: skip
    told = {
        each["name"]: each["state"] for each in send(page, "all.zip", zipped(content))
    }
    assert told == {
        "set/a.png": "renamed", "set/a.txt": "renamed", "set/20_wide/写.png": "added", "set/other/b.png": "added",
        "set/inner.zip": "refused", "set/vector.svg": "refused", "set/cut.png": "refused",
    }  # fmt: skip
    assert files(ui) == {
        "a.png": red, "a.txt": b"of the first", "a-2.png": blue, "a-2.txt": b"of the second", "20_wide/写.png": red,
        "b.png": blue,
    }  # fmt: skip


def with_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped({"../../out.png": png()}), "leads out"),
        (zipped({"/out.png": png()}), "leads out"),
        (with_link(), "leads out"),
        (zipped({"bomb.png": b"\0" * 60_000_000}), "at most"),
        (
            zipped({f"{number}.txt": b"" for number in range(5001)}),
            "more than 5,000 files",
        ),
        (zipped({"a.png": png()})[:-8], "not a readable zip file"),
    ],
    ids=["dots", "root", "link", "bomb", "count", "cut"],
)
def test_a_zip_that_is_dangerous_is_refused_as_a_whole(
    page: TestClient, ui: Ui, tmp_path: Path, content: bytes, says: str
) -> None:
    (told,) = send(page, "x.zip", content)
    assert told["state"] == "refused" and says in told["text"], told
    assert files(ui) == {} and not list(tmp_path.rglob("out.png"))
    assert not list((ui.own / "uploads").glob("*"))


def test_a_form_without_script_takes_several_files(page: TestClient, ui: Ui) -> None:
    red = png("red")
    (ui.datasets / "d" / "a.png").write_bytes(png("blue"))
    sent = [
        ("file", ("a.txt", b"red one")),
        ("file", ("a.png", red)),
        ("file", ("bad.png", b"x")),
    ]
    left_out = ("Thumbs.db", ".DS_Store", "._a.png")
    sent += [
        ("file", ("cut.zip", b"PK")),
        ("file", ("all.zip", zipped({"z.txt": b"z"}))),
        ("file", ("x/b.png", red)),
        *(("file", (name, b"x")) for name in left_out),
    ]
    answer = page.post("/datasets/d/files", files=sent, headers={"accept": "text/html"})
    assert answer.status_code == 422
    for said in (
        "added as a-2.png",
        "is not a JPEG",
        "not a readable zip file",
        "its name is hidden, or holds",
    ):
        assert said in answer.text
    assert not any(f"<strong>{name}</strong>" in answer.text for name in left_out)
    assert files(ui)["z.txt"] == b"z"
    assert files(ui)["a-2.txt"] == b"red one" and files(ui)["a-2.png"] == red


def test_files_that_did_not_arrive_are_named_until_they_do(
    page: TestClient, ui: Ui
) -> None:
    def missed() -> str:
        text = page.get("/datasets/d", headers={"accept": "text/html"}).text
        found = re.search(r'<p role="status">(\d.*?)</p>', text)
        return found[1] if found else ""

    def announce(**form: Any) -> None:
        assert page.post("/datasets/d/announce", data=form).status_code == 200

    announce(name=["a.png", "b.png", "a.txt", "<b>.png"], into="")
    piece(page, "a.png", png("red"))
    # the caption got the name that its image was given
    piece(page, "c.txt", b"a", sent="a.txt")
    assert missed() == "2 of 4 files did not arrive: b.png, &lt;b&gt;.png"
    announce(**{"not": "<b>.png", "into": ""})  # it was refused, or taken back
    announce(name=["b.png", "a.png"], into=".")  # chosen again
    assert missed() == "2 of 4 files did not arrive: a.png, b.png"
    page.post("/datasets/d/files", files={"file": ("b.png", png("blue"))})
    assert missed() == "1 of 4 files did not arrive: a.png"
    announce(**{"not": "all"})
    assert missed() == "" and piece(page, "z.png", png("green")).status_code == 200
    assert not list((ui.own / "uploads").iterdir())

    announce(name=[f"{number}.png" for number in range(40)], into="before")
    with (ui.own / "uploads" / "d.list").open("a") as file:
        file.write('["before/39.png", tr')  # the disk was full
    assert missed().startswith("40 of 40 files did not arrive: before/0.png, before/1")
    assert missed().endswith("before/29.png and 10 more")


def test_files_go_where_the_images_are(page: TestClient, ui: Ui) -> None:
    (ui.datasets / "d" / "40_x").mkdir()
    send(page, "a.png", png())
    assert [*files(ui)] == ["40_x/a.png"]
    assert piece(page, "b.png", png(), into="../..").status_code == 404
    assert piece(page, "b.png", png(), into="nothing").status_code == 404


def test_a_disk_that_is_full_keeps_what_is_there(page: TestClient, ui: Ui) -> None:
    """Files of this process end at 100 kB, as a disk that is full would end them."""
    whole = os.urandom(300_000)
    assert piece(page, "x.png", whole, 0, 50_000).json() == {"offset": 50_000}
    with largest_file(100_000):
        answer = piece(page, "x.png", whole, 50_000, 200_000)
    assert answer.status_code == 507
    assert (
        page.get(
            "/datasets/d/upload", params={"name": "x.png", "size": 300_000}
        ).json()["offset"]
        == 50_000
    )
    assert piece(page, "x.png", whole, 50_000, 200_000).json() == {"offset": 200_000}


def test_parts_that_nobody_sends_on_are_removed(page: TestClient, ui: Ui) -> None:
    whole = png()
    piece(page, "old.png", whole, 0, 10)
    (old,) = (ui.own / "uploads").iterdir()
    os.utime(old, (1, time.time() - uploads.KEPT_S - 5))
    piece(page, "new.png", whole, 0, 10)
    assert [file for file in (ui.own / "uploads").iterdir() if file == old] == []


def test_a_folder_of_more_repeats_than_the_form_allows_is_refused(
    page: TestClient, ui: Ui
) -> None:
    inside = {
        f"{name}/a.png": png() for name in ("10000_x", "10001_y", "99999999_z", "0_w")
    }
    told = {each["name"]: each for each in send(page, "set.zip", zipped(inside))}
    assert told["10000_x/a.png"]["state"] == "added"
    for name, count in (("10001_y", "10,001"), ("99999999_z", "99,999,999")):
        assert (
            f"a folder of {count} repeats, and 10,000 are the most"
            in told[f"{name}/a.png"]["text"]
        )
    assert {file.name for file in (ui.datasets / "d").iterdir() if file.is_dir()} == {
        "10000_x"
    }
    for name in ("99999999_y", "10001_y"):
        answer = page.post(
            "/datasets",
            data={"name": name, "repeats": "1"},
            headers={"accept": "text/html"},
        )
        assert answer.status_code == 400 and not (ui.datasets / name).exists()


def test_marks_of_the_direction_of_text_are_seen(page: TestClient, ui: Ui) -> None:
    """With them `x<U+202E>gnp.png` looks as `xgnp.png` written backwards."""
    for number, mark in enumerate("\u202e\u2067\u200f\u061c"):
        assert send(page, f"x{mark}gnp{number}.png", png())[0]["state"] in (
            "added",
            "same",
        )
    caption = "\u200fשלום"
    (ui.datasets / "d" / "x\u202egnp0.txt").write_text(caption)
    shown = page.get("/datasets/d", headers={"accept": "text/html"}).text
    assert "x‹U+202E›gnp0" in shown and ">x\u202e" not in shown
    assert f">\n{caption}</textarea>" in shown or f">{caption}</textarea>" in shown, (
        "a caption is kept as it is"
    )
    assert 'value="x\u202egnp0' in shown, "a name that is sent back is kept as it is"

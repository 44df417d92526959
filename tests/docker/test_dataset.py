"""docker/dataset.py as start.sh calls it: archives from a server, the volume and a hub, unpacked safely and once."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from tests.http_server import QuietHandler, serving
from tests.small_hub import small_hub

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "dataset.py"
FILES = {"40_me/a.jpg": b"picture", "40_me/a.txt": "größe".encode(), "20_me/b.jpg": bytes(3_000_000)}


def zip_of(files: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return packed.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w", **kinds: tuple[bytes, str]) -> bytes:
    """kinds: further entries, name -> (type of tarfile, target)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, target) in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return packed.getvalue()


@dataclass
class Server:
    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers end too early."""

    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each request."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers["Range"], self.headers["Authorization"]))
            body = state.pages.get(self.path.split("?")[0])
            etag = f'"{sha256(body or b"").hexdigest()}"'
            start = 0
            if body and self.headers["Range"] and self.headers["If-Range"] == etag:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(404 if body is None else 206 if start else 200)
            body = body or b""
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = start + state.break_after.pop(0) if state.break_after else None
            self.wfile.write(body[start:end])

    with serving(Handler) as state.url:
        yield state


@dataclass
class Result:
    code: int
    said: str


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Result]:
    """Runs the script in a workspace with a folder `datasets`."""
    (tmp_path / "datasets").mkdir()

    def call(url: str, **environment: str) -> Result:
        given = {"PATH": os.environ["PATH"], "ALLOW_HTTP_LOCALHOST": "1", "LANG": "C.UTF-8", "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "datasets"],
            cwd=tmp_path,
            env={**given, "DATASET_URL": url, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        return Result(done.returncode, done.stderr)

    return call


def files_in(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files but the note."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".source.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def left_over(tmp_path: Path) -> list[str]:
    """What lies in `datasets` beside whole datasets."""
    return sorted(path.name for path in (tmp_path / "datasets").glob(".*"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("me.zip", zip_of({"40_me/": b"", **FILES})),
        ("me.tar", tar_of(FILES)),
        ("me.TAR.GZ", tar_of(FILES, "w:gz")),
        ("me.txz", tar_of(FILES, "w:xz")),
        ("me", zip_of({f"./{name.replace('/', chr(92))}": data for name, data in FILES.items()})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_is_unpacked_once_from_an_address_or_the_volume(
    bring: Callable[..., Result], server: Server, tmp_path: Path, name: str, data: bytes
) -> None:
    server.pages[f"/{name}"] = data
    (tmp_path / name).write_bytes(data)
    checked = {"DATASET_SHA256": sha256(data).hexdigest()}
    first = bring(f"{server.url}/{name}?signature=CANARY-1", DATASET_TOKEN="CANARY", **checked)
    assert first.code == 0 and "datasets/me: 3 files (20_me: 1, 40_me: 2)" in first.said
    assert files_in(tmp_path / "datasets" / "me") == FILES and left_over(tmp_path) == []
    assert server.asked == [(f"/{name}?signature=CANARY-1", None, "Bearer CANARY")]

    again = bring(f"{server.url}/{name}?signature=CANARY-2", **checked)
    assert again.code == 0 and "datasets/me is there already" in again.said and len(server.asked) == 1
    local = bring(name, DATASET_FOLDER="of_the_volume", **checked)
    assert local.code == 0, local.said
    assert files_in(tmp_path / "datasets" / "of_the_volume") == FILES and (tmp_path / name).exists()
    notes = "".join(path.read_text() for path in tmp_path.glob("datasets/*/.source.json"))
    assert "CANARY" not in first.said + again.said + notes


def test_several_datasets_have_a_sum_and_a_folder_each(
    bring: Callable[..., Result], server: Server, tmp_path: Path
) -> None:
    packed = [zip_of({"a.jpg": b"1"}), zip_of({"b.jpg": b"2"})]
    server.pages = {"/one/data.zip": packed[0], "/two/data.zip": packed[1]}
    urls = f"{server.url}/one/data.zip {server.url}/two/data.zip"
    sums = " ".join(sha256(data).hexdigest() for data in packed)
    assert "would have the same folder" in bring(urls).said
    assert "DATASET_SHA256 has 1 values for 2 datasets" in bring(urls, DATASET_SHA256=sums[:64]).said
    assert bring(urls, DATASET_SHA256=sums, DATASET_FOLDER="10_a 20_b").code == 0
    assert {path.name: files_in(path) for path in (tmp_path / "datasets").iterdir()} == {
        "10_a": {"a.jpg": b"1"},
        "20_b": {"b.jpg": b"2"},
    }


@pytest.mark.parametrize("changed", [False, True])
def test_a_download_that_broke_off_goes_on_where_it_stopped_if_the_file_is_the_same(
    bring: Callable[..., Result], server: Server, tmp_path: Path, changed: bool
) -> None:
    server.pages["/me.zip"] = zip_of(FILES)
    server.break_after = [2_000_000, 0, 0, 0]
    script = SCRIPT.read_text().replace("PAUSES = (1, 5, 15)", "PAUSES = (0, 0, 0)")
    assert "PAUSES = (0, 0, 0)" in script
    quick = tmp_path / "dataset.py"
    quick.write_text(script)
    (tmp_path / "download.py").write_text((SCRIPT.parent / "download.py").read_text())
    environment = {**os.environ, "ALLOW_HTTP_LOCALHOST": "1", "DATASET_URL": f"{server.url}/me.zip"}
    command = [sys.executable, str(quick), "datasets"]
    broken = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert broken.returncode == 1 and "The next start resumes from here" in broken.stderr
    assert not (tmp_path / "datasets" / "me").exists()

    wanted = {**FILES, "new.jpg": b"3"} if changed else FILES
    server.pages["/me.zip"] = zip_of(wanted)
    assert bring(f"{server.url}/me.zip").code == 0
    assert server.asked[-1][1] == "bytes=2000000-"
    assert files_in(tmp_path / "datasets" / "me") == wanted and left_over(tmp_path) == []


OUTSIDE = "names a place outside of its folder"
KIND = "holds a link or a device"
GOOD = {"a.jpg": b"1"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zip_of({**GOOD, "../b.jpg": b"2"}), OUTSIDE),
        (zip_of({**GOOD, "/tmp/b.jpg": b"2"}), OUTSIDE),
        (zip_of({**GOOD, "c\\..\\..\\b.jpg": b"2"}), OUTSIDE),
        (zip_of({**GOOD, "C:\\b.jpg": b"2"}), OUTSIDE),
        (zip_of({**GOOD, "link": b"/etc"}, {"link": stat.S_IFLNK | 0o777}), KIND),
        (tar_of({**GOOD, "x/../../b.jpg": b"2"}), OUTSIDE),
        (tar_of(GOOD, link=(tarfile.SYMTYPE, "/etc")), KIND),
        (tar_of(GOOD, link=(tarfile.LNKTYPE, "a.jpg")), KIND),
        (tar_of(GOOD, device=(tarfile.FIFOTYPE, "")), KIND),
        (tar_of(FILES, "w:gz")[:-2000], "cannot be unpacked"),
        (zip_of(FILES)[:-200], "cannot be unpacked"),
        (zip_of({"a.jpg": b"a known text"}).replace(b"a known text", b"another text"), "cannot be unpacked"),
        (b"<html>not found</html>", "cannot be unpacked"),
        (zip_of({"a.jpg": b"1", "./a.jpg": b"2"}), "twice"),
        (zip_of({"model.pt": b"1", "__MACOSX/._a.jpg": b"2"}), "holds no file of a dataset"),
        (zip_of({".source.json": b"{}", ".": b"1"}), OUTSIDE),
    ],
)
def test_an_archive_that_is_hostile_or_damaged_leaves_nothing(
    bring: Callable[..., Result], tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "me.zip").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    result = bring("me.zip")
    assert result.code == 2 and words in result.said
    assert sorted(path for path in tmp_path.rglob("*") if ".cache" not in path.parts) == before


def test_what_can_hold_code_and_what_is_clutter_is_left_out(bring: Callable[..., Result], tmp_path: Path) -> None:
    extra = {"a/x.PKL": b"1", "y.pth": b"1", "z.pth": b"1", "__MACOSX/a/._a.jpg": b"1", "a/._b.jpg": b"1"}
    (tmp_path / "me.tar").write_bytes(tar_of({**GOOD, **extra}))
    result = bring("me.tar")
    assert result.code == 0 and "left out what can hold code: 1 .pkl, 2 .pth" in result.said
    assert files_in(tmp_path / "datasets" / "me") == GOOD


@pytest.mark.parametrize(
    ("url", "environment", "words"),
    [
        ("<server>/none.zip?t=CANARY", {}, "DATASET_URL cannot be fetched: 404"),
        ("http://example.org/a.zip?t=CANARY", {}, "DATASET_URL must start with https://"),
        ("none.zip", {}, "nor a file on the volume"),
        ("hf://models/a/b", {}, "hf://datasets/OWNER/NAME"),
        ("me.zip", {"DATASET_SHA256": "abc"}, "64 hexadecimal digits"),
        ("me.zip", {"DATASET_SHA256": "0" * 64}, "DATASET_SHA256 wants 000"),
        ("me.zip", {"DATASET_FOLDER": "../me"}, "no name of a folder"),
        ("me.zip", {"DATASET_FOLDER": "mine"}, "datasets/mine is there already and came from elsewhere"),
        ("hf://datasets/a/b", {"DATASET_SHA256": "0" * 64}, "Name a commit instead"),
    ],
)
def test_a_mistake_is_one_line(
    bring: Callable[..., Result], server: Server, tmp_path: Path, url: str, environment: dict[str, str], words: str
) -> None:
    (tmp_path / "me.zip").write_bytes(zip_of(GOOD))
    mine = tmp_path / "datasets" / "mine"
    mine.mkdir()
    result = bring(url.replace("<server>", server.url), **environment)
    assert (result.code, result.said.count("\n")) == (2, 1) and words in result.said
    assert "CANARY" not in result.said and list((tmp_path / "datasets").iterdir()) == [mine]


def test_a_sum_that_is_wanted_later_must_be_that_of_what_is_there(bring: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "me.zip").write_bytes(data := zip_of(GOOD))
    assert bring("me.zip").code == 0
    assert bring("me.zip", DATASET_SHA256=sha256(data).hexdigest()).code == 0
    assert bring("me.zip", DATASET_SHA256="0" * 64).code == 2
    assert json.loads((tmp_path / "datasets" / "me" / ".source.json").read_text())["files"] == 1


def test_a_file_of_the_hub_is_fetched_with_its_token(
    bring: Callable[..., Result], server: Server, tmp_path: Path
) -> None:
    hub = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_x", "DATASET_TOKEN": "other"}
    server.pages["/datasets/me/pictures/resolve/v1/packed/me.tar"] = tar_of(FILES)
    assert bring("hf://datasets/me/pictures@v1/packed/me.tar", **hub).code == 0
    assert server.asked[-1][2] == "Bearer hf_x"
    assert files_in(tmp_path / "datasets" / "me") == FILES


def test_a_dataset_of_the_hub_is_downloaded_without_what_can_hold_code(
    bring: Callable[..., Result], tmp_path: Path
) -> None:
    files = {"40_me/a.jpg": b"picture", "40_me/a.txt": b"me", "train.py": b"x", "old.pkl": b"x"}
    with small_hub(files, "me/pictures", kind="datasets") as hub:
        hub.refusal = (404, "RepoNotFound")
        refused = bring("hf://datasets/me/pictures", HF_ENDPOINT=hub.url)
        assert refused.code == 2 and "does HF_TOKEN belong to somebody who may read it" in refused.said
        hub.refusal = None
        result = bring("hf://datasets/me/pictures", HF_ENDPOINT=hub.url)
        asked = len(hub.asked)
        again = bring("hf://datasets/me/pictures", HF_ENDPOINT=hub.url)
    assert result.code == 0 and "datasets/pictures: 2 files (40_me: 2)" in result.said
    assert files_in(tmp_path / "datasets" / "pictures") == {
        name: files[name] for name in ("40_me/a.jpg", "40_me/a.txt")
    }
    assert again.code == 0 and len(hub.asked) == asked and left_over(tmp_path) == []

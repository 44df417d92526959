"""Many who look at once at what is large: one look at the disk for all who wait for it,
and nothing is read twice."""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from PIL import Image
from starlette.testclient import TestClient

from extensions.tools.ui import datasets
from extensions.tools.ui.commands import Checked
from extensions.tools.ui.decoder import Decoder
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views import new
from tests.extensions.tools.ui.conftest import Served
from toolkit.data.scan import captions, directory, fingerprint
from toolkit.files.writing import write_json
from toolkit.train import run_index, run_reader

MB = 2**20


def made(folder: Path, count: int) -> Path:
    """Images that all are the same, each with a caption."""
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "00000.jpg")
    content = (folder / "00000.jpg").read_bytes()
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(content)
        (folder / f"{number:05}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[str]]:
    """Counts the calls of a function in a module by their first argument."""

    def count(module: Any, name: str) -> list[str]:
        found, function = list[str](), getattr(module, name)

        def call(first: Any, *others: Any, **named: Any) -> Any:
            found.append(str(first))
            return function(first, *others, **named)

        monkeypatch.setattr(module, name, call)
        return found

    return count


def together(ask: Callable[[], Any], many: int) -> list[Any]:
    barrier = threading.Barrier(many)

    def one(_: int) -> Any:
        barrier.wait()
        return ask()

    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(one, range(many)))


@pytest.mark.slow
def test_many_who_look_at_once_cost_a_few_looks(
    client: TestClient, ui: Ui, counted: Callable[[Any, str], list[str]]
) -> None:
    made(ui.datasets / "d", 100)
    listed, read = counted(datasets, "list_folder"), counted(captions, "read_chunks")
    answers = together(lambda: client.get("/datasets/d"), 20)
    assert {answer.status_code for answer in answers} == {200}
    looks = listed.count(str(ui.datasets / "d"))
    assert looks < 10, "each looks by itself"
    assert len(read) == 100, "a caption was read twice"


def test_a_caption_that_has_changed_is_the_only_one_that_is_read(
    client: TestClient,
    ui: Ui,
    counted: Callable[[Any, str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directory, "MIN_FILE_AGE_NS", 0)
    folder = made(ui.datasets / "d", 50)
    assert datasets.read_dataset(ui, "d").images[7].caption == "picture 7"
    listed, read = counted(directory, "list_folder"), counted(captions, "read_chunks")
    (folder / "00007.txt").write_text("another")
    (folder / "00008.txt").unlink()
    images = datasets.read_dataset(ui, "d").images
    assert [image.caption for image in images[6:10]] == [
        "picture 6",
        "another",
        "",
        "picture 9",
    ]
    assert read == [str(folder / "00007.txt")] and not listed, (
        "the folder was read a second time"
    )


def test_a_caption_that_was_just_written_is_read_again(
    ui: Ui, counted: Callable[[Any, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the clock leave one time and, of the same length,
    one version."""
    folder = made(ui.datasets / "d", 3)
    datasets.read_dataset(ui, "d")
    read = counted(captions, "read_chunks")
    (folder / "00001.txt").write_text("another")
    datasets.read_dataset(ui, "d")
    assert len(read) == 3


def test_findings_are_read_once_and_those_of_a_new_check_are_seen(
    client: TestClient,
    ui: Ui,
    counted: Callable[[Any, str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = made(ui.datasets / "d", 3)
    file = ui.own / "lint" / "d.json"
    monkeypatch.setattr(datasets, "is_fresh", lambda mark: False)
    read = counted(datasets, "read_object")

    def found(message: str) -> None:
        row = {
            "file": str(folder / "00001.jpg"),
            "check": "blurred",
            "message": message,
        }
        write_json(
            file,
            {
                "state": datasets.open_dataset(ui, "d").state,
                "images": 3,
                "findings": [row],
            },
        )

    found("is blurred")
    assert "is blurred" in client.get("/datasets/d?only=found").text
    client.get("/datasets/d")
    assert read.count(str(file)) == 1
    found("is dark, too")
    page = client.get("/datasets/d?only=found").text
    assert (
        "is dark, too" in page and "is blurred" not in page and "00000.jpg" not in page
    )


def test_those_last_asked_for_stay_in_memory(client: TestClient, ui: Ui) -> None:
    for name in "abcde":
        made(ui.datasets / name, 2)
        assert client.get(f"/datasets/{name}").status_code == 200
    assert (
        client.get("/datasets/none").status_code == 404
        and client.get("/datasets/a").status_code == 200
    )
    assert (
        "a" in ui.memory["datasets"]
        and len(ui.memory["datasets"]) == datasets.MOST_SHARED
    )


@pytest.mark.parametrize(
    ("path", "module", "function"),
    [
        ("/datasets", datasets, "_files"),
        ("/new", new, "_models"),
        ("/", run_index, "_folders_in"),
    ],
    ids=["the trash", "the models", "the runs"],
)
def test_a_whole_folder_is_walked_for_all_who_ask(
    path: str,
    module: Any,
    function: str,
    client: TestClient,
    ui: Ui,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (ui.datasets / ".trash" / "entry" / "d").mkdir(parents=True)
    walks, walk = [], getattr(module, function)

    def slow(folder: Any) -> Any:
        walks.append(folder)
        time.sleep(0.1)
        return walk(folder)

    monkeypatch.setattr(module, function, slow)
    monkeypatch.setattr(new, "check_job", lambda *_: Checked())
    answers = together(lambda: client.get(path), 20)
    assert {answer.status_code for answer in answers} == {200} and 0 < len(walks) < 10


def test_the_form_of_a_tool_knows_the_runs_from_the_index(
    client: TestClient,
    ui: Ui,
    make_run: Callable[..., Path],
    counted: Callable[[Any, str], list[str]],
) -> None:
    make_run("one")
    old = time.time() - 3600
    for file in (ui.output, *ui.output.rglob("*")):
        os.utime(file, (old, old))
    assert f'value="{ui.output}/one/one.safetensors"' in client.get("/tools/merge").text
    read = counted(run_reader, "_info")
    assert f'value="{ui.output}/one/one.safetensors"' in client.get("/tools/merge").text
    assert not read


def test_a_small_image_that_many_wait_for_is_made_once(
    client: TestClient, ui: Ui, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(ui.datasets / "d", 1)
    asked, ask = [], decoder._ask

    def slow(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        time.sleep(0.1)
        return ask(question)

    monkeypatch.setattr(decoder, "_ask", slow)
    answers = together(lambda: client.get("/datasets/d/thumbs/00000.jpg"), 8)
    assert {answer.headers["content-type"] for answer in answers} == {
        "image/webp"
    } and len(asked) == 1


@pytest.mark.parametrize("into", [".", ""])
def test_a_file_that_is_sent_asks_nothing_of_those_that_are_there(
    client: TestClient, ui: Ui, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5,000 files that are sent one after another the last would wait for 5,000."""
    folder = made(ui.datasets / "d", 30)
    Image.new("RGB", (8, 8), "red").save(folder / "sent.jpg")
    content = (folder / "sent.jpg").read_bytes()
    (folder / "sent.jpg").unlink()
    asked, version_of = [], fingerprint.version_of
    monkeypatch.setattr(
        directory, "version_of", lambda about: asked.append(about) or version_of(about)
    )
    query = {"name": "00007.jpg", "size": len(content), "into": into, "key": "k"}
    assert client.get("/datasets/d/upload", params=query).json()["offset"] == 0
    query |= {"offset": 0, "hash": f"{zlib.crc32(content):08x}"}
    (told,) = client.post("/datasets/d/upload", params=query, content=content).json()[
        "told"
    ]["files"]
    assert (told["state"], told["text"]) == ("renamed", "00007-2.jpg") and not asked
    assert client.get("/datasets/none/upload", params=query).status_code == 404


@pytest.mark.slow
def test_fifty_who_look_at_5000_images_leave_the_page_small(served: Served) -> None:
    made(served.folder / "datasets" / "d", 5000)

    def ask(path: str) -> int:
        with urlopen(f"{served.address}{path}", timeout=120) as answer:
            return len(answer.read())

    sizes = together(lambda: ask("/datasets/d"), 50)
    assert max(sizes) < 100_000, "bytes of a page of 60 images"
    assert served.process is not None
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    used = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    assert used <= 90, f"{used:.0f} MB at the peak"

"""Each POST of the page twice at the same time, in one page and in two pages of one
folder: nothing is done twice, nothing is lost, and nobody is told that something was
kept which was not."""

from __future__ import annotations

import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from PIL import Image

from extensions.tools.ui.app import ROUTES
from extensions.tools.ui.config import queue_folder
from extensions.tools.ui.queue import STOPPED, Entry, Queue
from tests.conftest import ROOT, child_environment
from tests.extensions.tools.ui.late_page import LINTED
from tests.processes import free_port, until

POSTS = sorted(
    route.path for route in ROUTES if "POST" in getattr(route, "methods", ())
)


class Answer(NamedTuple):
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Pages:
    """Two pages of one folder, or one that is asked by two."""

    numbers = count()

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.folder, self.ports, self.name = folder, ports, f"n{next(self.numbers)}"
        self.output, self.datasets, self.jobs = (
            folder / name for name in ("output", "datasets", "jobs")
        )
        self.queue = Queue(queue_folder(self.output))

    def ask(
        self, page: int, method: str, address: str, body: bytes = b"", **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports[page], timeout=60
        )
        connection.request(method, address, body, {"accept": "text/plain", **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return Answer(answer.status, text)

    def post(
        self, page: int, address: str, form: dict[str, Any], **headers: str
    ) -> Answer:
        body = urlencode(form, doseq=True).encode()
        return self.ask(
            page,
            "POST",
            address,
            body,
            **{"content-type": "application/x-www-form-urlencoded"},
            **headers,
        )

    def together(self, *calls: Callable[[int], Any]) -> list[Any]:
        """What each call gives, all at the same time, each with the page that it
        asks."""
        barrier, found = threading.Barrier(len(calls)), dict[int, Any]()

        def one(place: int) -> None:
            barrier.wait()
            found[place] = calls[place](place % 2)

        threads = [
            threading.Thread(target=one, args=(place,)) for place in range(len(calls))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[place] for place in range(len(calls))]

    def send(
        self, address: str, *forms: dict[str, Any], **headers: str
    ) -> list[Answer]:
        """The answers to these forms at the same time; to one of them twice, where
        there is one."""
        sent = forms if len(forms) > 1 else forms * 2
        return self.together(
            *(
                lambda page, form=form: self.post(page, address, form, **headers)
                for form in sent
            )
        )

    def run(self, **status: object) -> Path:
        folder = self.output / self.name
        folder.mkdir()
        document = {
            "name": self.name,
            "step": 3,
            "steps": 10,
            "status": "stopped",
            **status,
        }
        (folder / "run.json").write_text(json.dumps(document))
        (folder / "config.yaml").write_text(
            f"job: extension\nconfig: {{name: {self.name}, process: []}}\n"
        )
        return folder

    def dataset(self, *names: str, caption: str = "") -> Path:
        folder = self.datasets / self.name
        folder.mkdir()
        for number, name in enumerate(names):
            (folder / name).write_bytes(png(number))
            if caption:
                (folder / name).with_suffix(".txt").write_text(caption)
        return folder

    def added(self, word: str) -> list[Entry]:
        """The entries of the queue in whose command a word is."""
        return [
            entry
            for entry in self.queue.entries()
            if any(word in part for part in entry.argv)
        ]


def png(number: int) -> bytes:
    """Images that differ and have the same number of bytes."""
    stream = io.BytesIO()
    Image.frombytes(
        "RGB",
        (16, 16),
        bytes((number * 7 + place * place) % 256 for place in range(768)),
    ).save(stream, "BMP")
    return stream.getvalue()


def statuses(answers: list[Answer]) -> list[int]:
    return sorted(answer.status for answer in answers)


@pytest.fixture(scope="module")
def ports(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, tuple[int, int]]]:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("output", "datasets", "jobs"):
        (folder / name).mkdir()
    served = free_port(), free_port()
    command = [sys.executable, "-m", "tests.extensions.tools.ui.late_page"]
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    pages = [
        subprocess.Popen([*command, str(port), str(folder)], cwd=ROOT, env=environment)
        for port in served
    ]
    try:
        both = Pages(folder, served)
        for page in (0, 1):
            until(lambda page=page: is_up(both, page))
        yield folder, served
    finally:
        for page in pages:
            page.kill()
            page.wait()


def is_up(pages: Pages, page: int) -> bool:
    try:
        return pages.ask(page, "GET", "/healthz").status == 200
    except OSError:
        return False


@pytest.fixture
def pages(ports: tuple[Path, tuple[int, int]], request: pytest.FixtureRequest) -> Pages:
    folder, (first, second) = ports
    is_one = getattr(request, "param", "") == "one page"
    return Pages(folder, (first, first) if is_one else (first, second))


IN_MEMORY = (
    "/datasets/{d}/captions",
    "/datasets/{d}/lint",
    "/datasets/{d}/upload",
    "/new",
)
"""Routes whose page keeps something between two requests: one page is asked twice too.
For all others a lock of the file system decides, as between two pages."""


ALIKE = {
    *(f"/runs/{{run}}/{name}" for name in ("try", "compare")),
    *(f"/runs/{{id}}/{name}" for name in ("resume", "control", "longer", "less")),
    *(
        "/start",
        "/queue/start",
        "/tools/{uid}",
        "/system/prune",
        "/system/price",
        "/system/comfyui",
        "/theme",
    ),
    *("/trash/{kind}/{entry}", "/datasets/{d}/files"),
}
"""Routes that add an entry to the queue as `/datasets/{d}/captioning` does, or set one
value; and those that change files by the function that another row asks: of the shelf
(`{verb}`), of a dataset's folder (`upload`)."""


TABLE: dict[str, Callable[[Pages], None]] = {}


def row(path: str) -> Callable[[Callable[[Pages], None]], Callable[[Pages], None]]:
    """Enters what is expected of a route."""

    def entered(check: Callable[[Pages], None]) -> Callable[[Pages], None]:
        TABLE[path] = check
        return check

    return entered


@row("/runs/{run}/favourite")
def favourite(pages: Pages) -> None:
    run = pages.run()
    names = [f"{pages.name}_{step:09d}.safetensors" for step in (1, 2)]
    for name in names:
        (run / name).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    address = f"/runs/{pages.name}/favourite"
    answers = pages.send(
        address, *({"file": name, "marked": "false"} for name in names)
    )
    assert statuses(answers) == [303, 303]
    kept = json.loads((pages.output / ".ui" / "favourites.json").read_text())
    assert sorted(kept[pages.name]) == names


@row("/runs/{run}/comfyui")
def put_into_comfyui(pages: Pages) -> None:
    name = f"{pages.name}.safetensors"
    (pages.run() / name).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    loras = pages.output.parent / f"{pages.name}_loras"
    loras.mkdir()
    assert pages.post(0, "/system/comfyui", {"folder": str(loras)}).status == 303
    answers = pages.send(f"/runs/{pages.name}/comfyui", {"file": name})
    assert statuses(answers) == [303, 303] and [*loras.iterdir()] == [loras / name]


def job_of(name: str, steps: int) -> str:
    process = {
        "type": "sd_trainer",
        "training_folder": "output",
        "train": {"steps": steps},
    }
    return (
        json.dumps({"job": "extension", "config": {"name": name, "process": [process]}})
        + "\n"
    )


@row("/new")
def new(pages: Pages) -> None:
    file = pages.jobs / f"{pages.name}.yaml"
    jobs = [job_of(pages.name, steps) for steps in (1, 2)]
    answers = pages.send("/new", *({"action": "save", "yaml": job} for job in jobs))
    assert statuses(answers) == [303, 409], "another job of the same name"
    assert file.read_text() == jobs[[answer.status for answer in answers].index(303)]
    started = f"{pages.name}_b"
    answers = pages.send("/new", {"action": "start", "yaml": job_of(started, 1)})
    assert statuses(answers) == [303, 303] and len(pages.added(started)) == 1


@row("/queue/clear")
def clear(pages: Pages) -> None:
    entry = pages.queue.add(["lint", f"--path={pages.name}"], "a")
    pages.queue.save(entry, state=STOPPED)
    assert statuses(pages.send("/queue/clear", {})) == [303, 303]
    assert (pages.queue.folder / "trash" / f"{entry.id}.json").is_file()
    assert pages.added(pages.name) == []


@row("/queue/{id}/{action}")
def act(pages: Pages) -> None:
    ids = [
        pages.queue.add(["lint", f"--path={pages.name}{letter}"], "a").id
        for letter in "abc"
    ]
    pages.queue.save(pages.queue.entry(ids[0]), state=STOPPED)
    assert statuses(pages.send(f"/queue/{ids[0]}/retry", {})) == [303, 409]
    assert statuses(pages.send(f"/queue/{ids[0]}/up", {})) == [303, 303]
    orders = [entry.order for entry in pages.added(pages.name)]
    assert len(set(orders)) == 3, "two have one place"
    assert statuses(pages.send(f"/queue/{ids[0]}/remove", {})) == [303, 409]
    assert sorted(entry.id for entry in pages.added(pages.name)) == ids[1:]
    assert statuses(pages.send(f"/queue/{ids[1]}/stop", {})) == [409, 409], (
        "it does not run"
    )


@row("/datasets/{d}/captioning")
def captioning(pages: Pages) -> None:
    pages.dataset("a.bmp")
    short, other = {"prompt": "short"}, {"prompt": "of the hat"}
    answers = pages.send(f"/datasets/{pages.name}/captioning", short, short, other)
    assert statuses(answers) == [303] * 3
    assert len(pages.added(pages.name)) == 2, "one is twice, and none is lost"


@row("/datasets")
def create(pages: Pages) -> None:
    assert statuses(pages.send("/datasets", {"name": pages.name})) == [303, 400], (
        "it exists"
    )
    assert (pages.datasets / pages.name).is_dir()


@row("/datasets/{d}/delete")
def delete(pages: Pages) -> None:
    folder = pages.dataset("a.bmp", "b.bmp", caption="one")
    form = {"chosen": ["a.bmp", "b.bmp"]}
    answers = pages.send(
        f"/datasets/{pages.name}/delete", form, accept="application/json"
    )
    assert (
        sum(answer.json["deleted"] for answer in answers if answer.status == 200) == 2
    ), "each is deleted once"
    assert not list(folder.iterdir())
    assert len(list((pages.datasets / ".trash").glob(f"*/{pages.name}/*"))) == 4


@row("/datasets/restore")
def restore(pages: Pages) -> None:
    folder = pages.dataset("a.bmp", "b.bmp", caption="one")
    gone = pages.post(
        0,
        f"/datasets/{pages.name}/delete",
        {"chosen": ["a.bmp", "b.bmp"]},
        accept="application/json",
    )
    answers = pages.send(
        "/datasets/restore", {"entry": gone.json["entry"]}, accept="application/json"
    )
    told = [answer.json for answer in answers if answer.status == 200]
    assert sum(each["back"] for each in told) == 4 and not any(
        each["stay"] for each in told
    )
    assert len(list(folder.iterdir())) == 4


@row("/datasets/{d}/crop")
def crop(pages: Pages) -> None:
    folder = pages.dataset("a.bmp")
    forms = [{"name": "a.bmp", "at": at} for at in ("0", "200")]
    answers = pages.send(f"/datasets/{pages.name}/crop", *forms)
    assert statuses(answers) == [303, 303]
    assert (folder / "a.crop").read_text() in ("0 0.5\n", "1 0.5\n")


@row("/datasets/{d}/view")
def view(pages: Pages) -> None:
    pages.dataset("v_a.bmp", "v_b.bmp")
    forms = [
        {"references": name, "masks": name, "resolution": side}
        for name, side in (("_a", 512), ("_b", 768))
    ]
    assert statuses(pages.send(f"/datasets/{pages.name}/view", *forms)) == [303, 303]
    kept = json.loads(
        (pages.output / ".ui" / "datasets" / f"{pages.name}.json").read_text()
    )
    assert {key: kept[key] for key in forms[0]} in forms
    # of two forms of the page
    others = [
        {"instruction": "draw it"},
        {"resolution": 1024},
    ]
    assert statuses(pages.send(f"/datasets/{pages.name}/view", *others)) == [303, 303]
    now = json.loads(
        (pages.output / ".ui" / "datasets" / f"{pages.name}.json").read_text()
    )
    assert now == kept | {"instruction": "draw it", "resolution": 1024}


@row("/datasets/{d}/captions")
def captions(pages: Pages) -> None:
    folder = pages.dataset("a.bmp", "b.bmp", caption="old")
    address = f"/datasets/{pages.name}/captions"
    form = {"name": "a.bmp", "was": "old", "caption": "new"}
    answers = pages.send(
        address, form, form | {"caption": "other"}, accept="application/json"
    )
    assert statuses(answers) == [200, 409]
    saved = ["new", "other"][[answer.status for answer in answers].index(200)]
    assert (folder / "a.txt").read_text() == f"{saved}\n"
    same = {"name": "b.bmp", "was": "old", "caption": "new"}
    answers = pages.send(address, same, accept="application/json")
    assert statuses(answers) == [200, 200] and answers[0].json == answers[1].json, (
        "one button, pressed twice"
    )


@row("/datasets/{d}/change")
def change(pages: Pages) -> None:
    names = [f"{letter}.bmp" for letter in "abc"]
    folder = pages.dataset(*names, caption="old")
    form = {"op": "replace", "find": "old", "replacement": "old old"}
    shown = pages.post(
        0, f"/datasets/{pages.name}/change", form, accept="text/html"
    ).text
    apply = {"apply": re.search(r'name="apply" value="(\w+)"', shown)[1]}
    answers = pages.send(
        f"/datasets/{pages.name}/change", form | apply, accept="application/json"
    )
    assert all(
        answer.json["changed"] == 3 for answer in answers if answer.status == 200
    ), answers
    assert {(folder / name).with_suffix(".txt").read_text() for name in names} == {
        "old old\n"
    }


@row("/datasets/{d}/undo")
def undo(pages: Pages) -> None:
    folder = pages.dataset("a.bmp", caption="old")
    form = {"name": "a.bmp", "was": "old", "caption": "new"}
    pages.post(0, f"/datasets/{pages.name}/captions", form)
    (step,) = (pages.output / ".ui" / "undo" / pages.name).iterdir()
    answers = pages.send(f"/datasets/{pages.name}/undo", {"step": step.stem})
    assert statuses(answers) == [303, 303]
    assert (folder / "a.txt").read_text() == "old\n" and not step.exists()


@row("/datasets/{d}/lint")
def lint(pages: Pages) -> None:
    folder = pages.dataset("a.bmp")
    assert statuses(pages.send(f"/datasets/{pages.name}/lint", {})) == [303, 303]
    asked = [pages.ask(page, "GET", f"/datasets/{pages.name}/lint") for page in (0, 1)]
    until(lambda: (pages.output / ".ui" / "lint" / f"{pages.name}.json").is_file())
    checks = (pages.folder / LINTED).read_text().splitlines().count(str(folder))
    assert checks <= len(set(pages.ports)), asked


@row("/datasets/{d}/upload")
def upload(pages: Pages) -> None:
    folder = pages.dataset()

    def send(page: int, content: bytes) -> list[dict[str, str]]:
        query = {
            "name": "a.bmp",
            "size": len(content),
            "offset": 0,
            "hash": f"{zlib.crc32(content):08x}",
        }
        # as the script of the page: again from the start, while another one is looked
        # at
        while True:
            answer = pages.ask(
                page,
                "POST",
                f"/datasets/{pages.name}/upload?{urlencode(query)}",
                content,
            )
            assert answer.status in (200, 409), answer
            if answer.status == 200:
                return list(answer.json["told"]["files"])
            time.sleep(0.02)

    whole = [png(1), png(2)]
    told = pages.together(
        *(lambda page, content=content: send(page, content) for content in whole)
    )
    assert sorted(each["state"] for (each,) in told) == ["added", "renamed"]
    assert [(folder / each["text"]).read_bytes() for (each,) in told] == whole
    told = pages.together(*(lambda page: send(page, png(3)) for _ in range(2)))
    assert sorted(each["state"] for (each,) in told) == ["renamed", "same"]
    assert sorted(file.read_bytes() for file in folder.iterdir()) == sorted(
        [*whole, png(3)]
    )
    assert not list((pages.output / ".ui" / "uploads").iterdir())


@row("/datasets/{d}/announce")
def announce(pages: Pages) -> None:
    pages.dataset()
    forms = [
        {"name": [f"{letter}{number}.png" for number in range(9)]} for letter in "ab"
    ]
    address = f"/datasets/{pages.name}/announce"
    assert statuses(pages.send(address, *forms)) == [303, 303]
    file = pages.output / ".ui" / "uploads" / f"{pages.name}.list"
    assert len(set(file.read_text().splitlines())) == 18, "none is lost"
    assert statuses(pages.send(address, {"not": "all"})) == [303, 303]
    assert not file.exists()


@row("/verbs/{kind}/{id}/{verb}")
def verbs(pages: Pages) -> None:
    run, name = pages.run(), pages.name
    (run / "a.txt").write_text("a")
    forms = [{"name": f"{name}_{letter}"} for letter in "ab"]
    assert 303 in statuses(pages.send(f"/verbs/runs/{name}/rename", *forms))
    [renamed] = pages.output.glob(f"{name}_?")
    answers = pages.send(f"/verbs/runs/{renamed.name}/clone", {"name": name})
    assert statuses(answers) == [303, 409], "one copy, of two presses"
    answers = pages.send(f"/verbs/runs/{renamed.name}/delete", {})
    assert statuses(answers)[0] == 303 and not renamed.exists()
    records = [*(pages.output / ".trash").glob("*.json")]
    [record] = [path for path in records if renamed.name in path.read_text()]
    kept = record.with_suffix("") / renamed.name / "a.txt"
    assert kept.read_text() == "a" and record.stem in pages.ask(0, "GET", "/trash").text


def test_each_route_has_a_row() -> None:
    assert sorted({*TABLE, *ALIKE}) == POSTS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "pages"),
    [
        *((path, "two pages") for path in TABLE),
        *((path, "one page") for path in IN_MEMORY),
    ],
    indirect=["pages"],
)
def test_twice_at_once_counts_once_and_loses_nothing(path: str, pages: Pages) -> None:
    TABLE[path](pages)


def test_an_edit_of_a_deleted_image_leaves_no_caption_behind(pages: Pages) -> None:
    folder = pages.dataset("a.bmp")
    form = {"name": "a.bmp", "was": "", "caption": "new"}
    saved, deleted = pages.together(
        lambda page: pages.post(
            page, f"/datasets/{pages.name}/captions", form, accept="application/json"
        ),
        lambda page: pages.post(
            page,
            f"/datasets/{pages.name}/delete",
            {"chosen": "a.bmp"},
            accept="application/json",
        ),
    )
    assert deleted.status == 200 and not list(folder.iterdir())
    kept = list((pages.datasets / ".trash").glob(f"*/{pages.name}/a.txt"))
    assert len(kept) == (saved.status == 200), (
        "a caption that was saved is with its image"
    )

"""Pages over a thousand runs: how much they open and send, not how long it takes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensions.tools.ui.state import Ui
from extensions.tools.ui.views import system
from tests.extensions.tools.ui.conftest import client, make_run, ui  # noqa: F401 - fixtures

RUNS = 1000
_opened: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened:
        _opened[-1].append(str(arguments[0]))


sys.addaudithook(_hook)  # which cannot be taken away


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that were opened."""
    _opened.append([])
    yield _opened[-1]
    _opened.clear()


@pytest.fixture(scope="module")
def folder_of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many runs, the last one the latest; all written an hour ago."""
    output = tmp_path_factory.mktemp("many")
    for number in range(RUNS):
        folder = output / f"run_{number:04d}"
        folder.mkdir()
        updated = f"2026-11-01T{number // 60:02d}:{number % 60:02d}:00Z"
        status = {"status": "finished", "step": number, "steps": RUNS}
        status |= {"name": folder.name, "updated": updated}
        (folder / "run.json").write_text(json.dumps(status))
        (folder / "config.yaml").touch()
        (folder / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'
        )
        an_hour_old(folder)
    return output


def an_hour_old(run: Path) -> None:
    then = time.time() - 3600
    for path in (run / "run.json", run / "metrics.jsonl", run):
        os.utime(path, (then, then))


@pytest.fixture
def many(ui: Ui, folder_of_many: Path) -> Ui:  # noqa: F811
    """The page of these runs, and a dataset."""
    ui.output = folder_of_many
    (ui.datasets / "d").mkdir()
    return ui


PAGES = (
    "/",
    "/runs/run_0500",
    "/compare?run=run_0001&run=run_0002",
    "/system",
    "/datasets/d",
    "/?q=run_09",
)


@pytest.mark.slow
def test_pages_open_few_files_and_are_small(
    many: Ui,
    client: TestClient,  # noqa: F811
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "run_py", lambda *_: (0, "", ""))
    for path in PAGES:  # the first time templates are read as well
        assert client.get(path, headers={"accept": "text/html"}).status_code == 200
    for path in PAGES:
        opened.clear()
        answer = client.get(path, headers={"accept": "text/html"})
        of_runs = [
            name for name in opened if name.startswith(str(many.output / "run_"))
        ]
        assert len(answer.content) < 200_000, path
        assert len(of_runs) <= 30, (path, of_runs)
    status = many.output / "run_0123" / "run.json"
    before = status.read_text()
    status.write_text('{"status": "failed", "name": "anew"}')
    opened.clear()
    assert "anew" in client.get("/?q=failed").text
    status.write_text(before)
    an_hour_old(status.parent)
    assert {name for name in opened if name.startswith(str(many.output / "run_"))} <= {
        str(many.output / "run_0123" / name)
        for name in ("run.json", "run.lock", "metrics.jsonl", "samples")
    }


@pytest.mark.slow
def test_fifty_runs_are_on_a_page_and_all_on_one_of_them(
    many: Ui,
    client: TestClient,  # noqa: F811
) -> None:
    def shown(address: str) -> list[str]:
        return re.findall(r'data-run="(\w+)"', client.get(address).text)

    wanted = [f"run_{number:04d}" for number in reversed(range(RUNS))]
    assert [run for page in range(1, 21) for run in shown(f"/?page={page}")] == wanted
    assert shown("/") == shown("/?page=0") == shown("/?page=x") == wanted[:50]
    assert shown("/?page=99") == wanted[-50:]
    assert shown("/?q=run_09&page=2") == wanted[50:100]
    first = client.get("/?q=run_09").text
    assert (
        'href="/?page=2&amp;q=run_09"' in first
        and "1 of 2, 100 trainings" in first
        and 'rel="prev"' not in first
    )
    found = client.get("/", headers={"accept": "application/json"}).json()
    assert [row["id"] for row in found] == wanted and found[0]["step"] == RUNS - 1


def test_what_takes_long_is_asked_once(
    ui: Ui,  # noqa: F811
    client: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        system, "run_py", lambda *words: (asked.append(words), (0, "", ""))[1]
    )
    for _ in range(3):
        client.get("/system")
    assert asked == [("--list-extensions",)]


def test_a_comparison_takes_any_run(many: Ui, client: TestClient) -> None:  # noqa: F811
    text = client.get("/compare?run=run_0001&run=run_0999").text
    assert text.count("<datalist") == 1 and text.count('<option value="run_0500"') == 1
    assert re.findall(r'<input name="run"[^>]* value="(\w+)"', text) == [
        "run_0001",
        "run_0999",
    ]


def test_hostile_names_are_text_in_the_lists(ui: Ui, client: TestClient) -> None:  # noqa: F811
    hostile = 'a"><script>alert(1)<!--'.replace("/", "")
    for name in (hostile, "two"):
        (ui.output / name).mkdir()
        (ui.output / name / "run.json").write_text('{"status": "finished"}')
    for path in ("/compare?run=two", "/runs/two", "/"):
        text = client.get(path).text
        assert "a&#34;&gt;&lt;script&gt;" in text or "a&quot;&gt;&lt;script&gt;" in text
        assert "<script>alert" not in text


def test_a_run_shows_its_first_sample_beside_its_last(
    ui: Ui,  # noqa: F811
    client: TestClient,  # noqa: F811
) -> None:
    for run, names, shown in (
        ("both", ["0_0", "0_1", "80_0", "160_0", "160_1"], ["0_0", "160_0"]),
        ("alone", ["0_0", "0_1"], ["0_0"]),
        ("second", ["0_1", "80_1", "90_1"], ["0_1", "90_1"]),  # the first was deleted
        ("none", ["notes"], []),
    ):
        samples = ui.output / run / "samples"
        samples.mkdir(parents=True)
        (ui.output / run / "run.json").write_text('{"status": "finished"}')
        for name in names:
            step, _, index = name.partition("_")
            (samples / f"{step:0>9}_{index}.png").touch()
        text = client.get(f"/?q={run}").text
        found = re.findall(r"samples/0*(\d+_\d)\.png\?side=400", text)
        assert found == shown, run
        assert ("no samples yet" in text) is not bool(shown)


def test_the_page_of_a_run_and_all_that_it_loads_are_light(
    client: TestClient,  # noqa: F811
    make_run: Callable[..., Path],  # noqa: F811
) -> None:
    make_run("one")
    page = client.get("/runs/one", headers={"accept": "text/html"})
    known, waiting, weight = set[str](), ["/runs/one"], 0
    while waiting:
        path = waiting.pop()
        answer = client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 200, path
        weight += answer.num_bytes_downloaded
        named = re.findall(r'["\'](/static/[^"\']+\.(?:css|js))["\']', answer.text)
        near = re.findall(r"from '\./([^']+)'", answer.text)
        named += [f"{path.rpartition('/')[0]}/{name}" for name in near]
        waiting += set(named) - known
        known.update(named)
    assert "/static/pages/viewer.js" in known and len(page.content) < 30_000
    assert weight < 100_000, f"{len(known)} files"

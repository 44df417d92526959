"""The script for a GPU runs whole on a CPU, and nothing stops it."""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import verify_gpu
from benchmarks.gpu_rows import ROWS, Asked, measure
from benchmarks.verify_gpu import ITEMS, SECONDS
from tests.processes import output_of
from toolkit.registry import FAMILIES

HERE = ("--device", "cpu", "--size", "XS")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "verify.json"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def in_its_place(
    part: Any, name: str, asked: argparse.Namespace, folder: Path, log: Path
) -> None:
    """A process of an item, with `part` in the place of what it measures."""
    os.setsid()
    (folder / "large").write_bytes(bytes(1000))
    Path(asked.partial).write_text(json.dumps({"s": 1.04}))
    log.write_text("it begins\n")
    part(name)
    log.write_text(json.dumps({"row": name, "status": "measured", "s": 0.5}))


def run(results: Path, *arguments: object) -> object:
    with pytest.raises(SystemExit) as ended:
        verify_gpu.main([*HERE, "--results", str(results), *map(str, arguments)])
    return ended.value.code


def items_in(results: Path) -> dict[str, dict[str, Any]]:
    return json.loads(results.read_text())["items"]


def hangs_in(slow: str, name: str) -> None:
    if name == slow:
        time.sleep(600)
    if name == "plain loop":
        os._exit(3)


@pytest.mark.parametrize("ends", ["by its limit", "by SIGTERM"])
def test_nothing_stops_at_an_item_and_its_files_go(
    ends: str, results: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """One hangs, one fails, one group runs side by side."""

    def hangs(name: str) -> None:
        if name == "default" and ends == "by SIGTERM":
            os.kill(os.getppid(), signal.SIGTERM)
        hangs_in("default", name)

    monkeypatch.setattr(verify_gpu, "measure", partial(in_its_place, hangs))
    item = verify_gpu.Item(1, 0.05 if ends == "by its limit" else 60)
    monkeypatch.setitem(ITEMS, "default", item)
    assert run(results) == 1
    found = items_in(results)
    assert found["default"]["status"] == "cut off" and found["default"]["s"] == 1.04
    assert list(temporary.iterdir()) == []
    said = capsys.readouterr().out
    if ends == "by SIGTERM":
        assert list(found) == ["2.1", "default"] and "cut off by SIGTERM" in said
        return
    assert set(found) == {name for name, item in ITEMS.items() if item.call == 1}
    assert "exit status 3: it begins" in found["plain loop"]["reason"]
    assert found["default"]["reason"].startswith("took longer than 0.5 s")
    # What is measured is known; a failure is tried again.
    monkeypatch.setattr(verify_gpu, "measure", partial(in_its_place, lambda name: None))
    assert run(results) == 0
    said = capsys.readouterr().out.splitlines()
    again = [json.loads(line)["item"] for line in said if line.startswith("{")]
    assert again == ["default", "plain loop"]
    assert "default: measured; 0.500 s, 1.00 of the plain loop, at most 0.45: BROKEN" in said  # fmt: skip
    with pytest.raises(SystemExit, match=r"refused: .* is of .*XS"):
        verify_gpu.main(["--device", "cpu", "--size", "S", "--results", str(results)])


def test_the_calls_fit_their_minutes() -> None:
    assert SECONDS == {1: 6.5 * 60, 2: 6 * 60}
    for call, seconds in SECONDS.items():
        own = [item for item in ITEMS.values() if item.call == call]
        alone = sum(item.seconds for item in own if not item.group)
        groups = {item.group: item.seconds for item in own if item.group}
        assert alone + sum(groups.values()) + verify_gpu.LEAST_S <= seconds
    for name, item in ITEMS.items():
        assert item.part or (item.row or name) in ROWS


def test_every_family_has_a_row() -> None:
    classes = {row.family.classes["transformer"] for row in ROWS.values()}
    of_families = {
        family.classes["transformer"]
        for family in map(FAMILIES.load, FAMILIES)
        if "transformer" in family.classes  # one made from scratch has another network
    }
    assert of_families <= classes


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (0, ['{"row": "1", "status": "measured"}', "bye"], {"status": "measured"}),
        (
            1,
            ["torch says", "no such kernel"],
            {"reason": "exit status 1: no such kernel"},
        ),
        (-9, [], {"reason": "exit status -9: it said nothing"}),
    ],
)
def test_a_process_that_ended_says_what_it_measured_or_why_not(
    status: int, said: list[str], expected: dict[str, str]
) -> None:
    assert verify_gpu.result_of("1", status, said).items() >= expected.items()


@pytest.mark.parametrize("name", ["6 GB", "kept"])
def test_a_row_writes_into_its_folder_alone(
    name: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps no quantized model, unless that is what it measures."""
    monkeypatch.chdir(temporary)
    folder = tmp_path / "row"
    folder.mkdir()
    asked = Asked(name, folder, "XS", "cpu", warm_up=0, steps=1, accumulation=1)
    assert measure(asked)["status"] == "measured"
    assert list(temporary.iterdir()) == [] and set(tmp_path.iterdir()) == {temporary, folder}  # fmt: skip
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 10**6
    assert bool([*folder.rglob("kept.json")]) == (name == "kept")


@pytest.mark.slow
def test_every_item_is_measured_small(results: Path) -> None:
    """From the command line."""
    command = [sys.executable, "benchmarks/verify_gpu.py", *HERE]
    command += ["--results", str(results), "--items", *ITEMS]
    lines = output_of(*command).splitlines()
    found = items_in(results)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(ITEMS, "measured")  # fmt: skip
    for name, one in found.items():
        assert sum(line.startswith(f"{name}: measured; ") for line in lines) == 2, name
        for text, holds in one.get("judged", ()):
            assert holds, text
        assert all(norm > 0 for norm in one.get("grad_norms", ()))
    assert found["second start"]["bits"] == found["first start"]["bits"] != []
    assert found["second start"]["kept_s"]["reading"] > 0
    assert found["first start"]["kept_s"]["reading"] == 0
    assert found["6 GB"]["level"] == "block_offload"
    slowest = [ms for _, ms, _ in found["trace"]["slowest"]]
    assert slowest == sorted(slowest, reverse=True) and [
        *results.parent.glob("*.logs/trace.json.gz")
    ]
    assert re.fullmatch(
        "int8 products take .*(faster|slower); fp8 products take .*(faster|slower)",
        found["products"]["reason"],
    )
    assert re.fullmatch(
        "offload_attention takes .* of full's time: (faster|slower)",
        found["offload_attention"]["reason"],
    )
    assert found["samples"]["db"] > 30 and found["vae"]["vae"]["2.1, decode"]["bands"]

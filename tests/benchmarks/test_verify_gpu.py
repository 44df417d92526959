import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import pytest
import torch

from benchmarks import bench_gpu, gpu_rows, verify_gpu
from benchmarks.gpu_promises import PROMISES
from benchmarks.verify_gpu import ITEMS

HERE = ("--device", "cpu", "--size", "XS")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "verify.json"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Item -> Python source that stands in for its process; the others print that they
    are measured."""
    sources: dict[str, str] = {}

    def command(name: str, item: verify_gpu.Item, asked: Any, kept: Path) -> list[str]:
        line = json.dumps(
            {"row": name, "status": "measured", "line": f"{name} is fine"}
        )
        source = sources.get(name, f"print({line!r})")
        if name in asked.fail:
            source = f"import os, sys; sys.exit('{name} fails as it was asked to: ' + os.environ[{gpu_rows.FAIL!r}])"
        return [sys.executable, "-S", "-c", source.replace("PARTIAL", repr(str(kept)))]

    monkeypatch.setattr(verify_gpu, "command_of", command)
    return sources


def run(results: Path, *arguments: object) -> object:
    with pytest.raises(SystemExit) as ended:
        verify_gpu.main([*HERE, "--results", str(results), *map(str, arguments)])
    return ended.value.code


def items_in(results: Path) -> dict[str, dict[str, Any]]:
    return json.loads(results.read_text())["items"]


def verdicts_in(results: Path) -> dict[str, str]:
    lines = results.with_suffix(".md").read_text().splitlines()
    return dict(
        line.removeprefix("- ").split(": ", 1)
        for line in lines
        if line.startswith("- ")
    )


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_stops_at_a_failure_and_the_verdict_names_it(
    children: dict[str, str], results: Path, half: int
) -> None:
    """Every second item fails, then the others do."""
    failing = list(ITEMS)[half::2]
    for call in ("A", "B"):
        assert run(results, "--call", call, "--fail", *failing) == 1
    found = items_in(results)
    assert list(found) == list(ITEMS) or set(found) == set(ITEMS)
    for name, item in found.items():
        assert item["status"] == ("failed" if name in failing else "measured"), name
    said = verdicts_in(results)
    for promise in PROMISES:
        for name in set(promise.needs) & set(failing):
            assert (
                f"{name}: failed: exit status 1: {name} fails as it was asked to: 1"
                in said[promise.what]
            )
            assert said[promise.what].endswith("BROKEN")
    assert set(failing) <= {name for promise in PROMISES for name in promise.needs} | {
        "rates"
    }


def test_what_is_measured_is_known_and_the_next_call_begins_with_what_is_left(
    children: dict[str, str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results, "--items", "plain loop") == 0
    assert (
        run(
            results,
            "--call",
            "A",
            "--items",
            "plain loop",
            "default",
            "--fail",
            "default",
        )
        == 1
    )
    capsys.readouterr()
    assert run(results, "--call", "B") == 1
    order = [
        line.partition(":")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.endswith(": measured")
    ]
    # A failure is tried again by call A alone.
    of_a = [
        name
        for name, item in ITEMS.items()
        if item.call == "A" and name not in ("plain loop", "default")
    ]
    assert sorted(order[: len(of_a)]) == sorted(of_a)
    assert sorted(order[len(of_a) :]) == sorted(
        name for name, item in ITEMS.items() if item.call == "B"
    )
    assert run(results, "--call", "A") == 0
    assert capsys.readouterr().out.startswith("default: measured\n")


@pytest.mark.slow
def test_an_item_that_hangs_leaves_what_it_knew_and_costs_its_own_time(
    children: dict[str, str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        "row": "24 GB",
        "status": "cut off",
        "training_gb": 21.36,
        "planned_training_gb": 21.23,
    }
    children["24 GB"] = (
        f"open(PARTIAL, 'w').write({json.dumps(known)!r}); import time; time.sleep(600)"
    )
    children["16 GB"] = "import os; os.kill(os.getpid(), 9)"
    children["12 GB"] = "pass"
    children[
        "quickstart"
    ] = """print('memory account: peak 9.6 GB in training'); print('  alive at the peak: all')
print('{"row": "quickstart", "status": "measured", "line": "240 steps"}')"""
    item = verify_gpu.Item(
        "A", 0.2 / verify_gpu.SLOW / 10, "hangs", row="24 GB", group="memory"
    )
    monkeypatch.setitem(ITEMS, "24 GB", item)
    assert run(results, "--call", "A") == 1
    found = items_in(results)
    assert found["24 GB"]["status"] == "cut off" and found["24 GB"][
        "reason"
    ].startswith("took longer than 0.02 min")
    assert found["16 GB"]["reason"] == "exit status -9: it said nothing"
    assert found["12 GB"]["reason"] == "exit status 0: it said nothing"
    assert [
        one["status"] for name, one in found.items() if not name.endswith("GB")
    ] == ["measured"] * 7
    assert verdicts_in(results)["24 GB"] == "21.4 of 21.2 GB planned: holds"
    report = results.with_suffix(".md").read_text()
    assert (
        "\nquickstart\n    memory account: peak 9.6 GB in training\n      alive at the peak: all\n"
        in report
    )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"]
)
def test_a_call_that_is_cut_off_writes_what_is_known(
    children: dict[str, str],
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    children["default"] = (
        "open(PARTIAL, 'w').write('{\"s\": 1.04}'); import time; time.sleep(600)"
    )
    monkeypatch.setattr(
        verify_gpu,
        "TemporaryDirectory",
        partial(TemporaryDirectory, dir=results.parent),
    )

    def once_it_is_known() -> None:
        written = list(results.parent.glob("*/default.partial.json"))
        return (
            Timer(0.2, once_it_is_known).start()
            if not written
            else os.kill(os.getpid(), number)
        )

    Timer(0.2, once_it_is_known).start()
    assert run(results, "--items", "plain loop", "default", "rates") == 1
    found = items_in(results)
    assert {name: one["status"] for name, one in found.items()} == {
        "plain loop": "measured",
        "default": "cut off",
    }
    assert (found["default"]["s"], found["default"]["reason"]) == (
        1.04,
        "the call was cut off",
    )
    assert f"(cut off by {signal.Signals(number).name})" in capsys.readouterr().out


def test_without_time_nothing_is_begun_and_another_size_is_refused(
    children: dict[str, str], results: Path
) -> None:
    assert run(results, "--call", "B", "--minutes", "0.1") == 0
    assert not results.exists()
    assert run(results, "--items", "rates") == 0
    with pytest.raises(SystemExit, match=r"refused: .* is of .*XS"):
        verify_gpu.main(["--device", "cpu", "--size", "S", "--results", str(results)])


def test_items_find_their_packages_where_the_call_does(
    children: dict[str, str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/site")
    children[
        "rates"
    ] = """import json, os; print(json.dumps({"row": "rates", "status": "measured",
        "line": os.environ["PYTHONPATH"] + " " + str("TORCHINDUCTOR_CACHE_DIR" in os.environ)}))"""
    run(results, "--items", "rates")
    assert items_in(results)["rates"]["line"] == "/opt/site True"


def test_every_item_is_a_row_or_a_part_and_the_calls_fit_ten_minutes_of_a_device() -> (
    None
):
    for name, item in ITEMS.items():
        assert (
            item.row in bench_gpu.NAMES if item.row else item.part in verify_gpu.PARTS
        )
        command = verify_gpu.command_of(
            name, item, verify_gpu.arguments(list(HERE)), Path("partial")
        )
        if item.row:
            bench_gpu.arguments(command[2:])
    assert {item.call for item in ITEMS.values()} == set(verify_gpu.MINUTES)
    assert verify_gpu.MINUTES == {"A": 6, "B": 4}


def test_the_account_of_memory_is_read_from_what_a_row_says() -> None:
    account = [
        "memory account: peak 2.0 GB in training, 3.0 GB reserved",
        "  peak by phase: ",
        "      0.1 GB  a.py:1 b",
    ]
    said = [
        "memory account: peak 1.0 GB",
        "  earlier",
        "step 1",
        *account,
        '{"row": "9"}',
        "  no part of it",
    ]
    assert verify_gpu.account_in(said) == account
    assert verify_gpu.account_in(["step 1"]) == []


def test_the_part_that_needs_no_process_runs_here(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = results.with_name("known.json")
    verify_gpu.main(
        [*HERE, "--results", str(results), "--part", "rates", "--partial", str(known)]
    )
    found = json.loads(capsys.readouterr().out)
    assert (
        found["status"] == "measured"
        and found["kernels"] == json.loads(known.read_text())["kernels"]
    )
    assert len(found["lengths"]["flash"]["first_ms"]) == 6
    assert "a new length by flash" in verify_gpu.said_of(found)


def test_a_traced_row_names_its_slowest_kernels(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json.gz"
    options = (
        "--warm-up",
        "1",
        "--steps",
        "1",
        "--accumulation",
        "1",
        "--row",
        "1",
        "--trace",
        str(trace),
    )
    result = bench_gpu.run_row(bench_gpu.arguments([*HERE, *options]))
    assert trace.stat().st_size > 1000
    assert any("mm" in name for name, _, _ in result["slowest"])
    milliseconds = [ms for _, ms, _ in result["slowest"]]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert gpu_rows.ROWS["1"].what == result["what"]


@pytest.mark.parametrize("name", ["quickstart", "whole jobs", "rates"])
def test_a_part_fails_as_it_is_asked_to(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu_rows.FAIL, "1")
    with pytest.raises(RuntimeError, match="it was asked to fail"):
        verify_gpu.main(
            [
                *HERE,
                "--results",
                str(results),
                "--part",
                name,
                "--partial",
                "known.json",
            ]
        )


def test_a_second_start_needs_the_files_of_a_first_one(results: Path) -> None:
    partial = results.with_name("known.json")
    with pytest.raises(SystemExit, match="needs a first one in the same call"):
        verify_gpu.main(
            [
                *HERE,
                "--results",
                str(results),
                "--part",
                "second start",
                "--partial",
                str(partial),
            ]
        )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_jobs_rows_and_tests_run_small_from_the_command_line(results: Path) -> None:
    """A row fails at a step; what follows runs all the same."""
    names = ("first start", "12 GB", "eager", "whole jobs")
    assert run(results, "--minutes", "60", "--items", *names, "--fail", "eager") == 1
    found = items_in(results)
    assert {name: one["status"] for name, one in found.items()} == {
        name: "failed" if name == "eager" else "measured" for name in names
    }
    line = next(
        verdicts_in(results)[promise.what]
        for promise in PROMISES
        if "eager" in promise.needs
    )
    assert "it was asked to fail" in line and line.endswith("BROKEN")
    assert found["eager"]["ready_s"] > 0, "what it knew before it failed"
    assert len(found["first start"]["steps_s"]) == 2
    assert found["12 GB"]["level"] == "full_offload"
    assert set(found["whole jobs"]["outcomes"]) == {"skipped"}

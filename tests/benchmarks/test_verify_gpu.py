import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_gpu, gpu_rows, verify_gpu

HERE = ("--device", "cpu", "--size", "XS")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "verify.json"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Item -> Python source that stands in for its process; the others print that they are measured."""
    sources: dict[str, str] = {}

    def command(name: str, item: verify_gpu.Item, asked: Any) -> list[str]:
        line = json.dumps({"row": name, "status": "measured", "line": f"{name} is fine"})
        return [sys.executable, "-S", "-c", sources.get(name, f"print({line!r})")]

    monkeypatch.setattr(verify_gpu, "command_of", command)
    return sources


def run(*arguments: object) -> object:
    with pytest.raises(SystemExit) as ended:
        verify_gpu.main([*HERE, *map(str, arguments)])
    return ended.value.code


def test_the_first_failure_of_the_first_call_ends_it_and_the_next_start_goes_on_there(
    children: dict[str, str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children["tests"] = "import sys; sys.exit('three tests failed')"
    assert "tests: failed" in str(run("--results", results))
    items = json.loads(results.read_text())["items"]
    assert {name: item["status"] for name, item in items.items()} == {
        "versions": "measured",
        "quickstart": "measured",
        "tests": "failed",
    }
    assert items["tests"]["reason"] == "exit status 1: three tests failed"
    children.clear()
    capsys.readouterr()
    assert run("--results", results) == 0
    assert capsys.readouterr().out.startswith(
        "versions: known\nquickstart: known\ntests: measured\nkernels: measured\n"
    )


def test_later_calls_go_on_after_a_failure_and_an_item_that_hangs_costs_its_own_time(
    children: dict[str, str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children["1"] = "input = __import__('time').sleep(600)"
    children["2"] = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setitem(verify_gpu.ITEMS, "1", verify_gpu.Item("B", 0.02, "hangs", "1"))
    assert run("--results", results, "--call", "B") == 0
    items = json.loads(results.read_text())["items"]
    assert items["1"]["status"] == "took longer than 0.02 min" and items["2"]["status"] == "failed"
    assert [item["status"] for item in list(items.values())[2:]] == ["measured"] * 6
    table = results.with_suffix(".md").read_text()
    assert "| 5 | int8 products, full, compiled | 5 is fine |" in table
    assert "| 2 | bf16, full, compiled | failed: exit status -9: it said nothing |" in table


def test_what_has_no_time_left_stays_open_and_another_size_is_refused(children: dict[str, str], results: Path) -> None:
    assert run("--results", results, "--call", "C", "--minutes", "1e-9") == 0
    assert not results.exists()
    assert run("--results", results, "--items", "optimizers") == 0
    with pytest.raises(SystemExit, match=r"refused: .* is of .*XS"):
        verify_gpu.main(["--device", "cpu", "--size", "S", "--results", str(results)])


def test_every_item_is_a_row_or_a_part_and_every_call_fits_nine_minutes_of_the_device() -> None:
    for name, item in verify_gpu.ITEMS.items():
        assert item.row in bench_gpu.NAMES if item.row else name.partition(",")[0] in verify_gpu.PARTS
        command = verify_gpu.command_of(name, item, verify_gpu.arguments(list(HERE)))
        if item.row:
            bench_gpu.arguments(command[2:])
    assert {item.call for item in verify_gpu.ITEMS.values()} == set(verify_gpu.MINUTES)
    assert max(verify_gpu.MINUTES.values()) <= 9


def test_parts_that_need_no_process_run_here(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, options in {"versions": (), "optimizers": (), "lengths, flash": ("--backend", "flash")}.items():
        verify_gpu.main([*HERE, "--results", str(results), "--part", part, *options])
        found = json.loads(capsys.readouterr().out)
        assert found["row"] == part and found["status"] == "measured" and found["line"]
    assert len(found["first_ms"]) == len(found["next_ms"]) == verify_gpu.TEXT_LENGTHS


def test_a_traced_row_names_its_slowest_kernels(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json.gz"
    options = ("--warm-up", "1", "--steps", "1", "--accumulation", "1", "--row", "1", "--trace", str(trace))
    result = bench_gpu.run_row(bench_gpu.arguments([*HERE, *options]))
    assert trace.stat().st_size > 1000
    assert any("mm" in name for name, _, _ in result["slowest"])
    milliseconds = [ms for _, ms, _ in result["slowest"]]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert gpu_rows.ROWS["1"].what == result["what"]


@pytest.mark.slow
def test_all_of_it_runs_small_from_the_command_line(results: Path) -> None:
    items = ["versions", "quickstart", "tests", "kernels", "1", "0n", "lengths, flash", "512 full", "encoding", "trace"]
    assert run("--results", results, "--items", *items) == 0
    found = json.loads(results.read_text())["items"]
    assert {name: item["status"] for name, item in found.items()} == dict.fromkeys(items, "measured")

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.processes import python, until
from toolkit.system import host_memory, read_ahead, readings
from toolkit.system.read_ahead import loaded_ahead, thread_map
from toolkit.system.readings import Reading, read_machine

ROOT = Path(__file__).parents[3]

IN_A_FRESH_PROCESS = """
from pathlib import Path

import torch

from toolkit.system.host_memory import malloc_trim


def anonymous_mib():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024


def filled(mib):
    return torch.empty(mib * 2**20, dtype=torch.uint8).fill_(1)


filled(30)  # freeing it raises what glibc keeps
before = anonymous_mib()
blocks, kept = [], []
for _ in range(20):
    blocks.append(filled(4))
    kept.append(torch.empty(2**12, dtype=torch.uint8).fill_(1))  # so that the heap cannot simply shrink
full = anonymous_mib()
del blocks
malloc_trim()
print(full - before, anonymous_mib() - before)
"""
"""A heap that other tests have used may hold the blocks without growing."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux")
def test_freed_tensors_are_given_back() -> None:
    grown, left = map(int, python(IN_A_FRESH_PROCESS, seconds=120).split())
    assert grown > 70
    assert left < 20


def test_a_system_without_the_call_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_c_library", lambda: None)
    host_memory.malloc_trim()


def test_free_memory_is_what_the_system_has_or_a_containers_limit(
    tmp_path: Path, monkeypatch
) -> None:
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert host_memory._available(meminfo) == 1000 * 1024
    assert host_memory._left_in((limit, used)) is None  # no container
    for text, left in (("max\n", None), ("5000\n", 2000), ("100\n", 0)):
        limit.write_text(text)
        used.write_text("3000\n")
        assert host_memory._left_in((limit, used)) == left
    limit.write_text("5000")
    monkeypatch.setattr(host_memory, "CGROUPS", ((limit, used),))
    assert host_memory.free_host_memory() == 2000
    monkeypatch.setattr(host_memory, "CGROUPS", ())
    assert host_memory.free_host_memory() > 2000 or sys.platform != "linux"


@pytest.mark.parametrize(
    ("size", "pinned"),
    [
        (0, 0),
        (1, 1),
        (2**20 + 1, 2**21),
        (216 * 2**20, 256 * 2**20),
        (256 * 2**20, 256 * 2**20),
        (256 * 2**20 + 1, 256 * 2**20 + 1),
        (340_000_000, 340_000_000),
    ],
)
def test_pinned_memory_is_rounded_up_to_the_limit_and_exact_above(
    size: int, pinned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as with PyTorch 2.13
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: True)
    assert host_memory.pinned_bytes(size) == pinned


def test_counters_of_a_process_are_read(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    for name, text in {
        "stat": "7 (a (b) c) R 1 7 7 0 -1 4194304 120 0 42 0 1 2 3",
        "status": "Name:\tpython\nVmRSS:\t 9 kB\nVmSwap:\t  1000 kB\n",
        "schedstat": "114235 2500000000 2\n",
    }.items():
        (tmp_path / "self" / name).write_text(text)
    assert readings._of_process(tmp_path) == (42, 1_024_000, 2.5)
    assert readings._of_process(tmp_path / "elsewhere") == (0, 0, 0.0)


def test_the_gpu_is_asked_for_memory_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_of_process", lambda: (1, 2, 3.0))
    monkeypatch.setattr(readings, "gpu_clock", lambda device: (1800, ("temperature",)))
    monkeypatch.setattr(readings, "_shares_gpu_memory", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 4))
    monkeypatch.setattr(
        torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 5}
    )
    assert read_machine(torch.device("cuda:0")) == Reading(
        1, 2, 0.0, 3.0, 5, 0.25, True, 1800, ("temperature",)
    )
    on_cpu = read_machine(torch.device("cpu"))
    assert on_cpu.cpu_s > 0 and replace(on_cpu, cpu_s=0.0) == Reading(1, 2, 0.0, 3.0)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_is_found_comes_in_the_order_of_the_things(
    count: int, at_once: int
) -> None:
    assert list(thread_map(lambda number: number**2, range(count), at_once)) == [
        n**2 for n in range(count)
    ]


@pytest.mark.parametrize(
    ("waited", "worked", "by_threads"),
    [(1e-4, 1e-4, False), (5e-2, 1e-4, True), (1, 1, True)],
    ids=["in memory", "the disk is waited for", "decoded"],
)
def test_files_are_read_by_threads_where_that_is_faster(
    waited: float, worked: float, by_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"perf_counter": 0.0, "thread_time": 0.0}
    threads = dict[int, bool]()

    def read(number: int) -> int:
        clock["thread_time"] += worked if number == 120 else 1e-4
        clock["perf_counter"] += waited if number == 120 else 1e-4
        threads[number] = threading.current_thread() is threading.main_thread()
        return number**2

    clocks = {name: lambda name=name: clock[name] for name in clock}
    monkeypatch.setattr(read_ahead, "time", SimpleNamespace(**clocks))
    found = list(read_ahead.map_small_files(read, range(350)))
    assert found == [number**2 for number in range(350)]
    assert [number for number, here in sorted(threads.items()) if not here] == list(
        range(200, 350) if by_threads else []
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_neither_order_nor_results_and_their_errors_reach_the_caller(
    workers: int,
) -> None:
    def load(number: int) -> tuple[int, bool]:
        time.sleep(0.002 * (number % 3))
        return 60 // (
            20 - number
        ), threading.current_thread() is threading.main_thread()

    found = list(loaded_ahead(load, range(20), workers))
    assert found == [(60 // (20 - number), workers == 0) for number in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(loaded_ahead(load, range(30), workers))


def test_threads_load_ahead_but_not_everything_and_end_when_they_are_closed() -> None:
    asked: list[int] = []

    def things() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    before = threading.active_count()
    found = loaded_ahead(lambda number: number, things(), 2)
    assert next(found) == 0 and 2 < len(asked) < 8 and threading.active_count() > before
    found.close()
    until(lambda: threading.active_count() == before)

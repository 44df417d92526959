"""CPU seconds of each test file, with the processes that its tests start: hooks of
pytest, which `tests/conftest.py` takes.

A run of over a hundred tests ends with the ten dearest files. `--cpu-report=FILE`
writes all of them as JSON, path -> seconds, which `benchmarks/prices.py` reads. A busy
machine changes CPU seconds little; no test compares them with a number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
KEY = "cpu seconds"
DEAREST = 10
FEWEST_TESTS = 100
"""Below so many tests nobody asks which file is dear."""

_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("cpu").addoption(
        "--cpu-report",
        metavar="FILE",
        help="CPU seconds of each test file, as JSON",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Iterator[None]:
    """The report of the teardown carries what the whole test took, also from a worker
    to the process that collects."""
    item.stash[_BEGIN] = _cpu_seconds()
    return (yield)


_BEGIN = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "teardown" and _BEGIN in item.stash:
        report.user_properties.append((KEY, _cpu_seconds() - item.stash[_BEGIN]))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        file = report.nodeid.partition("::")[0]
        _tests[file] += 1
        _seconds[file] += dict(report.user_properties).get(KEY, 0.0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    path = config.getoption("--cpu-report")
    if path:
        rounded = {
            file: round(seconds, 2) for file, seconds in sorted(_seconds.items())
        }
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
    if _tests.total() <= FEWEST_TESTS:
        return
    terminalreporter.section(f"{_seconds.total():.0f} CPU seconds; the dearest files")
    for file, seconds in _seconds.most_common(DEAREST):
        terminalreporter.line(f"{seconds:7.1f} s {_tests[file]:5} tests  {file}")


def _cpu_seconds() -> float:
    """CPU seconds that this process and its children have taken. Children that still
    run are counted too, with the children that they have waited for."""
    times = os.times()
    return sum(times[:4]) + sum(_process_seconds(child) for child in _children())


def _children() -> list[str]:
    """Process ids of the children of all threads; none where there is no /proc."""
    found: list[str] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread may end meanwhile
            found += task.read_text().split()
    return found


def _process_seconds(process: str) -> float:
    """utime, stime, cutime and cstime of proc(5); 0 for a process that has just
    ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(
            encoding="utf-8", errors="replace"
        )
    except OSError:
        return 0.0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / TICKS

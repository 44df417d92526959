"""The tests that need a CUDA device: skipped where there is none, and their results as
one JSON file.

Hooks of pytest, which `tests/conftest.py` takes: `python -m pytest -m cuda
--cuda-report=cuda.json`. The file is written anew after each test, so that a run which
is cut off leaves what it had.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report

NO_DEVICE = "no CUDA device"

MARK = "pytest.mark.cuda"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cuda")
    group.addoption(
        "--cuda-report",
        metavar="FILE",
        help="results of the tests of CUDA, as JSON (with -m cuda)",
    )
    group.addoption(
        "--cuda-minutes",
        type=float,
        default=8.5,
        help="with --cuda-report no test begins later; default: %(default)s",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--cuda-report")
    if path:
        config.pluginmanager.register(
            CudaReport(Path(path), config.getoption("--cuda-minutes"), config),
            "cuda report",
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m cuda` no other test file is imported, nor the conftest.py of a folder
    without such tests: a machine with a GPU may lack the packages that they need."""
    if (
        not config.getoption("--cuda-report")
        and config.getoption("markexpr", "") != "cuda"
    ):
        return None
    if collection_path.is_dir():
        return None if any(map(has_mark, collection_path.rglob("test_*.py"))) else True
    return (
        True
        if collection_path.name.startswith("test_") and not has_mark(collection_path)
        else None
    )


def has_mark(path: Path) -> bool:
    """Whether a file has tests that need a CUDA device."""
    return MARK in path.read_text(encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_DEVICE))
    if config.getoption("--cuda-report"):
        # whole jobs last
        items.sort(key=lambda item: "nursery" in getattr(item, "fixturenames", ()))


class CudaReport:
    """Collects the outcomes; under xdist workers measure, and the process that started
    them writes."""

    def __init__(self, path: Path, minutes: float, config: pytest.Config) -> None:
        self._path = path
        self._minutes = minutes
        self._writes = not hasattr(config, "workerinput")
        self._begin = time.monotonic()
        self._tests: dict[str, dict[str, Any]] = {}
        self._head = head() if self._writes else {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() - self._begin > 60 * self._minutes:
            pytest.skip(f"no time left (--cuda-minutes {self._minutes:g})")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Measures the most memory this process takes, unless the test says what its
        jobs took (`peak_bytes`)."""
        on_device = torch.cuda.is_available()
        if on_device:
            torch.cuda.reset_peak_memory_stats()
        try:
            return (yield)
        finally:
            if on_device and "peak_bytes" not in dict(item.user_properties):
                item.user_properties.append(
                    ("peak_bytes", torch.cuda.max_memory_allocated())
                )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(
            report.nodeid, {"outcome": "passed", "seconds": 0.0, "peak_bytes": None}
        )
        test["seconds"] += report.duration
        test |= dict(report.user_properties)
        if report.outcome != "passed":
            test["outcome"] = (
                "error" if report.failed and report.when != "call" else report.outcome
            )
            test["message"] = message_of(report)
        if report.when == "teardown":
            self._write(complete=False)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tests[report.nodeid] = {
                "outcome": "error",
                "seconds": 0.0,
                "message": message_of(report),
            }

    def pytest_sessionfinish(self) -> None:
        self._write(complete=True)

    def _write(self, complete: bool) -> None:
        if not self._writes:
            return
        document = {
            "head": self._head,
            "complete": complete,
            "seconds": round(time.monotonic() - self._begin, 1),
            "outcomes": Counter(test["outcome"] for test in self._tests.values()),
            "tests": [
                {"name": name, **test, "seconds": round(test["seconds"], 3)}
                for name, test in self._tests.items()
            ],
        }
        unfinished = self._path.with_name(self._path.name + ".part")
        unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self._path)


def message_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test failed or was skipped."""
    if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else report.longreprtext


def head() -> dict[str, Any]:
    """Machine, versions and device; without a device its entries are None."""
    # with the name of the build
    found: dict[str, Any] = {
        **report.facts(),
        "torch": torch.__version__,
    }
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    found |= dict.fromkeys(("gpu", "capability", "gpu_bytes", "driver"))
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
        found["capability"] = list(torch.cuda.get_device_capability(0))
        found["gpu_bytes"] = torch.cuda.get_device_properties(0).total_memory
        found["driver"] = driver_version()
    return found


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None where its tool does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None

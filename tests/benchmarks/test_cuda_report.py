"""The file of results, written by runs of pytest on tests of its own; on the stand-in
device what it says of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cuda_report import pytest_ignore_collect
from tests.conftest import ROOT, child_environment
from tests.parts import needs_stand_in
from tests.processes import output_of

TESTS = """
    import pytest
    import torch

    pytestmark = pytest.mark.cuda

    @pytest.fixture
    def nursery():
        return 1

    @pytest.fixture
    def broken():
        raise RuntimeError("no such thing")

    def test_jobs(nursery, record_property):
        record_property("peak_bytes", 12345)
        record_property("same_bytes", True)

    def test_memory():
        assert torch.zeros(1 << 20, device="cuda").sum().item() == 0

    def test_wrong():
        assert 1 == 2, "one is not two"

    def test_skipped():
        pytest.skip("no kernel of this kind")

    def test_setup(broken):
        pass
"""

STAND_IN = """
    import sys

    import bitsandbytes  # looks for CUDA's own library where there is a device
    import pytest

    from tests.stand_in_cuda import built, install

    install(built())
    given = ["-q", "-m", "cuda", "-c", "none.ini", "-p", "benchmarks.cuda_report"]
    pytest.main([*given, "--cuda-report=cuda.json"])
    pytest.main([*given, "--cuda-report=late.json", "--cuda-minutes=0"])
"""

PARTS = ("attention", "compiling", "offload", "quantization")


@pytest.mark.parametrize(
    ("given", "ignored"),
    [
        ({"markexpr": "cuda"}, True),
        ({"--cuda-report": "cuda.json"}, True),
        ({"markexpr": "slow"}, None),
    ],
)
def test_files_without_such_tests_are_ignored_where_only_these_are_asked_for(
    given: dict, ignored: bool | None
) -> None:
    config = SimpleNamespace(
        getoption=lambda name, default=None: given.get(name, default)
    )
    for path in ("tests/extensions/tools/ui", "tests/test_run.py"):
        assert pytest_ignore_collect(ROOT / path, config) is ignored
    for path in ("tests/faults", "tests/faults/test_cuda.py", "tests/conftest.py"):
        assert pytest_ignore_collect(ROOT / path, config) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.slow
def test_the_programs_own_tests_of_cuda_are_found_and_skipped(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-m",
        "cuda",
        f"--cuda-report={tmp_path / 'cuda.json'}",
    ]
    # As on a machine that has no packages but those of requirements.txt, found through
    # PYTHONPATH.
    (tmp_path / "uvicorn.py").write_text("raise ImportError('it is not installed')")
    environment = child_environment({"PYTHONPATH": str(tmp_path)})
    said = output_of(*command, env=environment)
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert (found["complete"], found["outcomes"]) == (
        True,
        {"skipped": len(found["tests"])},
    ), said
    assert {test["message"] for test in found["tests"]} == {"no CUDA device"}
    assert found["head"]["torch"] == torch.__version__
    assert (found["head"]["gpu"], found["head"]["driver"]) == (None, None)
    names = [test["name"] for test in found["tests"]]
    assert (
        sum("learns_there_what_it_learns_on_the_cpu[GPU-" in name for name in names)
        >= 21
    )
    assert {name.partition("::")[0] for name in names} == {
        "tests/faults/test_cuda.py",
        *(f"tests/toolkit/memory/test_{part}_cuda.py" for part in PARTS),
    }
    assert names[-1].startswith("tests/faults/"), "whole jobs come last"


@pytest.mark.slow
@needs_stand_in
def test_on_a_device_each_test_has_its_outcome_memory_and_message(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_some.py").write_text(dedent(TESTS))
    (tmp_path / "test_others.py").write_text("import a_package_that_is_not_here")
    (tmp_path / "none.ini").write_text("[pytest]\nmarkers = cuda: on a GPU\n")
    command, environment = (
        [sys.executable, "-c", dedent(STAND_IN)],
        child_environment({"PYTHONPATH": str(ROOT)}),
    )
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (tmp_path / "late.json").exists(), run.stdout + run.stderr
    found, late = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("cuda", "late")
    )
    tests = {test["name"].partition("::")[2]: test for test in found["tests"]}
    assert list(tests)[-1] == "test_jobs", "whole jobs come last"
    assert found["head"]["gpu"] == "stand-in" and found["head"]["capability"] == [9, 0]
    assert {name: test["outcome"] for name, test in tests.items()} == {
        "test_memory": "passed",
        "test_wrong": "failed",
        "test_skipped": "skipped",
        "test_setup": "error",
        "test_jobs": "passed",
    }
    assert 4 << 20 <= tests["test_memory"]["peak_bytes"] < 5 << 20
    assert tests["test_wrong"]["peak_bytes"] < 1 << 20
    assert (tests["test_jobs"]["peak_bytes"], tests["test_jobs"]["same_bytes"]) == (
        12345,
        True,
    )
    assert "one is not two" in tests["test_wrong"]["message"]
    assert tests["test_skipped"]["message"] == "no kernel of this kind"
    assert "no such thing" in tests["test_setup"]["message"]
    assert late["outcomes"] == {"skipped": 5}
    assert {test["message"] for test in late["tests"]} == {
        "no time left (--cuda-minutes 0)"
    }

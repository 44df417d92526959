"""Verdicts on the figures of docs/measured.md."""

import pytest

from benchmarks.gpu_promises import PROMISES, verdicts

MEASURED = {"status": "measured"}
FOUND = {
    "first start": MEASURED | {"first_step_s": 46.7, "process_s": 52.0},
    "24 GB": MEASURED
    | {"training_gb": 21.36, "planned_training_gb": 21.23, "reserved_gb": 21.7},
    "16 GB": MEASURED
    | {"training_gb": 14.73, "planned_training_gb": 14.79, "reserved_gb": 15.0},
    "12 GB": MEASURED
    | {"training_gb": 9.59, "planned_training_gb": 10.25, "reserved_gb": 9.9},
    "plain loop": MEASURED | {"s": 2.02},
    "default": MEASURED | {"s": 1.03, "training_gb": 65.1, "planned_training_gb": 65.9},
    "no reference": MEASURED
    | {"s": 0.40, "training_gb": 59.7, "planned_training_gb": 70.8},
    "int4": {"status": "out of memory", "reason": "CUDA out of memory."},
    "eager": {"status": "cut off", "reason": "the call was cut off", "s": None},
    "tests": {
        "status": "failed",
        "reason": "exit code 1 of pytest",
        "line": "261 passed, 2 failed",
        "wrong": {"tests/a.py::test_one": "no", "tests/b.py::test_two": "no"},
    },
    "whole jobs": {"status": "cut off", "line": "12 passed", "wrong": {}},
}


def lines(found: dict) -> dict[str, str]:
    first, *rest = verdicts(found)
    return {"": first} | dict(line.removeprefix("- ").split(": ", 1) for line in rest)


@pytest.mark.parametrize(
    ("what", "verdict"),
    {
        "first start": "first step 46.7 s after the imports (52.0 s after the process began), at most 45: BROKEN",
        "second start": "not measured (second start was not run)",
        "24 GB": "21.4 of 21.2 GB planned: holds",
        "16 GB": "14.7 of 14.8 GB planned: holds",
        "12 GB": "9.6 of 10.2 GB planned: BROKEN",
        "speed of default": "1.030 s, 0.51 of the plain loop, at most 0.45: BROKEN",
        "memory of default": "65.1 of 65.9 GB planned: holds",
        "speed of no reference": "0.400 s, at most 0.4: holds",
        "memory of no reference": "59.7 of 70.8 GB planned: BROKEN",
        "speed of int4": "int4: out of memory: CUDA out of memory.: BROKEN",
        "speed of eager": "not measured (eager: cut off: the call was cut off)",
        "tests": "tests: failed: exit code 1 of pytest: 261 passed, 2 failed: test_one test_two: BROKEN",
        "whole jobs": "12 passed before it was cut off: holds",
    }.items(),
)
def test_each_promise_has_a_line(what: str, verdict: str) -> None:
    assert lines(FOUND)[what] == verdict


def test_a_job_that_does_not_fit_its_card_breaks_the_promise() -> None:
    found = {"16 GB": FOUND["16 GB"] | {"reserved_gb": 16.6}}
    assert (
        lines(found)["16 GB"] == "14.7 of 14.8 GB planned, 17.3 GB taken in all: BROKEN"
    )


def test_a_device_that_counts_no_memory_and_tests_that_are_skipped() -> None:
    skipped = MEASURED | {
        "line": "264 skipped",
        "outcomes": {"skipped": 264},
        "wrong": {},
    }
    said = lines({"24 GB": MEASURED | {"training_gb": None}, "tests": skipped})
    assert said["tests"] == "not measured (this device has no such numbers)"
    assert said["24 GB"] == "not measured (this device has no such numbers)"
    assert said[""] == f"0 promises hold, 0 do not, {len(PROMISES)} are not measured"
    assert lines(FOUND)[""] == "5 promises hold, 7 do not, 6 are not measured"

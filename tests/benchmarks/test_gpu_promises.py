"""Verdicts on the figures of docs/measured.md."""

import pytest

from benchmarks.gpu_promises import line

MEASURED = {"status": "measured"}
FOUND = {
    "default": MEASURED | {"s": 1.03, "training_gb": 65.1, "planned_training_gb": 65.9},
    "plain loop": MEASURED | {"s": 2.02},
    "2.1": MEASURED | {"losses": [3.2, float("nan")], "grad_norms": [0.1]},
    "no reference": MEASURED
    | {"s": 0.40, "training_gb": 59.7, "planned_training_gb": 70.8},
    "int4": {"status": "out of memory", "reason": "CUDA out of memory."},
    "first start": MEASURED | {"first_step_s": 46.7, "bits": ["1", "2"]},
    "second start": MEASURED
    | {"first_step_s": 11.0, "bits": ["1", "3"], "kept_s": {"reading": 5.0}},
    "vae": {"status": "cut off", "reason": "took longer than 25 s"},
    "tests": MEASURED | {"judged": [["261 passed, none may fail", True]]},
}


@pytest.mark.parametrize(
    ("item", "said"),
    {
        "default": "measured; 1.030 s, 0.51 of the plain loop, at most 0.45: BROKEN; "
        "peak 65.10 of 65.90 GB planned, at most 3 % apart: holds",
        "plain loop": "measured",
        "2.1": "measured; 1 of 3 losses and norms are not finite: BROKEN",
        "no reference": "measured; 0.400 s, at most 0.40: holds; "
        "peak 59.70 of 70.80 GB planned, at most 3 % apart: BROKEN",
        "int4": "out of memory; CUDA out of memory.",
        "first start": "measured; first step after 46.7 s, at most 45: BROKEN",
        "second start": "measured; first step after 11.0 s, at most 12: holds; "
        "bits of 2 blocks as in the first start (reading 5.00 s): BROKEN",
        "vae": "cut off; took longer than 25 s",
        "tests": "measured; 261 passed, none may fail: holds",
    }.items(),
)
def test_each_figure_stands_beside_its_target(item: str, said: str) -> None:
    assert line(item, FOUND) == f"{item}: {said}"

"""Real jobs with something wrong end as if nothing were, and have one line about it in
the log and the events."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import Job
from tests.faults.nursery import Fault

QUICKSTART = str(ROOT / "config" / "examples" / "tiny_mascots")
TOO_HIGH = {
    "train__lr": 10.0,
    "train__steps": 20,
    "model__name_or_path": QUICKSTART,
    "sample__prompts": [
        "a round blue mascot, at the beach",
        "a star green mascot, in the snow",
    ],
    "sample__width": 96,
    "sample__height": 96,
    "sample__sample_steps": 4,
    "sample__sample_every": 20,
}
"""The model of the quickstart makes images, which weights of any size do not."""

SLOW_DISK = {"train__steps": 68}
LOAD = "toolkit.data.batches.dataloader:BatchLoader.load"
SLOW_LOADS = [
    ("slow", LOAD, 0.05),  # so that a busy moment is not the usual time
    ("slow_from", LOAD, 45, 0.5),
    ("set_value", "toolkit.train.anomalies:WINDOW_S", 2.0),
]
NO_GRADIENT = "the loss does not depend"
LAYERS = {"train__steps": 26}
FULL = {
    **LAYERS,
    "train__lr": 1e-4,
    "network": {"type": "full"},
    "train__fused_backward_pass": True,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "faults", "kind", "cause"),
    [
        pytest.param(
            TOO_HIGH, [], "samples", "the weights went wrong", id="learning rate"
        ),
        pytest.param(SLOW_DISK, SLOW_LOADS, "step_time", "waiting for data", id="disk"),
        pytest.param(
            FULL,
            [("detach_first", "weight")],
            "gradient",
            NO_GRADIENT,
            id="layer of the model",
        ),
        pytest.param({"train__steps": 70}, [], None, "", id="sound"),
    ],
)
def test_a_broken_job_says_what_is_wrong_and_goes_on(
    job: Job, changes: dict, faults: list[Fault], kind: str | None, cause: str
) -> None:
    rarely = {
        "save__save_every": 1000,
        "sample__sample_every": 1000,
        "train__gradient_accumulation": 1,
    }
    job.change(**rarely | changes)
    log = job.run(faults=faults)
    found = [
        event for event in job.lines("events.jsonl") if event["event"] == "warning"
    ]
    assert [event["kind"] for event in found] == ([kind] if kind else [])
    assert all(
        event["cause"].startswith(cause) and event["message"] in log for event in found
    )
    assert job.status() == "finished"

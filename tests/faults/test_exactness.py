"""A run that resumes from a state ends in the same bits as one that was never interrupted, whatever it trains with.

Each case trains 4 steps, then goes back to the state of step 2 (in the middle of an epoch) in a new process. Stops
within an accumulation, while sampling and by a kill are in test_stops.py.
"""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from tests.faults.conftest import Job
from toolkit.optim.optimizer_args import OPTIMIZERS
from toolkit.optim.schedules import SCHEDULES

SCHEDULE_NEEDS = {
    "plateau": {"every": 1, "patience": 0},
    "piecewise_constant": {"step_rules": "1:2,0.5"},
    "step": {"step_size": 1, "gamma": 0.5},
    "exponential": {"gamma": 0.5},
}
OPTIMIZER_NEEDS = {
    "prodigy": {"train__lr": 1.0},
    "schedulefree_adamw": {"train__ema_config": {"use_ema": False}},  # it averages by itself
}
WITH_OWN_COURSE = {"schedulefree_adamw"}
"""Optimizers that want no schedule."""

OF_THEIR_OWN_KIND = {"adamw8bit", "muon", "prodigy", "schedulefree_adamw", "plateau"}
"""Optimizers and schedules whose state is unlike the others'. Of these the case is not slow."""


def cases() -> list:
    return [
        pytest.param(*pair, marks=[] if OF_THEIR_OWN_KIND.intersection(pair) else pytest.mark.slow) for pair in pairs()
    ]


def pairs() -> list[tuple[str, str]]:
    """Every optimizer and every schedule at least once."""
    schedules = itertools.cycle(sorted(SCHEDULES))
    found = [(name, "constant" if name in WITH_OWN_COURSE else next(schedules)) for name in sorted(OPTIMIZERS)]
    missing = sorted(set(SCHEDULES) - {schedule for _, schedule in found})
    return found + [("adamw", schedule) for schedule in missing]


def trained(job: Job) -> dict[str, object]:
    """What is learned and drawn, without the record of the job's settings."""
    found = {name: value for name, value in job.result().items() if not name.endswith((".json", "state.json"))}
    for path in job.folder.glob("state/*/state.json"):
        document = json.loads(path.read_text())
        found[f"{path.parent.name} state"] = (document["state"], document["roles"])
    return found


def assert_going_back_changes_nothing(job: Job, **changes: object) -> None:
    """Trains to the end, goes back to step 2 with these (harmless) changes, and compares."""
    job.run()
    expected = trained(job)
    shutil.rmtree(job.cwd / "output" / "_cache")
    job.change(resume=2, **changes)
    assert "resuming from" in job.run()
    got = trained(job)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []


@pytest.mark.parametrize(("optimizer", "schedule"), cases())
def test_every_optimizer_and_schedule(job: Job, optimizer: str, schedule: str) -> None:
    job.change(
        network__linear=64,  # 64 x 64 weights: enough for 8-bit states to be 8-bit
        train__steps=4,
        train__optimizer=optimizer,
        train__lr_scheduler=schedule,
        train__lr_warmup_steps=0 if optimizer in WITH_OWN_COURSE else 1,
        train__lr_scheduler_params=SCHEDULE_NEEDS.get(schedule, {}),
        sample=None,
    )
    job.change(**OPTIMIZER_NEEDS.get(optimizer, {}))
    assert_going_back_changes_nothing(job)


@pytest.mark.parametrize(("workers", "to_disk"), [(0, False), (2, True)])
def test_workers_and_caches_change_nothing(job: Job, workers: int, to_disk: bool) -> None:
    job.change(train__steps=4)
    changed = [{**job.section["datasets"][0], "num_workers": workers, "cache_latents_to_disk": to_disk}]
    assert_going_back_changes_nothing(job, datasets=changed)


def test_captions_that_are_shuffled_anew_at_each_use_are_the_same(job: Job) -> None:
    job.section["datasets"][0]["shuffle_tokens"] = True
    job.change(train__steps=4, train__batch_size=2)
    assert_going_back_changes_nothing(job)


def test_sampling_in_between_changes_nothing(job: Job) -> None:
    """The same run with samples after every step, and with none."""
    weights = []
    for every in (1, 0):
        job.name = f"every_{every}"
        job.change(train__steps=4, sample__sample_every=every)
        job.run()
        weights.append(
            [
                (job.folder / "state/step_000000004" / f"{name}.safetensors").read_bytes()
                for name in ("weights", "ema", "optimizer")
            ]
        )
    assert weights[0] == weights[1]

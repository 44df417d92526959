"""A run that resumes from a state ends in the same bits as one that was never
interrupted, whatever it trains with. All optimizers are in sd_trainer/test_matrix.py.

Each case trains 4 steps, then goes back to the state of step 2 (in the middle of an
epoch) in a new process. Stops within an accumulation, while sampling and by a kill are
in test_stops.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import Job, draw_pictures

pytestmark = pytest.mark.slow


def trained(job: Job) -> dict[str, object]:
    """What is learned and drawn, without the record of the job's settings."""
    found = {
        name: value
        for name, value in job.result().items()
        if not name.endswith((".json", "state.json"))
    }
    for path in job.folder.glob("state/*/state.json"):
        document = json.loads(path.read_text())
        found[f"{path.parent.name} state"] = (document["state"], document["roles"])
    return found


def assert_going_back_changes_nothing(job: Job, **changes: object) -> None:
    """Trains to the end, goes back to step 2 with these (harmless) changes, and
    compares."""
    job.run()
    expected = trained(job)
    shutil.rmtree(job.cwd / "output" / "_cache")
    job.change(resume=2, **changes)
    assert "resuming from" in job.run()
    got = trained(job)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []


def test_workers_and_caches_change_nothing(job: Job) -> None:
    job.change(train__steps=4, sample=None)
    changed = [{**job.section["datasets"][0], "num_workers": 2, "cache": True}]
    assert_going_back_changes_nothing(job, datasets=changed)


def test_captions_that_are_drawn_and_shuffled_at_each_use_are_the_same(
    job: Job, tmp_path: Path
) -> None:
    folder = draw_pictures(tmp_path / "several", "a", "b", "c")
    for file in folder.glob("*.txt"):
        file.write_text(
            f"{file.stem}, one, two\na drawing of {file.stem}, red\nsomething, else",
            encoding="utf-8",
        )
    job.section["datasets"][0] |= {
        "folder_path": str(folder),
        "captions": "lines",
        "shuffle_tokens": True,
    }
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
                (
                    job.folder / "state/step_000000004" / f"{name}.safetensors"
                ).read_bytes()
                for name in ("weights", "ema", "optimizer")
            ]
        )
    assert weights[0] == weights[1]

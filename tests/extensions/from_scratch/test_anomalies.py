"""Jobs of both trainers are watched while they train, and nothing is said of sound ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.train.anomalies import RunawayLoss, SlowSteps


@pytest.mark.parametrize("trainer", ["vae", "flow"])
def test_a_sound_run_says_nothing(
    start, vae_job, flow_job, pictures: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    seen = {SlowSteps: 0, RunawayLoss: 0}

    def counting(kind: type) -> Callable:
        add = kind.add

        def counted(self, samples, *rest):
            samples = samples if rest else list(samples)
            seen[kind] += len(samples)
            return add(self, samples, *rest)

        return counted

    for kind in seen:
        monkeypatch.setattr(kind, "add", counting(kind))
    train = {"steps": 40}
    if trainer == "vae":
        discriminator = {"channels": 4, "layers": 1, "start_step": 20}
        job = vae_job(pictures, train=train, discriminator=discriminator, sample={"sample_every": 20, "count": 1})
    else:
        sample = {"sample_every": 20, "width": 64, "height": 64, "sample_steps": 2}
        job = flow_job(pictures, train=train, sample=sample | {"prompts": ["a red square", "a blue circle"]})
    folder = start(job)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event for event in events if event["event"] == "warning"] == []
    assert all(seen.values())

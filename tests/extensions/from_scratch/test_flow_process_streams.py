"""A flow model with a frozen text encoder on a stream of shards, resumed to the same
bytes. test_joint.py has one that trains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.extensions.from_scratch.conftest import write_shards


@pytest.fixture
def entry(tmp_path: Path) -> dict:
    return {
        "url": f"{write_shards(tmp_path / 'shards')}/*.tar",
        "resolution": 32,
        "webdataset": {"window": 4},
    }


@pytest.mark.slow
def test_a_run_on_a_stream_goes_on_to_the_same_bytes(
    start: Callable[..., Path],
    flow_job: Callable[..., dict],
    entry: dict,
    tmp_path: Path,
) -> None:
    def job(steps: int, **more: object) -> dict:
        section = flow_job(
            Path(),
            datasets=[{**entry, **more}],
            save={"save_every": 2},
            train={"steps": steps},
        )
        section["model"]["text_encoder"] |= {"train": False, "allow_random": True}
        return section

    whole = start(job(4)).rename(tmp_path / "whole")
    start(job(2))
    again = start(job(4, num_workers=2, cache_latents_to_disk=True))
    name = "state/step_000000004/weights.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()
    metrics = [
        json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["samples"] for line in metrics] == [2, 4, 6, 8]

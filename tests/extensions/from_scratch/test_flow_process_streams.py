"""A flow model on a stream of shards: the text encoder frozen and trained, and resumed
to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toolkit.data.shard_server import write_shard


@pytest.fixture
def entry(tmp_path: Path) -> dict:
    for number in range(3):
        write_shard(
            tmp_path / "shards" / f"{number}.tar",
            4,
            size=((40, 32), (32, 40))[number % 2],
        )
    return {
        "url": f"{tmp_path}/shards/*.tar",
        "resolution": 32,
        "webdataset": {"window": 4},
    }


@pytest.mark.slow
@pytest.mark.parametrize("trains_text", [True, False])
def test_a_run_on_a_stream_goes_on_to_the_same_bytes(
    start: Callable[..., Path],
    flow_job: Callable[..., dict],
    entry: dict,
    tmp_path: Path,
    trains_text: bool,
) -> None:
    def job(steps: int, **more: object) -> dict:
        section = flow_job(
            Path(),
            datasets=[{**entry, **more}],
            save={"save_every": 2},
            train={"steps": steps},
        )
        if not trains_text:
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

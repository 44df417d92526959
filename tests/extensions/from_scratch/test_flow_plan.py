"""The plan of a training of a flow model: what a start of it would do; torch is not imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.flow_plan import FlowPlanner
from tests.extensions.from_scratch.conftest import TRANSFORMERS
from toolkit.config.process import JobContext
from toolkit.errors import UserError


def test_a_dry_run_says_what_a_start_would_do(start, flow_job, pictures: Path) -> None:
    def planned(**changes: object) -> dict:
        return (
            FlowPlanner(FlowTrainerConfig.model_validate(flow_job(pictures, **changes)), JobContext("job"))
            .dry_run()
            .to_json()
        )

    start(flow_job(pictures))
    found = planned()
    assert (found["start"]["what"], found["will_not_start"]) == ("complete", [])
    assert found["disk"]["there_bytes"] > 0
    more = planned(train={"steps": 9})
    assert (more["start"]["what"], more["start"]["step"], more["time"]["steps"]) == ("resumes", 4, 5)

    small = TRANSFORMERS["SD3Transformer2DModel"]
    for changes, said in (
        ({"model": {"transformer": {"config": small | {"num_layers": 3}}}}, "different settings"),
        ({"name": "large", "model": {"transformer": {"config": small | {"num_attention_heads": 4096}}}}, "memory: the"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            start(flow_job(pictures, **changes))
        assert planned(**changes)["will_not_start"][0].partition(" and ")[0] in str(caught.value)

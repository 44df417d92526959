"""What the plan says where several processes run a job."""

from __future__ import annotations

import pytest

from extensions.sd_trainer.plan import data_parallel_notes
from tests.processes import environment
from toolkit.config.train import TrainConfig


@pytest.mark.parametrize(
    ("processes", "accumulation", "size", "said"),
    [
        (1, 4, 1, []),
        (2, 4, 1, ["2 processes share the 4 x 1 images of each step: 2 x 1 each"]),
        (2, 1, 4, ["2 processes share the 1 x 4 images of each step: 1 x 2 each"]),
        (2, 1, 3, ["2 processes share the 1 x 3 images of each step: 1 x 1 or 2 each"]),
        (4, 2, 2, ["4 processes share the 2 x 2 images of each step: 1 x 1 each"]),
        (2, 3, 1, ["2 processes share the 3 x 1 images of each step: some compute 2 batches, the others 1, and wait."]),
        (
            2,
            1,
            1,
            [
                "2 processes share the 1 x 1 images of each step: 1 are idle. "
                "A gradient_accumulation of 2 gives each one batch."
            ],
        ),
    ],
)
def test_the_plan_says_how_a_step_is_shared(
    monkeypatch: pytest.MonkeyPatch, processes: int, accumulation: int, size: int, said: list[str]
) -> None:
    for name, value in environment(0, processes, 29500).items():
        monkeypatch.setenv(name, value)
    assert list(data_parallel_notes(TrainConfig(gradient_accumulation=accumulation, batch_size=size))) == said

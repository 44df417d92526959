from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from toolkit.train.survival import SurvivalScores, survival

BASE = np.array([[0.0, 0.0], [1.0, 1.0]])
CHANGE = np.array([[1.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("left", "score"),
    [
        (CHANGE, 1.0),
        (0 * CHANGE, 0.0),
        (CHANGE / 2, 0.5),
        (-CHANGE, -1.0),
        (CHANGE[:, ::-1], 0.0),
    ],
)
def test_the_score_is_the_share_of_the_change_that_is_left(left, score: float) -> None:
    # what the few-step LoRA changes itself does not count
    of_few_steps = np.array([[5.0, 5.0], [-5.0, 3.0]])
    assert survival(
        BASE + CHANGE, of_few_steps + left, BASE, of_few_steps
    ) == pytest.approx(score)
    assert math.isnan(survival(BASE, of_few_steps + left, BASE, of_few_steps))


def test_images_without_the_network_are_generated_once() -> None:
    drawn: list[int] = []

    def base(index: int) -> Image.Image:
        drawn.append(index)
        return Image.new("RGB", (64, 64), "black")

    scores = SurvivalScores({"fast": [(0, 1)], "slow": [(0, 2)]}, base)
    images = dict(
        enumerate(
            Image.new("RGB", (64, 64), colour)
            for colour in ("#ff0000", "#800000", "#0000ff")
        )
    )
    for _ in range(2):
        assert scores.measure(images) == pytest.approx({"fast": 128 / 255, "slow": 0})
    assert drawn == [0, 1, 2]

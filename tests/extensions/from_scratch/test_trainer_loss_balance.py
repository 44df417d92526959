"""The warning that one term of an autoencoder's loss outweighs all others."""

from __future__ import annotations

from typing import cast

import pytest

from extensions.from_scratch.losses_config import LossesConfig
from extensions.from_scratch.trainer import LossBalance
from tests.conftest import heard
from toolkit.train.interface import StepResult
from toolkit.train.run import Run


@pytest.mark.parametrize(
    ("losses", "numbers", "says"),
    [
        (
            {"contrast": 0.1},
            {"loss_l1": 0.5, "contrast_loss": 870.0},
            "losses.contrast (0.1) counts 174 times as much as",
        ),
        ({"kl": 1.0}, {"loss_l1": 0.5, "loss_kl_weighted": 20.0}, "losses.kl (1) counts 40 times as much as"),
        (
            {},
            {"loss_l1": 0.5, "loss_gen": -0.1, "adversarial_weight": 200.0},
            "losses.adversarial (0.5) counts 40 times",
        ),
        ({"contrast": 0.1}, {"loss_l1": 0.5, "contrast_loss": 90.0}, ""),
        ({}, {"loss_l1": 0.5, "loss_kl_weighted": 1e-7}, ""),  # what an autoencoder is for
        ({"l1": 0, "kl": 0}, {"loss_gen": 1.0}, ""),  # there is nothing else
    ],
)
def test_a_term_that_outweighs_all_others_is_told_once(losses: dict, numbers: dict, says: str) -> None:
    callback, run = LossBalance(LossesConfig(**losses)), cast("Run", None)  # it looks at the result only
    with heard() as said:
        for step in (1, 2):
            callback.on_metrics(run, StepResult(step, 0, 0.5, 0.1, 2.0, 3, 0.25, 0.0625, extra_metrics=numbers))
    assert [line.startswith(f"step 1: {says}") for line in said] == [True] * bool(says)

"""The warning that one term of an autoencoder's loss outweighs all others."""

from __future__ import annotations

import pytest

from tests.conftest import heard
from toolkit.config.autoencoder_losses import LossesConfig
from toolkit.train.callbacks.loss_balance import LossBalance


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
def test_a_term_that_outweighs_all_others_is_told_once(losses: dict, numbers: dict, says: str, toy, result) -> None:
    callback, run = LossBalance(LossesConfig(**losses)), toy.run(4)
    with heard() as said:
        for step in (1, 2):
            callback.on_metrics(run, result(step, extra_metrics=numbers))
    assert [line.startswith(f"step 1: {says}") for line in said] == [True] * bool(says)

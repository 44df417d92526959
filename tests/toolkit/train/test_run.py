"""What the loop and its hooks share."""

from __future__ import annotations

import torch


def test_the_learning_rate_is_the_base_rate_times_the_schedule(toy) -> None:
    role = toy.run(1, lr=0.5, schedule=lambda step: 1 / (1 + step)).roles["network"]
    assert [role.lr_at(step) for step in (0, 1, 3)] == [0.5, 0.25, 0.125]


def test_what_is_kept_is_the_average_where_there_is_one(toy) -> None:
    plain, averaged = toy.run(1).roles["network"], toy.run(1, ema_decay=0.5).roles["network"]
    for role in (plain, averaged):
        with torch.no_grad():
            role.parameters["w"].fill_(2.0)
    assert plain.weights_to_keep()["w"].tolist() == [2.0, 2.0, 2.0]
    assert averaged.weights_to_keep()["w"].tolist() == [0.0, 0.0, 0.0]
    assert not plain.weights_to_keep()["w"].requires_grad


def test_a_stop_may_be_asked_for_by_a_signal_or_by_a_hook(toy) -> None:
    run = toy.run(1)
    assert not run.stopping
    run.stop_asked = lambda: True
    assert run.stopping
    run.stop_asked = lambda: False
    run.stop_reason = "control/stop"
    assert run.stopping

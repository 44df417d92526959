"""What the loop and its hooks share."""

from __future__ import annotations

import torch
from torch import nn

from toolkit.optim.optimizers import build_optimizer
from toolkit.system.sharded_param import RowShard
from toolkit.train.optimizer_step import Role


def test_an_optimizer_remembers_nothing_before_its_first_step() -> None:
    weight = nn.Parameter(torch.zeros(3))
    role = Role(
        {"w": weight},
        build_optimizer("adamw", [weight], 0.1, {}),
        0.1,
        lambda step: 1.0,
        0.0,
    )
    assert role.state_bytes == 0
    weight.grad = torch.ones(3)
    role.optimizer.step()
    # two moments and the number of the step
    assert role.state_bytes == 2 * weight.nbytes + 4


def test_what_is_kept_is_the_average_where_there_is_one(toy) -> None:
    plain, averaged = (
        toy.run(1).roles["network"],
        toy.run(1, ema_decay=0.5).roles["network"],
    )
    for role in (plain, averaged):
        with torch.no_grad():
            role.parameters["w"].fill_(2.0)
    assert plain.eval_weights()["w"].tolist() == [2.0, 2.0, 2.0]
    assert averaged.eval_weights()["w"].tolist() == [0.0, 0.0, 0.0]
    assert not plain.eval_weights()["w"].requires_grad


def test_a_stop_may_be_asked_for_by_a_signal_or_by_a_hook(toy) -> None:
    run = toy.run(1)
    assert not run.stopping
    run.should_stop = lambda: True
    assert run.stopping
    run.should_stop = lambda: False
    run.stop_reason = "control/stop"
    assert run.stopping


def test_a_schedule_free_optimizer_keeps_its_average_and_trains_on_where_it_was() -> (
    None
):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("schedulefree_adamw", [weight], 0.1, {})
    role = Role({"w": weight}, optimizer, 0.1, lambda step: 1.0)
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
    own, kept = weight.detach().clone(), role.eval_weights()
    assert torch.equal(weight, own) and not torch.equal(kept["w"], own)
    with role.using_eval_weights():
        assert torch.equal(weight, kept["w"])
    assert torch.equal(weight, own)


def test_the_size_of_a_role_is_that_of_whole_weights_whoever_has_their_rows() -> None:
    rows = {
        "shared": nn.Parameter(torch.zeros(2, 3)),
        "whole": nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)),
    }
    role = Role(rows, torch.optim.SGD(rows.values()), 0.1, lambda step: 1.0)
    assert role.size == 4 * 6 + 2 * 4
    role.sharded = {"shared": RowShard((5, 3), 0, 2), "frozen": RowShard((7,), 0, 3)}
    assert role.size == 4 * 15 + 2 * 4
    assert (role.shape_of("shared"), role.shape_of("whole")) == ((5, 3), (4,))

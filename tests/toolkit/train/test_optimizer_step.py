"""A step of a role's weights: clipping and skipping on the device, and the moments a
strategy is called at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.processes import in_processes
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train.optimizer_step import Role, ShardedStep, clip_

YES, NO = torch.tensor(True), torch.tensor(False)


def role_with(optimizer: str = "adamw", device: str = "cpu", **settings) -> Role:
    """Two matrices with gradients."""
    values = torch.linspace(-1, 2, 12, device=device).reshape(3, 4)
    parameters = {
        name: nn.Parameter(values * factor)
        for name, factor in (("up", 1.0), ("down", -0.5))
    }
    for name, parameter in parameters.items():
        parameter.grad = torch.cos(values + len(name))
    ema = Ema(parameters, 0.5)
    return Role(
        parameters,
        build_optimizer(optimizer, parameters.values(), 0.1, {}),
        0.1,
        lambda step: 1.0,
        ema=ema,
    )


# ------------------------------------------------------------ clipping


def test_the_norm_of_what_is_shared_out_is_that_of_all_rows() -> None:
    """`up` has a row in each of three processes, `down` is whole in all."""

    def work(process_group: ProcessGroup) -> list:
        role = role_with()
        up = role.parameters["up"]
        shard = RowShard.of(up.shape, process_group.rank, process_group.world_size)
        rows = nn.Parameter(up.detach()[shard.start : shard.stop])
        rows.grad = up.grad[shard.start : shard.stop]
        role.parameters["up"], role.sharded = rows, {"up": shard}
        return ShardedStep(process_group.all_reduce_sum).norm(role).tolist()

    whole = role_with()
    ends = in_processes(3, work)
    assert ends == [ends[0]] * 3, "the same bits in each"
    assert ends[0] == pytest.approx(whole.optimizer_step.norm(whole).item(), rel=1e-6)


@pytest.mark.parametrize("most", [0.01, 1.0, 3.0, 100.0])
def test_clipping_is_that_of_torch(most: float) -> None:
    ours, theirs = role_with(), role_with()
    norm = ours.optimizer_step.norm(ours)
    clip_([p.grad for p in ours.parameters.values()], norm, most)
    theirs_norm = nn.utils.clip_grad_norm_(theirs.parameters.values(), most)
    torch.testing.assert_close(norm, theirs_norm)
    for name, parameter in ours.parameters.items():
        torch.testing.assert_close(parameter.grad, theirs.parameters[name].grad)


def test_a_limit_of_zero_is_none() -> None:
    """SGD's step is the gradient times the rate: a gradient that is scaled down is seen
    in it."""
    role = role_with("sgd")
    role.max_grad_norm = 0.0
    before = {
        name: (p.detach().clone(), p.grad.clone())
        for name, p in role.parameters.items()
    }
    role.optimizer_step.step(role, 0, role.optimizer_step.norm(role), YES)
    for name, parameter in role.parameters.items():
        start, gradient = before[name]
        torch.testing.assert_close(parameter.detach(), start - 0.1 * gradient)


def test_the_norm_of_half_precision_gradients_is_not_one() -> None:
    """The root of 3 is 1.734375 in bfloat16."""
    role = role_with()
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    role.parameters = {"w": parameter}
    norm = role.optimizer_step.norm(role)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(
        3**0.5, rel=1e-6
    )
    clip_([parameter.grad], norm, 0.5 * 3**0.5)
    assert (
        parameter.grad.tolist() == [0.5, 0.5, 0.5]
        and parameter.grad.dtype == torch.bfloat16
    )


def test_without_any_gradient_the_norm_is_zero() -> None:
    role = role_with()
    role.optimizer_step.zero_grad(role)
    assert role.optimizer_step.norm(role).item() == 0.0
    role.optimizer_step.step(role, 0, torch.tensor(0.0), YES)


# ------------------------------------------------------------ a step that is not taken


def test_a_step_that_is_not_taken_leaves_everything_and_the_gradients_go() -> None:
    role = role_with()
    before = {name: p.detach().clone() for name, p in role.parameters.items()}
    role.optimizer_step.step(role, 0, torch.tensor(float("nan")), NO)
    assert all(torch.equal(p, before[name]) for name, p in role.parameters.items())
    assert all(
        torch.equal(average, before[name])
        for name, average in role.ema.averages.items()
    )
    assert role.ema.updates == 0
    assert all(p.grad is None for p in role.parameters.values())


def test_the_network_acts_after_the_optimizer_and_before_the_average() -> None:
    role = role_with()

    @torch.no_grad()
    def halve(taken: Tensor) -> dict[str, Tensor]:
        assert taken is YES
        halve.seen = role.parameters["up"].clone()
        role.parameters["up"].mul_(0.5)
        return {"halved": torch.tensor(1.0)}

    role.after_step = halve
    start = role.parameters["up"].detach().clone()
    weight = 9 / 11  # of the first update with warm-up
    numbers = role.optimizer_step.step(role, 0, torch.tensor(1.0), YES)
    assert numbers == {"halved": torch.tensor(1.0)}
    assert not torch.equal(halve.seen, start)
    torch.testing.assert_close(
        role.ema.averages["up"], (1 - weight) * start + weight * halve.seen / 2
    )


# ------------------------------------------------------------ the moments

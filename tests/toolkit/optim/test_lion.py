import pytest
import torch
from bitsandbytes.optim import Lion32bit

from toolkit.optim.lion import Lion


def weight_after(build, settings: dict, rates: list[float]) -> torch.Tensor:
    """What steps at these rates with the same random gradients make of one weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 80, generator=generator))
    optimizer = build([weight], lr=rates[0], **settings)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.randn(64, 80, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("settings", [{}, {"betas": (0.5, 0.95), "weight_decay": 0.5}])
def test_steps_are_those_of_bitsandbytes(settings: dict) -> None:
    ours, theirs = (
        weight_after(build, settings, [0.02, 0.01, 0.03]) for build in (Lion, Lion32bit)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_decoupled_decay_does_not_depend_on_the_rate_but_on_what_the_schedule_leaves_of_it() -> (
    None
):
    """What lion-pytorch does: the decay is divided by the first rate."""
    decoupled = weight_after(
        Lion, {"weight_decay": 0.5, "decoupled_weight_decay": True}, [0.02, 0.01]
    )
    plain = weight_after(Lion, {"weight_decay": 0.5 / 0.02}, [0.02, 0.01])
    torch.testing.assert_close(decoupled, plain)


def test_a_weight_without_gradient_stays_and_a_gradient_of_0_moves_nothing() -> None:
    still, flat = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([still, flat], lr=0.1)
    flat.grad = torch.zeros(2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(still, torch.ones(2)) and torch.equal(flat, torch.ones(2))
    assert still not in optimizer.state


@pytest.mark.parametrize(
    "settings", [{"lr": 0}, {"betas": (1.5, 0.9)}, {"weight_decay": -1}]
)
def test_numbers_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Lion([torch.zeros(1)], **settings)

"""Lion moves as that of bitsandbytes; Muon moves matrices as torch's own, vectors as
AdamW, kernels as the matrices of their rows."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.optim import Lion32bit

from toolkit.optim.lion import Lion
from toolkit.optim.muon import Muon, orthogonal


def after(
    build: type,
    shape: tuple[int, ...],
    rates: tuple[float, ...] = (0.02, 0.01, 0.03),
    **settings: object,
) -> torch.Tensor:
    """What steps at these rates with the same random gradients make of one weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = build([weight], lr=rates[0], **settings)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("ours", "theirs", "shape", "settings"),
    [
        (Lion, Lion32bit, (64, 80), {}),
        (Lion, Lion32bit, (64, 80), {"betas": (0.5, 0.95), "weight_decay": 0.5}),
        (
            Muon,
            torch.optim.AdamW,
            (30,),
            {"betas": (0.8, 0.95), "weight_decay": 0.1},
        ),
    ],
)
def test_a_weight_moves_as_with_the_other_program(
    ours: type, theirs: type, shape: tuple[int, ...], settings: dict
) -> None:
    both = (after(build, shape, **settings) for build in (ours, theirs))
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)


def test_a_decoupled_decay_does_not_depend_on_the_rate_but_on_what_the_schedule_leaves_of_it() -> (
    None
):
    """What lion-pytorch does: the decay is divided by the first rate."""
    shape, rates = (64, 80), (0.02, 0.01)
    decoupled = after(Lion, shape, rates, weight_decay=0.5, decoupled_weight_decay=True)
    plain = after(Lion, shape, rates, weight_decay=0.5 / 0.02)
    torch.testing.assert_close(decoupled, plain)


@pytest.mark.parametrize("build", [Lion, Muon])
def test_a_weight_without_gradient_stays_and_a_gradient_of_0_moves_nothing(
    build: type,
) -> None:
    still, flat = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = build([still, flat], lr=0.1, weight_decay=0)
    flat.grad = torch.zeros(2, 2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert still.eq(1).all() and flat.eq(1).all() and still not in optimizer.state


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        *((build, {"lr": 0}) for build in (Lion, Muon)),
        *((build, {"weight_decay": -1}) for build in (Lion, Muon)),
        (Lion, {"betas": (1.5, 0.9)}),
        (Muon, {"betas": (1.0, 0.9)}),
        (Muon, {"momentum": 1.0}),
    ],
)
def test_numbers_out_of_range_are_refused(build: type, settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        build([torch.zeros(1)], **settings)


# ------------------------------------------------------------ Muon alone


@pytest.mark.parametrize("shape", [(24, 80), (80, 24)])
def test_a_matrix_moves_as_with_the_muon_of_torch(shape: tuple[int, int]) -> None:
    """Which iterates in bfloat16."""
    theirs = after(
        torch.optim.Muon, shape, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    ours = after(Muon, shape, weight_decay=0.1)
    still = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert float((ours - theirs).norm() / (theirs - still).norm()) < 0.02


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    kernel, matrix = after(Muon, (8, 5, 3, 3)), after(Muon, (8, 45))
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_singular_values_come_near_1_and_vectors_stay() -> None:
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ vh.T
    values = found.diagonal()
    assert float(values.min()) > 0.65 and float(values.max()) < 1.25
    assert float((found - values.diag()).abs().max()) < 1e-4


def test_steps_are_as_large_as_those_of_adamw() -> None:
    """So that its rate fits: root mean square 0.2 of the rate, whatever the shape."""
    for shape in ((16, 16), (64, 9), (8, 32, 3, 3)):
        start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        moved = after(Muon, shape, rates=(0.01,), weight_decay=0) - start
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.002, rel=0.35)

"""Muon: matrices as torch's own, vectors as AdamW, kernels as the matrices of their
rows."""

from __future__ import annotations

import pytest
import torch

from toolkit.optim.muon import Muon, orthogonal


def after(
    optimizer_class: type,
    shape: tuple[int, ...],
    rates: tuple[float, ...] = (0.02, 0.01, 0.03),
    **settings,
):
    """What steps at these rates with the same random gradients make of one weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = optimizer_class([weight], lr=rates[0], **settings)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 80), (80, 24)])
def test_a_matrix_moves_as_with_the_muon_of_torch(shape: tuple[int, int]) -> None:
    """Which iterates in bfloat16."""
    theirs = after(
        torch.optim.Muon, shape, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    ours = after(Muon, shape, weight_decay=0.1)
    still = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert float((ours - theirs).norm() / (theirs - still).norm()) < 0.02


def test_a_vector_moves_as_with_adamw() -> None:
    ours, theirs = (
        after(kind, (30,), weight_decay=0.1, betas=(0.8, 0.95))
        for kind in (Muon, torch.optim.AdamW)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    torch.testing.assert_close(
        after(Muon, (8, 5, 3, 3)).flatten(1), after(Muon, (8, 45))
    )


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


def test_a_weight_without_gradient_stays_and_a_gradient_of_0_moves_nothing() -> None:
    still, flat = (
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.nn.Parameter(torch.ones(2, 2)),
    )
    optimizer = Muon([still, flat], lr=0.1, weight_decay=0)
    flat.grad = torch.zeros(2, 2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(still, torch.ones(2, 2)) and torch.equal(flat, torch.ones(2, 2))
    assert still not in optimizer.state


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0}, {"betas": (1.0, 0.9)}, {"weight_decay": -1}, {"momentum": 1.0}],
)
def test_numbers_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Muon([torch.zeros(1)], **settings)

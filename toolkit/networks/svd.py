"""Extracts the nearest LoRA of a given rank from a weight delta, by SVD.

The result is exact for LoRA, LoHa and LoKr, whose factors are decomposed instead of the
whole change. A LoHa of ranks r and s is a product of rank r s (rows of the up matrices,
columns of the down matrices multiplied with each other). The singular values of a
Kronecker product are the products of the singular values of its factors. A change
without such factors is decomposed whole: exactly up to `FULL_SVD_SIDE`, above it by a
randomised method with its own random numbers, always the same.

It works on one layer, and knows neither names nor files. Called by the networks that
start from a file, by `toolkit.train.recovery`, and by tools.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer, Q columns of a basis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.networks.lora_formats import LayerDelta, factor

FULL_SVD_SIDE = 2048
"""Matrices with a shorter side up to this get an exact decomposition; larger ones a
randomised one."""

OVERSAMPLING = 16
POWER_ITERATIONS = 4


class Svd(NamedTuple):
    """The largest singular values of a matrix, in order, with their vectors.

    >>> found = Svd(torch.eye(2), torch.tensor([3.0, 1.0]), torch.eye(2))
    >>> found.rest
    0.0
    """

    u_OQ: Tensor
    s_Q: Tensor
    v_IQ: Tensor
    rest: float = 0.0
    """Sum of squares of the omitted singular values."""


def extract_lora(change: LayerDelta, rank: int) -> tuple[Tensor, Tensor, float]:
    """(up_OR, down_RI, error): the LoRA of at most `rank` nearest to `change`, and its
    relative Frobenius error.

    A LoRA that fits is returned as it is, with its own smaller rank and error 0. For
    other changes both matrices share the singular values evenly. The magnitude of a
    DoRA is ignored. A kind that multiplies the weight has no such LoRA
    (`LayerDelta.needs_base`).

    >>> change = LayerDelta({"up": torch.ones(4, 1), "down": torch.ones(1, 2)}, 0.5)
    >>> up_OR, down_RI, error = extract_lora(change, rank=8)
    >>> up_OR.shape, down_RI.shape, error
    (torch.Size([4, 1]), torch.Size([1, 2]), 0.0)
    """
    assert change.multiplied is None
    pair = change.low_rank
    if pair is not None and len(pair[1]) <= rank:
        return (*pair, 0.0)
    if "lokr_w1" in change.parts or "lokr_w1_a" in change.parts:
        return _truncate(_svd_of_kronecker(change, rank), rank)
    if pair:
        inner = len(pair[1])
    else:
        inner = len(change.parts["hada_w1_b"]) * len(change.parts["hada_w2_b"])
    if inner >= min(change.shape):
        return extract_lora_from_delta(change.delta(), rank)
    # a LoHa has rank r s: (A1 B1) * (A2 B2) = sum over i, j of (A1_i * A2_j) (B1_i *
    # B2_j)
    if pair is None:
        p = change.parts
        up_OR = (p["hada_w1_a"][:, :, None] * p["hada_w2_a"][:, None, :]).flatten(1)
        pair = (
            change.scale * up_OR,
            (p["hada_w1_b"][:, None] * p["hada_w2_b"][None]).flatten(0, 1),
        )
    return _truncate(_svd_of_product(*pair), rank)


def extract_lora_from_delta(
    delta_OI: Tensor, rank: int
) -> tuple[Tensor, Tensor, float]:
    """`extract_lora` for a change that is given as a matrix (float32).

    >>> up_OR, down_RI, error = extract_lora_from_delta(torch.eye(2), rank=1)
    >>> round(error, 3)
    0.707
    """
    return _truncate(_svd(delta_OI, rank), rank)


def within_share(
    up_OR: Tensor, down_RI: Tensor, error: float, share: float
) -> tuple[Tensor, Tensor, float]:
    """The lowest rank of a result of `extract_lora` that keeps `share` (in [0, 1]) of
    the change's squared norm.

    The whole result where it keeps less than that itself.
    """
    svd = _svd_of_product(up_OR, down_RI)
    squares = svd.s_Q.double().square()
    total = float(squares.sum()) / max(1e-30, 1 - error**2)
    enough = squares.cumsum(0) >= share * total * (1 - 1e-9)
    rank = int(enough.float().argmax()) + 1 if bool(enough.any()) else len(squares)
    return _truncate(svd._replace(rest=total - float(squares.sum())), rank)


def _truncate(svd: Svd, rank: int) -> tuple[Tensor, Tensor, float]:
    u_OQ, s_Q, v_IQ, rest = svd
    root_R = s_Q[:rank].sqrt()
    dropped_square = float(s_Q[rank:].double().square().sum()) + rest
    remaining_square = float(s_Q[:rank].double().square().sum())
    if dropped_square:
        error = math.sqrt(dropped_square / (dropped_square + remaining_square))
    else:
        error = 0.0
    return u_OQ[:, :rank] * root_R, root_R[:, None] * v_IQ[:, :rank].T, error


def _svd_of_product(up_OR: Tensor, down_RI: Tensor) -> Svd:
    """SVD of up @ down without forming it: both are thin."""
    q_up, r_up = torch.linalg.qr(up_OR)
    q_down, r_down = torch.linalg.qr(down_RI.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    return Svd(q_up @ u, s, q_down @ vh.T)


def _svd_of_kronecker(lokr: LayerDelta, rank: int) -> Svd:
    """The `rank` largest products of the factors' singular values, with the Kronecker
    products of their vectors."""
    first, second = (
        torch.linalg.svd(factor(lokr.parts, name), full_matrices=False)
        for name in ("lokr_w1", "lokr_w2")
    )
    products = abs(lokr.scale) * first.S[:, None] * second.S[None]
    s, order = products.flatten().sort(descending=True, stable=True)
    i = order[:rank] // len(second.S)
    j = order[:rank] % len(second.S)
    u = (first.U[:, None, i] * second.U[None, :, j]).flatten(0, 1)
    v = (first.Vh.T[:, None, i] * second.Vh.T[None, :, j]).flatten(0, 1)
    return Svd(
        math.copysign(1.0, lokr.scale) * u,
        s[:rank],
        v,
        rest=float(s[rank:].double().square().sum()),
    )


def _svd(delta_OI: Tensor, rank: int) -> Svd:
    columns = rank + OVERSAMPLING
    if min(delta_OI.shape) <= max(FULL_SVD_SIDE, columns):
        u, s, vh = torch.linalg.svd(delta_OI, full_matrices=False)
        return Svd(u, s, vh.T)
    # Source: Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061, algorithms
    # 4.4 and 5.1. torch.svd_lowrank would draw from the global generator, which the
    # training uses.
    random = torch.Generator().manual_seed(0)
    start_IQ = torch.randn(delta_OI.shape[1], columns, generator=random).to(
        delta_OI.device
    )
    basis_OQ = torch.linalg.qr(delta_OI @ start_IQ).Q
    for _ in range(POWER_ITERATIONS):
        basis_OQ = torch.linalg.qr(
            delta_OI @ torch.linalg.qr(delta_OI.T @ basis_OQ).Q
        ).Q
    u, s, vh = torch.linalg.svd(basis_OQ.T @ delta_OI, full_matrices=False)
    rest = max(0.0, float(delta_OI.double().square().sum() - s.double().square().sum()))
    return Svd(basis_OQ @ u, s, vh.T, rest)

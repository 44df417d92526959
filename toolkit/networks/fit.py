"""Brings a change of a weight into a LoRA of another rank.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toolkit.networks.formats import ModuleChange

FULL_SVD_SIDE = 2048
"""Matrices with a shorter side up to this get an exact decomposition; larger ones a randomised one."""

OVERSAMPLING = 16
POWER_ITERATIONS = 4


def fit(change: ModuleChange, rank: int) -> tuple[Tensor, Tensor, float]:
    """(up_OR, down_RI, error): the LoRA of at most `rank` nearest to `change`, and its relative Frobenius error.

    A LoRA that fits is returned as it is, with its own smaller rank and error 0. Everything else goes through a
    truncated SVD, with the singular values shared evenly by both matrices.
    """
    pair = change.low_rank
    if pair is not None and pair[1].shape[0] <= rank:
        return (*pair, 0.0)
    if pair is not None:
        u, s, v = _svd_of_product(*pair)
        unseen = 0.0
    else:
        delta_OI = change.delta()
        u, s, v = _svd(delta_OI, rank)
        exact = min(delta_OI.shape) <= FULL_SVD_SIDE
        unseen = 0.0 if exact else max(0.0, float(delta_OI.square().sum() - s.square().sum()))
    root_R = s[:rank].sqrt()
    dropped, kept = float(s[rank:].square().sum()) + unseen, float(s[:rank].square().sum())
    error = math.sqrt(dropped / (dropped + kept)) if dropped else 0.0
    return u[:, :rank] * root_R, root_R[:, None] * v[:, :rank].T, error


def _svd_of_product(up_OR: Tensor, down_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of up @ down without forming it: both are thin."""
    q_up, r_up = torch.linalg.qr(up_OR)
    q_down, r_down = torch.linalg.qr(down_RI.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    return q_up @ u, s, q_down @ vh.T


def _svd(delta_OI: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if min(delta_OI.shape) <= FULL_SVD_SIDE:
        u, s, vh = torch.linalg.svd(delta_OI, full_matrices=False)
        return u, s, vh.T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.svd_lowrank(delta_OI, q=min(rank + OVERSAMPLING, min(delta_OI.shape)), niter=POWER_ITERATIONS)

"""The EMA decay; the printed plan uses it too. Imports no torch."""

from __future__ import annotations


def decay_at(update: int, decay: float, warm_up: bool) -> float:
    """The decay of the n-th update (from 1): min(decay, (1 + n) / (10 + n)) with warm-up, else `decay`.

    Source: ai-toolkit, toolkit/ema.py, `use_num_updates`.
    """
    return min(decay, (1 + update) / (10 + update)) if warm_up else decay


def initial_weight_fraction(updates: int, decay: float, warm_up: bool) -> float:
    """Weight in [0, 1] of the initial parameters in the average after `updates` updates."""
    share = 1.0
    for update in range(1, updates + 1):
        share *= decay_at(update, decay, warm_up)
        if share < 1e-6:
            return 0.0
    return share

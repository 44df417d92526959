"""Sketches of gradients and what is computed from them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from extensions.tools.influence.gradients import NORMAL, deviations, influence_on, influence_on_others, medians, sketch


def test_a_sketch_keeps_lengths_and_angles() -> None:
    torch.manual_seed(0)
    first = [torch.randn(300, 100), torch.randn(7)]
    second = [a + torch.randn_like(a) for a in first]
    flat = [torch.cat([part.flatten() for part in parts]) for parts in (first, second)]
    small = [sketch(parts, 4096) for parts in (first, second)]
    assert functional.cosine_similarity(*small, dim=0).item() == pytest.approx(
        functional.cosine_similarity(*flat, dim=0).item(), abs=4 / 64
    )
    assert small[0].norm().item() == pytest.approx(flat[0].norm().item(), rel=0.1)
    assert torch.equal(small[0], sketch(first, 4096))
    one = sketch([torch.tensor([0.0, 3.0])], 4096)  # nothing is lost where it fits
    assert one.abs().sum() == 3 and one.count_nonzero() == 1


def test_influence_is_the_cosine_with_the_mean_of_the_others() -> None:
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert influence_on_others(units).tolist() == pytest.approx([0, 0, 0, -2 / 5**0.5])
    assert influence_on(units, units[2:3]).tolist() == [0, 0, 1, 0]


def test_deviations_are_robust_and_of_each_group() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 2.0, 100.0, 10.0, 20.0, 30.0])
    groups = (0, 0, 0, 0, 0, 1, 1, 1)
    assert medians(values, groups).tolist() == [2] * 5 + [20] * 3
    assert deviations(values, groups).tolist() == pytest.approx(
        [-1 / NORMAL, 0, 1 / NORMAL, 0, 98 / NORMAL, -1 / NORMAL, 0, 1 / NORMAL]
    )

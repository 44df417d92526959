"""Sketches of the gradients of single images, and their influence on each other.

TracIn (Pruthi et al. 2020, arXiv:2002.08484) defines the influence of a training image
on another image as the sum over checkpoints of the product of both gradients, and finds
wrong labels by the product of a gradient with itself (self-influence). Here the cosine,
which is the direction, and the length are kept apart, because in the product a long
gradient hides its direction. The functions take tensors and run no model: `process`
computes the gradients.

Shape suffixes: N images, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.system.seeding import generator

SKETCH = 2**17
"""D. The cosines of sketches differ from the cosines of the gradients by about
1 / sqrt(D) = 0.003."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""


def sketch(gradients: Iterable[Tensor], size: int = SKETCH) -> Tensor:
    """The sketch [D] of gradients, float32, on the CPU. Products of sketches are, in
    the mean, the products of the gradients.

    Each portion of D numbers is multiplied by random signs, turned by a random number
    of places and added up. The same shapes get the same signs and places. Source:
    Charikar et al. 2002, count sketch, with places that are turned instead of hashed.
    """
    random = generator(0, "sketch")
    signs = torch.randint(0, 2, (2 * size,), generator=random) * 2.0 - 1
    total = torch.zeros(size)
    for gradient in gradients:
        signs = signs.to(gradient.device)
        total = total.to(gradient.device)
        for portion in gradient.float().flatten().split(size):
            first_sign, place = torch.randint(0, size, (2,), generator=random).tolist()
            signed = portion * signs[first_sign : first_sign + len(portion)]
            end = size - place
            total[place : place + len(signed)] += signed[:end]
            total[: max(0, len(signed) - end)] += signed[end:]
    return total.cpu()


def influence_on_others(units_ND: Tensor) -> Tensor:
    """The cosine [N] of each gradient with the mean of all others, in [-1, 1].
    units_ND: gradients of length 1.

    >>> influence_on_others(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    tensor([ 0.,  0., -1.])
    """
    others_ND = units_ND.sum(0) - units_ND
    return functional.cosine_similarity(units_ND, others_ND)


def influence_on(units_ND: Tensor, reference_ND: Tensor) -> Tensor:
    """The cosine [N] of each gradient with the mean of the reference's gradients, in
    [-1, 1]. All gradients have the length 1."""
    return functional.cosine_similarity(units_ND, reference_ND.mean(0, keepdim=True))


def medians(values: Tensor, groups: Sequence[int]) -> Tensor:
    """The median of the group of each image; values: [..., N]."""
    median_of_each = torch.zeros_like(values)
    group_N = torch.tensor(groups)
    for group in set(groups):
        at_N = group_N == group
        median_of_each[..., at_N] = values[..., at_N].median(-1, keepdim=True).values
    return median_of_each


def deviations(values: Tensor, groups: Sequence[int]) -> Tensor:
    """The distance of each value [..., N] from the median of its group, in robust
    standard deviations of the group."""
    from_median = values - medians(values, groups)
    spread = NORMAL * medians(from_median.abs(), groups)
    return from_median / spread.clamp_min(torch.finfo(values.dtype).tiny)

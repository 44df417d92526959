"""Averages of saved files, whose width is chosen after the training.

The average is exponential, or has the profile of a power function. Each matrix is
averaged separately, as an average during training is. The functions read the files and
write none: `process` does that for `type: post_hoc_ema`. Files are given oldest first:

    average = beta_i * average + (1 - beta_i) * checkpoint_i,   from the first checkpoint on.

A power function t^gamma over the steps has beta_i = (t_before / t_i)^(gamma + 1),
whatever the distances between the checkpoints. Source: Karras et al., arXiv 2312.02696,
section 3.1 and algorithm 2 (gamma of a relative width sigma_rel). musubi-tuner
(lora_post_hoc_ema.py) counts files in the place of steps, and begins one too early, so
that its first file has no weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files.run_files import step_in
from toolkit.networks.lora_formats import read_tensors
from toolkit.optim.ema import gamma_of


def power_betas(steps: Sequence[int], sigma_rel: float) -> list[float]:
    """The betas of all checkpoints but the first. steps: the steps they were saved at,
    ascending."""
    gamma = gamma_of(sigma_rel)
    return [(before / step) ** (gamma + 1) for before, step in pairwise(steps)]


def linear_betas(count: int, beta: float, beta2: float | None = None) -> list[float]:
    """The betas of `count` checkpoints without the first, from `beta` to `beta2` in
    even steps.

    >>> linear_betas(4, beta=0.5, beta2=0.9)
    [0.5, 0.7, 0.9]
    """
    merges = count - 1
    last = beta if beta2 is None else beta2
    return [
        beta + (last - beta) * index / max(1, merges - 1) for index in range(merges)
    ]


def steps_of(files: Sequence[Path]) -> list[int]:
    """The optimizer step of each file, from its metadata, else the last number in its
    name.

    Raises UserError where a file has neither, or two have the same.
    """
    steps = [_step_of(file) for file in files]
    for file, step in zip(files, steps, strict=True):
        if step is None:
            raise UserError(
                f"{file}: neither its metadata nor its name says of which step it is."
            )
        if steps.count(step) > 1:
            pairs = zip(files, steps, strict=True)
            others = [str(other) for other, its in pairs if its == step]
            raise UserError(
                f"{' and '.join(others)} are of the same step, {step}. Leave one of them out."
            )
    return [step for step in steps if step is not None]


def _step_of(file: Path) -> int | None:
    step = step_in(file)
    if math.isfinite(step):
        return int(step)
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else None


def average(files: Sequence[Path], betas: Sequence[float]) -> dict[str, Tensor]:
    """The average of files with the same keys, oldest first, in the dtypes of the
    first; computed in float32.

    betas: one for each file but the first. Alphas, and tensors that are not
    floating-point numbers, have to be equal in all files. Raises UserError where the
    files do not match.
    """
    first, _ = read_tensors(files[0])
    averaged = (name for name in first if _is_averaged(name, first[name]))
    mean = {name: first[name].float() for name in averaged}
    for file, beta, tensors in zip(
        files[1:], betas, _following(files, first), strict=True
    ):
        for name, value in mean.items():
            value.mul_(beta).add_(tensors[name].float(), alpha=1 - beta)
            if not torch.isfinite(value).all():
                raise UserError(f"{file}: {name} is not finite.")
    return first | {name: mean[name].to(first[name].dtype) for name in mean}


def _following(
    files: Sequence[Path], first: Mapping[str, Tensor]
) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of each file behind the first, checked against it."""
    for file in files[1:]:
        tensors, _ = read_tensors(file)
        differing = sorted(first.keys() ^ tensors.keys())
        if differing:
            where = file if differing[0] not in tensors else files[0]
            raise UserError(
                f"{where}: lacks {differing[0]!r}, which the other files have. Are they of one run?"
            )
        for name, tensor in tensors.items():
            if tensor.shape != first[name].shape:
                shapes = (
                    f"{list(tensor.shape)}, and {list(first[name].shape)} in {files[0]}"
                )
                raise UserError(
                    f"{file}: {name} has the shape {shapes}. Are they of one run?"
                )
            if not _is_averaged(name, tensor) and not torch.allclose(
                tensor.float(), first[name].float()
            ):
                raise UserError(
                    f"{file}: {name} differs from that of {files[0]}. Are they of one run?"
                )
        yield tensors


def _is_averaged(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith(".alpha")

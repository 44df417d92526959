"""Averages of saved checkpoints, chosen after the training: exponential, or with the profile of a power function.

Each matrix is averaged on its own, as an average during training is. Checkpoints are given oldest first:

    average = beta_i * average + (1 - beta_i) * checkpoint_i,   from the first checkpoint on.

A power function t^gamma over the steps has beta_i = (t_before / t_i)^(gamma + 1), whatever the distances between the
checkpoints. Source: Karras et al., arXiv 2312.02696, section 3.1 and algorithm 2 (gamma of a relative width sigma_rel).
musubi-tuner (lora_post_hoc_ema.py) counts files in the place of steps, from one too early: its first has no weight.

A run with `train.ema_config.power_averages` keeps two averages over all its steps in each state. Their best linear
combination is nearer to a power function than an average of a few files can be (same paper, section 3.2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from toolkit.config.train import POWER_WIDTHS
from toolkit.errors import UserError
from toolkit.files.run_files import step_in
from toolkit.networks.lora_formats import read_tensors
from toolkit.optim.ema import gamma_of
from toolkit.train.checkpoint_store import (
    POWER_AVERAGES,
    checkpoint_dir,
    checkpoint_folders,
    read_checkpoint_json,
    reading_state,
    step_of,
    verify,
)


def power_betas(steps: Sequence[int], sigma_rel: float) -> list[float]:
    """The betas of all checkpoints but the first, by the steps they were saved at (rising)."""
    gamma = gamma_of(sigma_rel)
    return [(before / step) ** (gamma + 1) for before, step in pairwise(steps)]


def mixing_weights(times: Sequence[int], gammas: Sequence[float], time: int, gamma: float) -> tuple[list[float], float]:
    """The factors with which power averages, each of t^gammas[i] up to times[i], add up to that of t^gamma up to `time`
    as nearly as possible, and the relative error of the profile.

    Least squares over the profiles p_i(t) = (gamma_i + 1) t^gamma_i / T_i^(gamma_i + 1) on [0, T_i], the product of two
    of which has the integral (g + 1) (h + 1) / (g + h + 1) min(S, T)^(g + h + 1) / (S^(g + 1) T^(h + 1)). Source: arXiv
    2312.02696, section 3.2 and appendix C. The factors are divided by their sum, so that weights keep their size.
    """

    def product(s: float, g: float, t: float, h: float) -> float:
        low, high, of_high = (s, t, h) if s <= t else (t, s, g)
        return (g + 1) * (h + 1) / (g + h + 1) / high * (low / high) ** of_high

    kept = list(zip(times, gammas, strict=True))
    products = torch.tensor([[product(*a, *b) for b in kept] for a in kept], dtype=torch.float64)
    wanted = torch.tensor([product(*a, time, gamma) for a in kept], dtype=torch.float64)
    scale = products.diagonal().rsqrt()  # profiles of late steps are low and wide: all count alike
    scaled = products * scale[:, None] * scale
    factors = scale * torch.linalg.lstsq(scaled, wanted * scale, rcond=1e-12, driver="gelsd").solution
    factors = factors / factors.sum()
    total = product(time, gamma, time, gamma)
    missed = total - 2 * float(factors @ wanted) + float(factors @ products @ factors)
    return factors.tolist(), math.sqrt(max(0.0, missed) / total)


def linear_betas(count: int, beta: float, beta2: float | None = None) -> list[float]:
    """The betas of `count` checkpoints but the first, from `beta` to `beta2` in even steps."""
    merges = count - 1
    last = beta if beta2 is None else beta2
    return [beta + (last - beta) * index / max(1, merges - 1) for index in range(merges)]


def steps_of(files: Sequence[Path]) -> list[int]:
    """The optimizer step of each file: by its metadata, else the last number in its name.

    Raises UserError where a file has neither, or two have the same.
    """
    steps = [_step_of(file) for file in files]
    for file, step in zip(files, steps, strict=True):
        if step is None:
            raise UserError(f"{file}: neither its metadata nor its name says of which step it is.")
        if steps.count(step) > 1:
            others = [str(other) for other, its in zip(files, steps, strict=True) if its == step]
            raise UserError(f"{' and '.join(others)} are of the same step, {step}. Leave one of them out.")
    return [step for step in steps if step is not None]


def _step_of(file: Path) -> int | None:
    step = step_in(file)
    if math.isfinite(step):
        return int(step)
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else None


def average(files: Sequence[Path], betas: Sequence[float]) -> dict[str, Tensor]:
    """The average of files with the same keys, oldest first, in the dtypes of the first; computed in float32.

    betas: of each file but the first. Alphas, and what is no floating-point number, have to be equal in all. Raises
    UserError where the files do not match.
    """
    first, _ = read_tensors(files[0])
    mean = {name: tensor.float() for name, tensor in first.items() if _is_averaged(name, tensor)}
    for file, beta, tensors in zip(files[1:], betas, _following(files, first), strict=True):
        for name, value in mean.items():
            value.mul_(beta).add_(tensors[name].float(), alpha=1 - beta)
            if not torch.isfinite(value).all():
                raise UserError(f"{file}: {name} is not finite.")
    return {name: mean[name].to(tensor.dtype) if name in mean else tensor for name, tensor in first.items()}


def _following(files: Sequence[Path], first: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of each file behind the first, checked against it."""
    for file in files[1:]:
        tensors, _ = read_tensors(file)
        if differing := sorted(first.keys() ^ tensors.keys()):
            where = file if differing[0] not in tensors else files[0]
            raise UserError(f"{where}: lacks {differing[0]!r}, which the other files have. Are they of one run?")
        for name, tensor in tensors.items():
            if tensor.shape != first[name].shape:
                shapes = f"{list(tensor.shape)}, and {list(first[name].shape)} in {files[0]}"
                raise UserError(f"{file}: {name} has the shape {shapes}. Are they of one run?")
            if not _is_averaged(name, tensor) and not torch.allclose(tensor.float(), first[name].float()):
                raise UserError(f"{file}: {name} differs from that of {files[0]}. Are they of one run?")
        yield tensors


def _is_averaged(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith(".alpha")


# ---------------------------------------------------------------- from the averages in the states of a run


@dataclass(frozen=True)
class PowerAverage:
    """An average, and what it was made from."""

    tensors: dict[str, Tensor]
    """Averages by parameter, float32."""

    steps: tuple[int, ...]
    """Steps of the states."""

    error: float
    """Relative error of its profile over the steps."""


def average_of_run(folder: Path, role: str, width: float) -> PowerAverage:
    """The average up to the last state of a run's folder. width: relative, in (0, MAX_SIGMA_REL].

    Raises UserError where no state has averages, or one is damaged.
    """
    states = [state for state in checkpoint_folders(checkpoint_dir(folder)) if _file(state).is_file()]
    if not states:
        raise UserError(
            f"{folder}: no state in it holds averages. Train with 'train.ema_config.power_averages: true'; its states "
            "are kept as 'save.max_states_to_keep' says."
        )
    for state in states:
        if damage := verify(state):
            raise UserError(f"{state}: {damage}. Remove it.")
    times = []
    for state in states:
        with reading_state(state):
            times.append(int(read_checkpoint_json(state)["roles"][role]["power_updates"]))
    gammas = [gamma_of(kept) for kept in POWER_WIDTHS]
    each = [(time, gamma) for time in times for gamma in gammas]
    factors, error = mixing_weights([t for t, _ in each], [g for _, g in each], max(times), gamma_of(width))
    mean: dict[str, Tensor] = {}
    shares = iter(factors)
    for state in states:
        of_state = [next(shares) for _ in gammas]
        for name, number, value in _averages(state, role):
            if name not in mean:
                mean[name] = value.double().zero_()
            mean[name].add_(value.double(), alpha=of_state[number])
    return PowerAverage({name: value.float() for name, value in mean.items()}, tuple(map(step_of, states)), error)


def _file(state: Path) -> Path:
    return state / f"{POWER_AVERAGES}.safetensors"


def _averages(state: Path, role: str) -> Iterator[tuple[str, int, Tensor]]:
    """Parameter, number of the width, average."""
    with safe_open(_file(state), framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dict
            owner, name, number = key.split("/")
            if owner == role:
                yield name, int(number), tensors.get_tensor(key)

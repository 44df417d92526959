"""The average of a run's weights with a power function of any width, from the averages in its states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from toolkit.config.train import POWER_WIDTHS
from toolkit.errors import UserError
from toolkit.networks.post_hoc_ema import gamma_of, mixing_weights
from toolkit.train.checkpoint_store import (
    POWER_AVERAGES,
    checkpoint_dir,
    checkpoint_folders,
    read_checkpoint_json,
    reading_state,
    step_of,
    verify,
)


@dataclass(frozen=True)
class PowerAverage:
    """An average, and what it was made from."""

    tensors: dict[str, Tensor]
    """By parameter, float32."""

    steps: tuple[int, ...]
    """Of the states."""

    error: float
    """Of its profile over the steps, relative."""


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

"""What can be wrong with the learning rates of a section, and with limits on what they lead to. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from toolkit.config.lr_groups import BASE, UP
from toolkit.config.process import Finding
from toolkit.network_kinds import KINDS
from toolkit.optim.choice import is_schedule_free, wants_one_rate


def check_rates(section: Any) -> Iterable[Finding]:
    """Mistakes in `train.lr_groups`, `network.loraplus_lr_ratio` and `network.scale_weight_norms`."""
    yield from _check_groups(section.train.lr_groups)
    yield from _check_loraplus(section.network)
    if wants_one_rate(section.train.optimizer):
        yield from _check_one_rate(section)
    yield from _check_limit(section)


def _check_groups(groups: Iterable[Any]) -> Iterable[Finding]:
    names = {BASE}
    for index, group in enumerate(groups):
        if group.label() in names or group.label().endswith(UP):
            key = ("train", "lr_groups", index)
            yield Finding(key, f"{group.label()!r} is the name of another group. Give it another 'name'.")
        names.add(group.label())


def _check_loraplus(network: Any) -> Iterable[Finding]:
    if network.loraplus_lr_ratio not in (0, 1) and not KINDS[network.type].up:
        message = f"'type: {network.type}' has no up matrix that could learn faster. Leave this key out."
        yield Finding(("network", "loraplus_lr_ratio"), message)


def _check_one_rate(section: Any) -> Iterable[Finding]:
    train = section.train
    message = f"'optimizer: {train.optimizer}' finds one rate for all weights. Leave this key out, or take 'adamw'."
    if section.network.loraplus_lr_ratio not in (0, 1):
        yield Finding(("network", "loraplus_lr_ratio"), message)
    if any(group.rate(train.lr) not in (0, train.lr) for group in train.lr_groups):
        yield Finding(("train", "lr_groups"), message)


def _check_limit(section: Any) -> Iterable[Finding]:
    optimizer = section.train.optimizer
    if not section.network.scale_weight_norms:
        return
    if section.network.trains_model:
        yield Finding(("network", "scale_weight_norms"), "'type: full' has no adapter to limit. Leave this key out.")
    elif is_schedule_free(optimizer):
        message = f"'optimizer: {optimizer}' saves an average of the weights, for which the limit would not hold."
        yield Finding(("network", "scale_weight_norms"), f"{message} Leave this key out, or take 'adamw'.")

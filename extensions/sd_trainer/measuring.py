"""The hooks that measure a run while it goes on: validation, and what ends it by a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.contracts import Network
from toolkit.log import StatusLine
from toolkit.train.hooks.intervals import Interval
from toolkit.train.hooks.save import SaveHook
from toolkit.train.hooks.stop_when import StopHook
from toolkit.train.hooks.validation import ValidationHook
from toolkit.train.run import Hook
from toolkit.train.validation import Validator


def measuring(
    section: Any, network: Network, validator: Validator | None, saving: SaveHook, status: StatusLine
) -> list[Hook]:
    """Those that `validation` and `stop_when` of an `sd_trainer` section ask for; to be called before the saving."""
    stopping = StopHook(section.stop_when, status.note) if section.stop_when else None
    if validator is None:
        return [stopping] if stopping else []

    def measure(stop_asked: Callable[[], bool]) -> dict[str, float] | None:
        with network.inference():
            return validator.losses(stop_asked)

    validating = ValidationHook(
        measure,
        validator.identity,
        Interval(section.validation.every, section.validation.every_n_epochs),
        save_best=lambda run: saving.prepare_network(run, "best")(),
        note=status.note,
    )
    if stopping is None:
        return [validating]
    validating.heard, stopping.at_goal = stopping.take, validating.validate_once
    return [validating, stopping]

"""The hooks that measure a run while it goes on: validation, and what ends it by a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.contracts import Network
from toolkit.log import StatusLine
from toolkit.train.hooks.intervals import Interval
from toolkit.train.hooks.plateau import PlateauHook
from toolkit.train.hooks.save import SaveHook
from toolkit.train.hooks.stop_when import StopHook
from toolkit.train.hooks.validation import ValidationHook
from toolkit.train.run import Hook, Run
from toolkit.train.validation import Validator


def measuring(
    section: Any, network: Network, validator: Validator | None, saving: SaveHook, status: StatusLine
) -> list[Hook]:
    """Those that `validation`, `stop_when` and a schedule that observes a value ask for; to be called before the
    saving."""
    following = [PlateauHook()] if section.train.lr_scheduler == "plateau" else []
    stopping = [StopHook(section.stop_when, status.note)] if section.stop_when else []
    if validator is None:
        return [*following, *stopping]

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
    for hook in stopping:
        hook.at_goal = validating.validate_once

    def heard(run: Run, losses: dict[str, float]) -> None:
        for hook in (*following, *stopping):
            hook.take(run, losses)

    validating.heard = heard
    return [validating, *following, *stopping]

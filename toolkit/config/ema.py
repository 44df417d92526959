"""`train.ema_config`: the running average of the trained weights."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.train import EMA


class EmaConfig(StrictModel):
    """`train.ema_config`: running average of the trained weights, once per optimizer step."""

    use_ema: bool = False
    """Keep the average; samples and the saved LoRA are made of it."""

    ema_decay: float = Field(default=0.999, ge=0, le=1)
    """Share of the old average that stays at each step. 0: the average is the weights themselves."""

    use_num_updates: bool = True
    """Warm up: the decay after n steps is at most (1 + n) / (10 + n), so that early files are not the start."""

    foreign: ClassVar = EMA

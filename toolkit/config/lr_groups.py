"""`train.lr_groups`: layers that learn at a rate of their own."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.train import LR_GROUP
from toolkit.config.network import Pattern

BASE = "base"
"""Name of the group of all other layers."""

LORA_B_SUFFIX = " up"
"""Follows the name of a group in that of its up matrices, where LoRA+ gives these a rate of their own."""


class LrGroupConfig(StrictModel):
    """`train.lr_groups`: layers that learn at a rate of their own; the first entry that matches a layer decides."""

    match: Pattern
    """Regular expression that matches whole layer names, such as '.*attn.*'. One that matches nothing is an error."""

    lr: float | None = Field(default=None, ge=0)
    """Highest learning rate of these layers. Not given: `train.lr`. 0: they are not trained."""

    lr_scale: float = Field(default=1.0, ge=0)
    """Factor of that rate. 0: they are not trained."""

    name: str = ""
    """What metrics.jsonl calls the group: `lr/<name>`. Empty: as `match`."""

    foreign: ClassVar = LR_GROUP

    def label(self) -> str:
        """The name of the group."""
        return self.name or self.match

    def rate(self, base: float) -> float:
        """The highest learning rate of the group. base: `train.lr`."""
        return self.lr_scale * (base if self.lr is None else self.lr)

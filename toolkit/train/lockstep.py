"""Forward passes that one process asks for and all have to make: for a model that is shared out between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.contracts import ModelAdapter, PromptEmbeds
from toolkit.parallel import Team


class LeadingAdapter:
    """An adapter for what the first process does alone (samples, validation): the others make each pass with it.

    They do so while they wait for the first process, and throw the result away.
    """

    def __init__(self, adapter: ModelAdapter, team: Team) -> None:
        self._adapter = adapter
        self._team = team

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def predict_velocity(self, *inputs: Any) -> Tensor:
        self._team.lead(_on_cpu(inputs))
        return self._adapter.predict_velocity(*inputs)


def _on_cpu(value: Any) -> Any:
    """The inputs of a pass where every process can receive them."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PromptEmbeds):
        return PromptEmbeds(value.embeds_BLD.cpu(), value.lengths)
    return tuple(map(_on_cpu, value))


def follow(adapter: ModelAdapter, team: Team) -> None:
    """From here on this process makes the passes that the first one asks for."""

    @torch.no_grad()
    def make(inputs: tuple[Any, ...]) -> None:
        adapter.predict_velocity(*inputs)

    team.follow = make

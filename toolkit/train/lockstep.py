"""What all processes have to do together although only the first one wants it: for a model that is shared out.

The first process draws, validates and saves while the others wait for it in an exchange. Whatever needs the weights of
all begins with an order (`Run.lead`): the others follow it and wait again. An order is a function that can be pickled;
it is called with what a process has (`Follower`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.contracts import ModelAdapter, Network, PromptEmbeds
from toolkit.parallel import Team
from toolkit.train.run import Run


@dataclass
class Follower:
    """A process that follows the first one, with all that it has of the run."""

    adapter: ModelAdapter
    network: Network
    run: Run
    evaluation: ExitStack = field(default_factory=ExitStack)
    """Open while the weights are those that are kept."""


Order = Callable[[Follower], Any]
"""What a process does that follows; what it returns goes nowhere."""


def follow(follower: Follower) -> None:
    """From here on this process follows the orders of the first one, or gives them, if it is that."""
    team = follower.run.team
    team.follow = lambda order: order(follower)
    follower.run.lead = team.lead


def leading(adapter: ModelAdapter, team: Team) -> Callable[..., Tensor]:
    """`adapter.predict_velocity` for what the first process does alone (samples, validation): the others make each pass
    with it and throw the result away.
    """

    def predict_velocity(*inputs: Any) -> Tensor:
        team.lead(partial(_pass, inputs=_on_cpu(inputs)))
        return adapter.predict_velocity(*inputs)

    return predict_velocity


@torch.no_grad()
def _pass(follower: Follower, inputs: tuple[Any, ...]) -> None:
    follower.adapter.predict_velocity(*inputs)


def _on_cpu(value: Any) -> Any:
    """The inputs of a pass where every process can receive them."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PromptEmbeds):
        return value.cpu()
    return tuple(map(_on_cpu, value))


@contextmanager
def evaluation(run: Run) -> Iterator[None]:
    """Inside the block all weights are those that are kept, after it their own values again, in all processes.

    What fails inside ends the run.
    """
    run.lead(_hold_kept_weights)
    with run.kept_weights():
        yield
    # Not when it fails: the others may be in the middle of a pass, and would not hear it.
    run.lead(_hold_own_weights)


def _hold_kept_weights(follower: Follower) -> None:
    follower.evaluation.enter_context(follower.run.kept_weights())


def _hold_own_weights(follower: Follower) -> None:
    follower.evaluation.close()

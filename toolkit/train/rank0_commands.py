"""What all processes have to do together although only rank 0 wants it: for a model that is sharded.

Rank 0 draws, validates and saves while the others wait for it in an exchange. Whatever needs the weights of
all begins with an order (`Run.broadcast_command`): the others follow it and wait again. An order is a function that
can be pickled; it is called with what a process has (`WorkerContext`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.distributed import ProcessGroup
from toolkit.interfaces import DiffusionModel, Network, PromptEmbeds
from toolkit.train.run import Run


@dataclass
class WorkerContext:
    """A process that follows the first one, with all that it has of the run."""

    model: DiffusionModel
    network: Network
    run: Run
    evaluation: ExitStack = field(default_factory=ExitStack)
    """Open while the weights are those that are kept."""


Rank0Command = Callable[[WorkerContext], Any]
"""What a process does that follows; what it returns goes nowhere."""


def install_command_handler(worker: WorkerContext) -> None:
    """Installs the command handler on ranks > 0 and the broadcaster on rank 0."""
    process_group = worker.run.process_group
    process_group.on_command = lambda order: order(worker)
    worker.run.broadcast_command = process_group.broadcast_command


def leading(model: DiffusionModel, process_group: ProcessGroup) -> Callable[..., Tensor]:
    """`adapter.predict_velocity` for what rank 0 does alone (samples, validation): the others make each pass
    with it and throw the result away.
    """

    def predict_velocity(*inputs: Any) -> Tensor:
        process_group.broadcast_command(partial(_pass, inputs=_on_cpu(inputs)))
        return model.predict_velocity(*inputs)

    return predict_velocity


@torch.no_grad()
def _pass(worker: WorkerContext, inputs: tuple[Any, ...]) -> None:
    worker.model.predict_velocity(*inputs)


def _on_cpu(value: Any) -> Any:
    """The inputs of a pass where every process can receive them."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PromptEmbeds):
        return value.cpu()
    return tuple(map(_on_cpu, value))


@contextmanager
def using_eval_weights(run: Run) -> Iterator[None]:
    """Swaps the eval weights (EMA) in on all ranks inside the block, and restores the raw weights after it.

    What fails inside ends the run.
    """
    run.broadcast_command(_swap_in_eval_weights)
    with run.using_eval_weights_local():
        yield
    # Not when it fails: the others may be in the middle of a pass, and would not hear it.
    run.broadcast_command(_swap_out_eval_weights)


def _swap_in_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.enter_context(worker.run.using_eval_weights_local())


def _swap_out_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.close()

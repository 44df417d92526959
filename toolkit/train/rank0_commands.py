"""Commands of rank 0 to the other ranks, for work on a sharded model that only rank 0 asks for.

Rank 0 samples, validates and saves while the other ranks wait for it in a collective. Whatever needs the weights of all
ranks begins with a command (`Run.broadcast_command`): the other ranks run it and wait again. A command is a picklable
function; it is called with the rank's `WorkerContext`.
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
    """The objects of one rank that commands of rank 0 work on."""

    model: DiffusionModel
    network: Network
    run: Run
    evaluation: ExitStack = field(default_factory=ExitStack)
    """Open while the eval weights (EMA) are swapped in."""


Rank0Command = Callable[[WorkerContext], Any]
"""A command of rank 0, as every other rank runs it; its result is discarded."""


def install_command_handler(worker: WorkerContext) -> None:
    """Installs the command handler on ranks > 0 and the broadcaster on rank 0."""
    process_group = worker.run.process_group
    process_group.on_command = lambda command: command(worker)
    worker.run.broadcast_command = process_group.broadcast_command


def leading(model: DiffusionModel, process_group: ProcessGroup) -> Callable[..., Tensor]:
    """`model.predict_velocity` for work of rank 0 alone (samples, validation): the other ranks run each pass too, and
    discard the result.
    """

    def predict_velocity(*inputs: Any) -> Tensor:
        process_group.broadcast_command(partial(_forward_on_worker, inputs=_on_cpu(inputs)))
        return model.predict_velocity(*inputs)

    return predict_velocity


@torch.no_grad()
def _forward_on_worker(worker: WorkerContext, inputs: tuple[Any, ...]) -> None:
    worker.model.predict_velocity(*inputs)


def _on_cpu(value: Any) -> Any:
    """The inputs of a pass in CPU memory, from which they can be broadcast."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PromptEmbeds):
        return value.cpu()
    return tuple(map(_on_cpu, value))


@contextmanager
def using_eval_weights(run: Run) -> Iterator[None]:
    """Swaps the eval weights (EMA) in on all ranks inside the block, and restores the raw weights after it.

    An error inside ends the run.
    """
    run.broadcast_command(_swap_in_eval_weights)
    with run.using_eval_weights_local():
        yield
    # Not after an error: the other ranks may be in the middle of a pass and would not receive the command.
    run.broadcast_command(_swap_out_eval_weights)


def _swap_in_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.enter_context(worker.run.using_eval_weights_local())


def _swap_out_eval_weights(worker: WorkerContext) -> None:
    worker.evaluation.close()

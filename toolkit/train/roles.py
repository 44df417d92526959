"""Builds a `Role` from parameters and its settings: optimizer, schedule, EMA, and how it
steps.

The optimizers and schedules themselves are in `toolkit.optim`; the loop uses a role
through `optimizer_step`. Called by the trainers, once for each set of parameters that
is trained together; the one of a LoRA does it in `extensions.sd_trainer.setup`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from itertools import chain
from typing import TYPE_CHECKING, cast

from toolkit.config.sections.train import EmaConfig, OptimizerConfig
from toolkit.errors import UserError
from toolkit.optim.ema import Ema
from toolkit.optim.optimizer_args import ArgumentError
from toolkit.optim.optimizers import build_optimizer
from toolkit.optim.schedules import ScheduleArgs, build_schedule
from toolkit.optim.stochastic_rounding import (
    PerParameterStepper,
    StochasticRoundingOptimizer,
)
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train.optimizer_step import (
    OptimizerInBackward,
    Role,
    ShardedStep,
    StandardStep,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

BASE = "base"
UP = "base up"
"""Names of the parameter groups: of all parameters but the up matrices, and of the up
matrices where they have a rate of their own (LoRA+)."""


def build_role(
    train: OptimizerConfig,
    parameters: Mapping[str, nn.Parameter],
    steps: int,
    seed: int,
    process_group: ProcessGroup,
    ema: EmaConfig | None = None,
    up: Container[str] = (),
    up_ratio: float = 1.0,
    after_step: Callable[[Tensor], dict[str, Tensor]] = lambda step_ok: {},
    sharded: Mapping[str, RowShard] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    stochastic_rounding: bool = False,
) -> Role:
    """The role of these parameters in a run of `steps` optimizer steps.

    process_group: the ranks that train them. ema: of the weights; None: none. up, up_ratio: names of
    the parameters whose learning rate is multiplied by `up_ratio`. after_step, sharded,
    buffers: as of `Role`. stochastic_rounding: of updates of bfloat16 parameters.
    """
    sharded = sharded or {}
    ups = {name for name in parameters if up_ratio != 1 and name in up}
    by_group = {
        BASE: [name for name in parameters if name not in ups],
        UP: [name for name in parameters if name in ups],
    }
    groups = {group: names for group, names in by_group.items() if names}
    rates = {BASE: train.lr, UP: train.lr * up_ratio}
    # The optimizer numbers its state in the order of its groups; checkpoints name it by
    # the order here.
    parameters = {name: parameters[name] for name in chain(*groups.values())}

    def optimizer_over(weights: Mapping[str, nn.Parameter]) -> Optimizer:
        of_groups = {
            group: [weights[name] for name in names] for group, names in groups.items()
        }
        try:
            return build_optimizer(
                train.optimizer, of_groups, train.lr, train.optimizer_params
            )
        except ArgumentError as error:
            raise UserError(f"train.optimizer_params: {error}") from error

    optimizer: Optimizer | StochasticRoundingOptimizer
    if stochastic_rounding:
        optimizer = StochasticRoundingOptimizer(
            parameters, optimizer_over, seed, sharded
        )
    else:
        optimizer = optimizer_over(parameters)
    averages = None
    if ema and ema.use_ema:
        averages = Ema(parameters, ema.ema_decay)
    if sharded:
        optimizer_step: StandardStep = ShardedStep(process_group.all_reduce_sum)
    else:
        optimizer_step = StandardStep()
    return Role(
        parameters=parameters,
        optimizer=optimizer,
        lr=train.lr,
        schedule=build_schedule(
            train.lr_scheduler,
            steps,
            params=train.lr_scheduler_params,
            **ScheduleArgs.named_in(train),
        ),
        max_grad_norm=train.max_grad_norm,
        ema=averages,
        group_lrs={group: rates[group] for group in groups} if ups else {},
        optimizer_step=optimizer_step,
        after_step=after_step,
        buffers=buffers or {},
        sharded=sharded,
    )


def step_in_backward(role: Role, accumulates: bool) -> OptimizerInBackward:
    """The `OptimizerStep` of a role that is not sharded. accumulates: as of
    `OptimizerInBackward`."""
    optimizer = role.optimizer
    if isinstance(optimizer, StochasticRoundingOptimizer):
        step_one = optimizer.step_one
    else:
        step_one = PerParameterStepper(cast("Optimizer", optimizer)).step
    return OptimizerInBackward(role.parameters.values(), step_one, accumulates)

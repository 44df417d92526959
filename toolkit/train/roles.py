"""Builds a `Role` from parameters and its settings: optimizer, schedule, EMA, and how it
steps.

The optimizers and schedules themselves are in `toolkit.optim`; the loop uses a role
through `optimizer_step`. Called by the trainers, once for each set of parameters that
is trained together; the one of a LoRA does it in `extensions.sd_trainer.setup`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
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
from toolkit.train.lr_groups import build_param_groups
from toolkit.train.optimizer_step import (
    OptimizerInBackward,
    Role,
    ShardedStep,
    StandardStep,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


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
    groups = build_param_groups(parameters, train.lr, up, up_ratio)
    # The optimizer numbers its state in the order of its groups; checkpoints name it by
    # the order here.
    parameters = {name: parameters[name] for group in groups for name in group.weights}
    is_single_group = [group.lr for group in groups] == [train.lr]

    def optimizer_over(weights: Mapping[str, nn.Parameter]) -> Optimizer:
        by_group = {
            group.name: [weights[name] for name in group.weights] for group in groups
        }
        try:
            return build_optimizer(
                train.optimizer, by_group, train.lr, train.optimizer_params
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
        group_lrs={} if is_single_group else {group.name: group.lr for group in groups},
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

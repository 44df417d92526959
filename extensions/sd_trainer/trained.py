"""What is trained: the network on the model, and what moves its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.contracts import ModelAdapter, Network
from toolkit.device import DTYPES
from toolkit.models.families import family_for
from toolkit.models.opening import model_folder
from toolkit.networks.formats import ModuleChange, read_network_file
from toolkit.networks.merge import BaseChange, Merge, read_base_loras
from toolkit.networks.registry import NETWORKS
from toolkit.networks.targets import chosen_targets
from toolkit.optim.ema import Ema
from toolkit.optim.lr_groups import rate_groups
from toolkit.optim.one_by_one import OneByOne
from toolkit.optim.optimizers import build_optimizer
from toolkit.optim.schedules import Course, build_schedule
from toolkit.optim.stochastic_rounding import RoundedOptimizer
from toolkit.parallel import Team
from toolkit.train.flow_step import ROLE
from toolkit.train.fused_update import FusedStep
from toolkit.train.update import Role, StepOfParts, Update, WholeStep

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Note = Callable[[str], None]


def starting_point(section: Any, note: Note) -> dict[str, ModuleChange] | None:
    """The weights of `network.pretrained_lora_path`; read first, so that a wrong file costs no time."""
    path = section.network.pretrained_lora_path
    if not path:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model, note))
    return read_network_file(Path(path).expanduser(), layers)


def base_merging(section: Any, note: Note) -> Callable[[], Merge] | None:
    """What merges `model.base_loras` into the model when it is loaded, if there are any.

    The files are read now, so that a wrong one costs no time, and again then: until then they would take memory.
    """
    loras = section.model.base_loras
    if not loras:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model, note))

    def read() -> list[BaseChange]:
        return read_base_loras(loras, layers)

    for change in read():
        note(f"merged into the model: {change}")
    return lambda: Merge(read())


def attach_network(
    section: Any, adapter: ModelAdapter, seed: int, start: dict[str, ModuleChange] | None, note: Note
) -> Network:
    """The network of a `network:` section on the model, begun at `start` if there is one."""
    settings = section.network
    kind = NETWORKS.load(settings.type)
    targets = chosen_targets(settings, kind.candidates(adapter))
    network = kind.from_config(settings, targets, seed, DTYPES[section.train.dtype])
    network.attach(adapter.network_module)
    network.share_inputs(adapter.shared_inputs())
    if start is not None:
        network.start_from(start, note)
    if reason := adapter.tabulate():
        note(f"model.modulation_table: not possible here, {reason}")
    parts = network.shared_out()
    count = sum(prod(parts[name].shape if name in parts else p.shape) for name, p in network.parameters().items())
    note(f"{settings.type}: {len(targets)} layers, {count:,} trainable weights")
    if network.caution:
        note(network.caution)
    return network


def build_roles(section: Any, network: Network, steps: int, seed: int, team: Team) -> dict[str, Role]:
    """The network's weights with the optimizer, schedule and average of a section's `train:`.

    team: the processes that train them together.
    """
    train, ema, parameters = section.train, section.train.ema_config, network.parameters()
    groups = rate_groups(
        parameters,
        network.layer_of,
        train.lr,
        train.lr_groups,
        network.up_parameters(),
        section.network.loraplus_lr_ratio or 1,
    )
    # The optimizer numbers its state by its groups; states name it by the order here.
    parameters = {name: parameters[name] for group in groups for name in group.weights}
    is_one = [group.lr for group in groups] == [train.lr]

    def optimizer_over(weights: Mapping[str, nn.Parameter]) -> Optimizer:
        by_group = {group.name: [weights[name] for name in group.weights] for group in groups}
        return build_optimizer(train.optimizer, by_group, train.lr, train.optimizer_params)

    shared_out = network.shared_out()
    if train.full_bf16:
        optimizer = RoundedOptimizer(parameters, optimizer_over, seed, shared_out)
    else:
        optimizer = optimizer_over(parameters)
    role = Role(
        parameters=parameters,
        optimizer=optimizer,
        lr=train.lr,
        schedule=build_schedule(train.lr_scheduler, steps, params=train.lr_scheduler_params, **Course.named_in(train)),
        max_grad_norm=train.max_grad_norm,
        ema=Ema(parameters, ema.ema_decay, ema.use_num_updates) if ema.use_ema else None,
        group_lrs={} if is_one else {group.name: group.lr for group in groups},
        update=StepOfParts(team.add_up) if shared_out else _update(train, parameters, optimizer),
        after_step=network.after_step,
        shared_out=shared_out,
    )
    return {ROLE: role}


def _update(train: Any, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer | RoundedOptimizer) -> Update:
    if not train.fused_backward_pass:
        return WholeStep()
    step_one = optimizer.step_one if isinstance(optimizer, RoundedOptimizer) else OneByOne(optimizer).step
    return FusedStep(parameters.values(), step_one, accumulates=train.gradient_accumulation > 1)

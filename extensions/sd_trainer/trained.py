"""What is trained: the network on the model, and what moves its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.contracts import ModelAdapter, Network
from toolkit.models.families import family_for
from toolkit.models.opening import model_folder
from toolkit.networks.formats import ModuleChange, read_network_file
from toolkit.networks.registry import NETWORKS
from toolkit.networks.targets import chosen_targets
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer
from toolkit.optim.schedules import Course, build_schedule
from toolkit.train.flow_step import ROLE
from toolkit.train.run import Role

Note = Callable[[str], None]


def starting_point(section: Any, note: Note) -> dict[str, ModuleChange] | None:
    """The weights of `network.pretrained_lora_path`; read first, so that a wrong file costs no time."""
    path = section.network.pretrained_lora_path
    if not path:
        return None
    layers = family_for(section.model).linear_layers(model_folder(section.model, note))
    return read_network_file(Path(path).expanduser(), layers)


def attach_network(
    section: Any, adapter: ModelAdapter, seed: int, start: dict[str, ModuleChange] | None, note: Note
) -> Network:
    """The network of a `network:` section on the model, begun at `start` if there is one."""
    settings = section.network
    targets = chosen_targets(settings, adapter.lora_targets())
    network = NETWORKS.load(settings.type).from_config(settings, targets, seed)
    network.attach(adapter.network_module)
    if start is not None:
        network.start_from(start, note)
    adapter.use_checkpointing(_wants_checkpointing(section.train, adapter))
    count = sum(p.numel() for p in network.parameters().values())
    note(f"{settings.type}: {len(targets)} layers, {count:,} trainable weights")
    if network.caution:
        note(network.caution)
    return network


def _wants_checkpointing(train: Any, adapter: ModelAdapter) -> bool:
    wanted = train.gradient_checkpointing
    # "auto" keeps activations only where memory is certainly no matter; a measured choice comes with the engine.
    on_gpu = next(adapter.network_module.parameters()).device.type == "cuda"
    return on_gpu if wanted == "auto" else wanted


def build_roles(train: Any, network: Network, steps: int) -> dict[str, Role]:
    """The network's weights with the optimizer, schedule and average of a `train:` section."""
    parameters = network.parameters()
    ema = train.ema_config
    role = Role(
        parameters=parameters,
        optimizer=build_optimizer(train.optimizer, parameters.values(), train.lr, train.optimizer_params),
        lr=train.lr,
        schedule=build_schedule(train.lr_scheduler, steps, params=train.lr_scheduler_params, **Course.named_in(train)),
        max_grad_norm=train.max_grad_norm,
        ema=Ema(parameters, ema.ema_decay, ema.use_num_updates) if ema.use_ema else None,
    )
    return {ROLE: role}

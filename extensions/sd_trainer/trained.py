"""What is trained: the network on the model, and what moves its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod
from pathlib import Path

from toolkit.config.datasets_job import DatasetsJob
from toolkit.contracts import ModelAdapter, Network
from toolkit.device import DTYPES
from toolkit.models.families import family_for
from toolkit.models.opening import model_folder
from toolkit.network_kinds import KINDS
from toolkit.networks.formats import ModuleChange, read_network_file
from toolkit.networks.merge import BaseChange, Merge, read_base_loras
from toolkit.networks.targets import chosen_targets
from toolkit.parallel import Team
from toolkit.train.flow_step import ROLE
from toolkit.train.roles import build_role
from toolkit.train.update import Role

logger = logging.getLogger(__name__)


def starting_point(section: DatasetsJob) -> dict[str, ModuleChange] | None:
    """The weights of `network.pretrained_lora_path`; read first, so that a wrong file costs no time."""
    path = section.network.pretrained_lora_path
    if not path:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model))
    return read_network_file(Path(path).expanduser(), layers)


def base_merging(section: DatasetsJob) -> Callable[[], Merge] | None:
    """What merges `model.base_loras` into the model when it is loaded, if there are any.

    The files are read now, so that a wrong one costs no time, and again then: until then they would take memory.
    """
    loras = section.model.base_loras
    if not loras:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model))

    def read() -> list[BaseChange]:
        return read_base_loras(loras, layers)

    for change in read():
        logger.info(f"merged into the model: {change}")
    return lambda: Merge(read())


def attach_network(
    section: DatasetsJob, adapter: ModelAdapter, seed: int, start: dict[str, ModuleChange] | None
) -> Network:
    """The network of a `network:` section on the model, begun at `start` if there is one."""
    settings = section.network
    kind = KINDS[settings.type]
    network_class = kind.load()
    targets = chosen_targets(settings, network_class.candidates(adapter))
    network = network_class.from_config(settings, targets, seed, DTYPES[section.train.dtype])
    network.attach(adapter.network_module)
    network.share_inputs(adapter.shared_inputs())
    if start is not None:
        network.start_from(start)
    if reason := adapter.tabulate():
        logger.info(f"model.modulation_table: not possible here, {reason}")
    parts = network.shared_out()
    count = sum(prod(parts[name].shape if name in parts else p.shape) for name, p in network.parameters().items())
    logger.info(f"{settings.type}: {len(targets)} layers, {count:,} trainable weights")
    if kind.caution:
        logger.info(kind.caution)
    return network


def build_roles(section: DatasetsJob, network: Network, steps: int, seed: int, team: Team) -> dict[str, Role]:
    """The network's weights with the optimizer, schedule and average of a section's `train:`.

    team: the processes that train them together.
    """
    role = build_role(
        section.train,
        network.parameters(),
        steps,
        seed,
        team,
        layer_of=network.layer_of,
        up=network.up_parameters(),
        up_ratio=section.network.loraplus_lr_ratio or 1,
        after_step=network.after_step,
        shared_out=network.shared_out(),
    )
    return {ROLE: role}

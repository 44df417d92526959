"""Builds what is trained: the network on the model, and its optimizer, schedule and EMA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod
from pathlib import Path

from toolkit.config.sections import DiffusionSection
from toolkit.device import DTYPES
from toolkit.distributed import ProcessGroup
from toolkit.interfaces import DiffusionModel, Network
from toolkit.models.families import family_for
from toolkit.models.load import model_folder
from toolkit.network_kinds import KINDS
from toolkit.networks.lora_formats import LayerDelta, load_adapter_file
from toolkit.networks.merge import LoraMerger, LoraToMerge, read_base_loras
from toolkit.networks.targets import select_target_modules
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import build_role

logger = logging.getLogger(__name__)


def load_pretrained_lora(section: DiffusionSection) -> dict[str, LayerDelta] | None:
    """The weights of `network.pretrained_lora_path`; read first, so that a wrong file fails at once."""
    path = section.network.pretrained_lora_path
    if not path:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model))
    return load_adapter_file(Path(path).expanduser(), layers)


def base_merging(section: DiffusionSection) -> Callable[[], LoraMerger] | None:
    """A function that creates the merger of `model.base_loras`, called when the model is loaded; None without any.

    The files are read now, so that a wrong one fails at once, and again when the model is loaded, to save memory.
    """
    loras = section.model.base_loras
    if not loras:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model))

    def read() -> list[LoraToMerge]:
        return read_base_loras(loras, layers)

    for change in read():
        logger.info(f"merged into the model: {change}")
    return lambda: LoraMerger(read())


def attach_network(
    section: DiffusionSection, model: DiffusionModel, seed: int, start: dict[str, LayerDelta] | None
) -> Network:
    """The network of a `network:` section, attached to the model and initialised from `start` if given."""
    settings = section.network
    kind = KINDS[settings.type]
    network_class = kind.load()
    targets = select_target_modules(settings, network_class.trainable_modules(model))
    network = network_class.from_config(settings, targets, seed, DTYPES[section.train.dtype])
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    if start is not None:
        network.load_pretrained(start)
    if reason := model.enable_modulation_cache():
        logger.info(f"model.modulation_table: not possible here, {reason}")
    sharded = network.sharded_params()
    count = sum(prod(sharded[name].shape if name in sharded else p.shape) for name, p in network.parameters().items())
    logger.info(f"{settings.type}: {len(targets)} layers, {count:,} trainable parameters")
    if kind.format_warning:
        logger.info(kind.format_warning)
    return network


def build_roles(
    section: DiffusionSection, network: Network, steps: int, seed: int, process_group: ProcessGroup
) -> dict[str, Role]:
    """The role of the network's parameters, with the optimizer, schedule and EMA of a section's `train:`.

    process_group: the ranks that train them.
    """
    role = build_role(
        section.train,
        network.parameters(),
        steps,
        seed,
        process_group,
        layer_of=network.module_name_of,
        up=network.lora_b_parameters(),
        up_ratio=section.network.loraplus_lr_ratio or 1,
        after_step=network.after_step,
        sharded=network.sharded_params(),
    )
    return {NETWORK: role}

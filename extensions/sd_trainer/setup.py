"""Builds what is trained: the block runner of the model, the network on it, and the role
of its parameters with optimizer, schedule and EMA.

It also loads the LoRA files that a job names: the start of the network, and the files
beside it. It trains nothing and writes no files of a run. `process` calls these
functions, and so do the benchmarks that measure a single step.
"""

from __future__ import annotations

import logging
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from extensions.sd_trainer.rules import weight_file_findings
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.compiling import decide_compiling
from toolkit.memory.offload import BlockSwap
from toolkit.models.families import family_for
from toolkit.models.hub import download_lora
from toolkit.models.loading import model_folder
from toolkit.networks.adapter import check_trained_kind
from toolkit.networks.applied import Changes
from toolkit.networks.lora_formats import LayerDelta, load_adapter_file
from toolkit.networks.targets import select_target_modules
from toolkit.system.device import DTYPES
from toolkit.system.distributed import ProcessGroup
from toolkit.system.distributed_env import read_distributed_env
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.roles import build_role, step_in_backward

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


def build_block_runner(
    section: DiffusionSection,
    model: DiffusionModel,
    device: torch.device,
    against: str = "",
    several: bool = False,
    pinned_blocks: int = 0,
) -> BlockRunner:
    """The block runner of a section, for a model whose network is attached; before it
    the modulation cache. against: `RunPlan.against_compiling`. several:
    `ImageData.has_several`. pinned_blocks: of `MemoryEstimate`."""
    if reason := model.enable_modulation_cache(BlockSwap):
        logger.info(f"model.modulation_table: not possible here, {reason}")
    train = section.train
    qtype = section.model.qtype if section.model.quantize else ""
    sharded = train.parallel == "fsdp" and read_distributed_env().world_size > 1
    against = train.against_compiling() or against
    compiling = None
    if decide_compiling(train.compile, device, qtype, sharded, against):
        compiling = train.compile.for_sizes(several)
    return BlockRunner(
        model,
        device,
        DTYPES[train.dtype],
        train.checkpointing_level(),
        section.model.blocks_to_swap,
        compiling,
        section.network.trains_model,
        pinned_blocks,
    )


def load_pretrained_lora(section: DiffusionSection) -> dict[str, LayerDelta] | None:
    """The weights of `network.pretrained_lora_path` by layer; None without this key.
    Read first, so that a wrong file fails at once."""
    path = section.network.pretrained_lora_path
    if not path:
        return None
    layers = family_for(section.model).every_linear_layer(model_folder(section.model))
    deltas = load_adapter_file(Path(path).expanduser(), layers)
    check_trained_kind(deltas)
    return deltas


def bring_files_beside(section: DiffusionSection) -> None:
    """Downloads the LoRA files beside the network that are on the hub and not here yet.
    Raises UserError where one cannot be had, or is not of this model, whose weights are
    not needed for that."""
    for key, lora in section.files_beside().items():
        name = lora.to_download()
        if not name:
            continue
        file = download_lora(name, key)
        for finding in weight_file_findings(section, key, str(file)):
            if finding.severity == "error":
                raise UserError(f"{key}: {finding.message}")
            logger.warning(f"{key}: {finding.message}")


def load_files_beside(section: DiffusionSection) -> dict[str, tuple[Changes, float]]:
    """The LoRA files beside the network (`DiffusionSection.files_beside`): key -> what
    it changes, and its strength.

    Raises UserError, which names the key, for a file that cannot be read, is of another
    model or changes nothing.
    """
    files = section.files_beside()
    if not files:
        return {}
    family = family_for(section.model)
    folder = model_folder(section.model)
    layers = family.every_linear_layer(folder)
    weights = family.weight_shapes(folder)
    # Several keys may name one file.
    read = cache(
        lambda file: load_adapter_file(Path(file).expanduser(), layers, weights)
    )
    adapters: dict[str, tuple[Changes, float]] = {}
    for key, lora in files.items():
        file = lora.file()
        try:
            changes = read(file)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        if all(change.is_zero for change in changes.values()):
            raise UserError(
                f"{key}: {file} changes no layer: all of its changes are zero. Give another file."
            )
        adapters[key] = changes, lora.multiplier
    return adapters


def attach_network(
    section: DiffusionSection,
    model: DiffusionModel,
    seed: int,
    start: dict[str, LayerDelta] | None,
) -> Network:
    """The network of a `network:` section, attached to the model and initialised from
    `start` if given. Logs the number of its layers and of its trainable parameters."""
    settings = section.network
    kind = KINDS[settings.type]
    network_class = kind.load()
    targets = select_target_modules(
        settings,
        network_class.trainable_modules(model),
        "" if kind.trains_model else model.family.lora_layers,
    )
    network = network_class.from_config(
        settings, targets, seed, DTYPES[section.train.dtype]
    )
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    network.cast_by_block(model.blocks())
    if start is not None:
        network.load_pretrained(start)
    sharded = network.sharded_params()
    count = sum(
        prod(sharded[name].shape if name in sharded else p.shape)
        for name, p in network.parameters().items()
    )
    logger.info(
        f"{settings.type}: {len(targets)} layers, {count:,} trainable parameters"
    )
    return network


def build_roles(
    section: DiffusionSection,
    network: Network,
    steps: int,
    seed: int,
    process_group: ProcessGroup,
) -> dict[str, Role]:
    """The role of the network's parameters, with the optimizer, schedule and EMA of a
    section's `train:`, by its only key NETWORK.

    steps: optimizer steps of the run, for the schedule. process_group: the ranks that
    train them.
    """
    role = build_role(
        section.train,
        network.parameters(),
        steps,
        seed,
        process_group,
        section.train.ema_config,
        up=network.lora_b_parameters(),
        up_ratio=section.network.loraplus_lr_ratio or 1,
        after_step=network.after_step,
        sharded=network.sharded_params(),
        buffers=network.buffers(),
        stochastic_rounding=section.train.full_bf16,
    )
    if section.train.fused_backward_pass and not role.sharded:
        several = section.micro_batches_per_step > 1 or bool(
            section.train.preservations()
        )
        role.optimizer_step = step_in_backward(role, accumulates=several)
    return {NETWORK: role}

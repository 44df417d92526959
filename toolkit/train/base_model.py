"""Loads the model of a `model:` section as it is trained and used: merged with its base
LoRAs, quantized with its recovery adapter, some of its blocks in the CPU memory.

This module combines the keys of the section; `toolkit.models.loading` reads the
weights, and `toolkit.memory.quantization` quantizes them. It attaches no network.
Called by the trainer (`extensions.sd_trainer.process`), by `other_model`, and by the
tools that generate images or encode a dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import torch

from toolkit.config.sections.model import AUTO_RANK, ModelConfig
from toolkit.contracts.model import DiffusionModel
from toolkit.errors import UserError
from toolkit.files.tensor_cache import key_of
from toolkit.files.writing import CACHE_FOLDER, sha256_of
from toolkit.memory.offload import swapped_blocks
from toolkit.memory.quantization import (
    DEFAULT_RECOVERY_QTYPE,
    LowRank,
    MakeLowRank,
    quantizer,
)
from toolkit.memory.quantized_products import check_products
from toolkit.memory.stored_blocks import describe, restore
from toolkit.models.families import BlockTransform, family_for, kept_bytes, kept_label
from toolkit.models.hub import download_file
from toolkit.models.kept import Kept
from toolkit.models.loading import Quantizer, load_model, model_folder, part_hash
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.networks.merge import LoraMerger, LoraToMerge, read_base_loras
from toolkit.train.recovery import RecoveryMaker, auto_file

logger = logging.getLogger(__name__)

RECOVERY = "model.accuracy_recovery_adapter"
MERGED = "model.base_loras"


QUANTIZING = 1
"""Version of the rule by which blocks are quantized and kept: what changes the numbers
adds 1."""


def load_base_model(
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    weights_dtype: torch.dtype | None = None,
    block_sharing: BlockTransform | None = None,
    training_folder: str = "output",
    make: MakeLowRank | None = None,
    decoder: Path | None = None,
    keep: bool = False,
    maps: bool = True,
) -> DiffusionModel:
    """The model of a section with all that its keys ask for; its parts are loaded on
    first use. As `load_model`.

    training_folder: whose cache has, or gets, the recovery adapter of `auto` and the
    quantized transformer. make: makes the recovery adapter. decoder: see
    `ModelLoadOptions`. keep: whether the quantized transformer is read from the cache,
    or put there, if `model.keep_quantized` says so. maps: whether blocks of it that
    wait may be mapped; not where something writes to their weights.
    """
    if model.quantized_products:
        check_products(model.quantized_products, device)
    cache = Path(training_folder).expanduser() / CACHE_FOLDER
    stored_dtype = weights_dtype or dtype
    kept_model = None
    if keep and make is None and block_sharing is None and model.keeps_quantized():
        name = kept_name(model, stored_dtype, device.type)
        kept_model = Kept(
            cache,
            name,
            kept_bytes(model, stored_dtype.itemsize),
            kept_label(model),
            describe,
            restore,
            maps,
        )

    def quantizing() -> Quantizer | None:
        if make:
            return partial(quantizer, make=make)
        if model.makes_recovery():
            return _auto_quantizer(model, stored_dtype, cache)
        return block_quantizer(model)

    is_there = kept_model is not None and kept_model.is_there()
    merge_fn: Callable[[], LoraMerger] | None
    merge_fn = (
        partial(_merging, model)
        if is_there and model.base_loras
        else base_merging(model)
    )
    return load_model(
        model,
        device,
        dtype,
        quantizer,
        weights_dtype=weights_dtype,
        merge_fn=merge_fn,
        block_quantizer=partial(_Later, quantizing) if is_there else quantizing(),
        cpu_blocks=cpu_block_indices(model),
        block_sharing=block_sharing,
        decoder=decoder,
        kept=kept_model,
    )


class _Later:
    """A transform of blocks that is made when the first block comes: it reads files
    that a kept model does not need."""

    def __init__(self, quantizing: Callable[[], Quantizer | None], qtype: str) -> None:
        self._quantizing = quantizing
        self._qtype = qtype
        self._transform: BlockTransform | None = None

    def __call__(self, block: torch.nn.Module, name: str) -> None:
        if self._transform is None:
            make = self._quantizing() or quantizer
            self._transform = make(self._qtype)
        self._transform(block, name)


def _merging(model: ModelConfig) -> LoraMerger:
    merging = base_merging(model)
    assert merging is not None  # the model has base LoRAs
    return merging()


def kept_name(model: ModelConfig, dtype: torch.dtype, device: str) -> str:
    """The name of the entry with the quantized transformer of a section: it says what
    its bits were made from. dtype: of its weights. device: type of the one that
    quantizes.

    Raises UserError where the model or a file that is merged into it is not there.
    """
    family = family_for(model)
    recovery = model.accuracy_recovery_adapter
    if recovery == "auto":
        recovery = f"auto {AUTO_RANK}"
    elif recovery:
        path = (
            Path(recovery).expanduser()
            if model.recovery_is_path()
            else download_file(recovery, RECOVERY)
        )
        recovery = _hash_of(path, RECOVERY)
    key = key_of(
        rule=QUANTIZING,
        libraries=[version("torch"), version("optimum-quanto")],
        arch=family.arch,
        weights=part_hash(model, family.trained_part),
        qtype=model.qtype,
        dtype=str(dtype),
        device="cpu" if model.low_vram else device,
        merged=[
            [_hash_of(Path(lora.path).expanduser(), MERGED), lora.multiplier]
            for lora in model.base_loras
        ],
        recovery=recovery,
        **({"products": model.quantized_products} if model.quantized_products else {}),
    )
    return f"{model.qtype}_{key[:32]}"


def _hash_of(path: Path, key: str) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{key}: {path}: cannot be read: {error.strerror or error}."
        ) from error


def block_quantizer(model: ModelConfig) -> Quantizer | None:
    """The quantizer of the transformer's blocks, with its recovery adapter; None when
    they are not quantized.

    Logs the recovery adapter. Raises UserError when its file cannot be used.
    """
    if not model.quantize:
        return None
    layers = family_for(model).linear_layers(model_folder(model))
    recovery = _recovery(model, layers) if model.accuracy_recovery_adapter else None
    return partial(
        quantizer, recovery=recovery, products=model.quantized_products or None
    )


def _auto_quantizer(model: ModelConfig, dtype: torch.dtype, cache: Path) -> Quantizer:
    """The quantizer with the recovery adapter of the cache, or with one that is made
    now and put there."""
    file = auto_file(model, dtype, cache)
    if file.is_file():
        with_recovery = block_quantizer(
            model.model_copy(update={"accuracy_recovery_adapter": str(file)})
        )
        assert with_recovery is not None  # the model is quantized
        return with_recovery
    logger.info(
        f"{RECOVERY} auto: making one of rank {AUTO_RANK} for {model.qtype} ({file})"
    )

    def keep(maker: RecoveryMaker) -> None:
        means = [fmean(column) for column in zip(*maker.errors.values(), strict=True)]
        logger.info(
            f"accuracy-recovery adapter: mean error of a weight {means[0]:.4f} -> {means[1]:.4f}"
        )
        maker.write(file, {"qtype": model.qtype, "base_model": model.public_name()})

    count = len(family_for(model).linear_layers(model_folder(model)))
    return partial(
        quantizer, make=RecoveryMaker(AUTO_RANK, expected=count, complete=keep)
    )


def _recovery(
    model: ModelConfig, layers: dict[str, tuple[int, int]]
) -> dict[str, LowRank]:
    """The low-rank deltas of the recovery adapter's file by full layer name; of layers
    that are not quantized none."""
    name = model.accuracy_recovery_adapter
    assert name is not None  # only called with a recovery adapter
    path = (
        Path(name).expanduser()
        if model.recovery_is_path()
        else download_file(name, RECOVERY)
    )
    loaded = load_adapter_file(
        path, family_for(model).every_linear_layer(model_folder(model))
    )
    changes = {target: change for target, change in loaded.items() if target in layers}
    if not changes:
        raise UserError(
            f"{RECOVERY}: {path.name} changes no layer of this model's blocks."
        )
    recovery = {}
    for target, change in changes.items():
        if change.low_rank is None or change.needs_base or change.bias is not None:
            raise UserError(f"{RECOVERY}: {path.name} is not a plain LoRA ({target}).")
        recovery[target] = change.low_rank
    rest = len(layers) - len(recovery)
    outside = len(loaded) - len(changes)
    more = ""
    if rest and model.qtype != DEFAULT_RECOVERY_QTYPE:
        more += f"; the other {rest} are {DEFAULT_RECOVERY_QTYPE}"
    if outside:
        more += f"; {outside} in it are left out, as they are not quantized"
    logger.info(
        f"accuracy-recovery adapter {path.name}: added to {len(recovery)} layers of {model.qtype}, "
        f"never trained and never saved{more}"
    )
    return recovery


def cpu_block_indices(model: ModelConfig) -> frozenset[int]:
    """Indices of the blocks that `blocks_to_swap` keeps in the CPU memory; empty
    without it. Otherwise the model's folder is read for the number of its blocks."""
    count = model.blocks_to_swap
    if not count:
        return frozenset()
    return frozenset(
        swapped_blocks(count, family_for(model).block_count(model_folder(model)))
    )


def base_merging(model: ModelConfig) -> Callable[[], LoraMerger] | None:
    """A function that creates the merger of `base_loras`, called when the model is
    loaded; None without any.

    The files are read now, so that a wrong one fails at once, and again when the model
    is loaded, to save memory.
    """
    loras = model.base_loras
    if not loras:
        return None
    layers = family_for(model).every_linear_layer(model_folder(model))

    def read() -> list[LoraToMerge]:
        return read_base_loras(loras, layers)

    for change in read():
        logger.info(f"merged into the model: {change}")
    return lambda: LoraMerger(read())

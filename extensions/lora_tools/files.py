"""What the tools share: LoRA files read with the layers of their model, and written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from extensions.lora_tools.config import RankConfig
from toolkit.config.model import ModelConfig
from toolkit.device import DTYPES
from toolkit.errors import RunError, UserError
from toolkit.models.families import family_for
from toolkit.networks.adapter import FILE_PREFIX
from toolkit.networks.lora_export import AdapterFile, LayerShapes, read_adapter
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.svd import extract_lora, extract_lora_from_delta, within_share
from toolkit.registry import FAMILIES

logger = logging.getLogger(__name__)


def known_layers(model: Path | None) -> dict[str, LayerShapes]:
    """The linear layers of a model folder, or of the published models; by a name for messages."""
    if model is not None:
        family = family_for(ModelConfig(name_or_path=str(model)))
        return {str(model): family.every_linear_layer(model)}
    found = {}
    for arch in FAMILIES:
        family = FAMILIES.load(arch)
        if family.published:
            found[family.title] = family.every_linear_layer(Path(family.published[0]))
    return found


def read_lora(file: str, model: Path | None) -> AdapterFile:
    """A LoRA file of a model folder, or of a published model of any size. Raises UserError as `read_adapter`."""
    path = Path(file).expanduser()
    try:
        return read_adapter(path, known_layers(model))
    except UserError as error:
        if model is not None or "this model" not in str(error):
            raise
        raise UserError(f"{error} Give the folder of its model by 'model' (--model) where it is another.") from error


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a LoRA file, atomically. Raises RunError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be made ({error.strerror}).") from error
    write_safetensors_verified(path, tensors, metadata)


def write_lowrank(section: RankConfig, changes: Mapping[str, LayerDelta | Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the nearest LoRA to changes of weights, given as such or whole [O, I], and reports its errors."""
    tensors: dict[str, Tensor] = {}
    ranks: list[int] = []
    dropped = total = 0.0
    dtype = DTYPES[section.dtype]
    for name, change in changes.items():
        most = section.rank or min(change.shape)
        if isinstance(change, LayerDelta):
            refuse_dora(name, change)
            up, down, error = extract_lora(change, most)
            norm = float(change.delta().double().norm())
        else:
            up, down, error = extract_lora_from_delta(change, most)
            norm = float(change.double().norm())
        if section.share:
            up, down, error = within_share(up, down, error, section.share)
        ranks.append(len(down))
        dropped, total = dropped + (error * norm) ** 2, total + norm**2
        stem = f"{FILE_PREFIX}{name}"
        tensors |= {
            f"{stem}.lora_A.weight": down.to(dtype).contiguous(),
            f"{stem}.lora_B.weight": up.to(dtype).contiguous(),
            f"{stem}.alpha": torch.tensor(float(len(down))),
        }
    write_lora(section.output_path(), tensors, metadata)
    of_ranks = f"rank {min(ranks)}" if len(set(ranks)) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
    error = (dropped / total) ** 0.5 if total else 0.0
    logger.info(f"{section.output}: {len(ranks)} layers, {of_ranks}; relative error of the change {error:.2e}")


def refuse_dora(name: str, change: LayerDelta) -> None:
    """Raises UserError for a DoRA: what it changes depends on the weights it is used with."""
    if change.magnitude is not None:
        remedy = "Merge it into its model, then extract a LoRA."
        raise UserError(f"{name} is a DoRA, whose change depends on the model's weights. {remedy}")

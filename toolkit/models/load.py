"""From a `model:` section to the model of its family: finds the folder, or downloads it from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config.model import ModelConfig
from toolkit.config.model_files import files_fault, looks_like_a_path, path_fault
from toolkit.errors import UserError
from toolkit.interfaces import DiffusionModel
from toolkit.models.families import family_for
from toolkit.models.family import ModelFamily
from toolkit.models.hub import download, fetch_index
from toolkit.models.load_options import BlockTransform, ModelLoadOptions

if TYPE_CHECKING:
    import torch

Quantizer = Callable[[str], BlockTransform]
"""From a `model.qtype` to a function that quantizes a block's linear layers in place."""


def load_model(
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantizer: Quantizer,
    weights_dtype: torch.dtype | None = None,
    merge_fn: Callable[[], BlockTransform] | None = None,
    block_quantizer: Quantizer | None = None,
    cpu_blocks: frozenset[int] = frozenset(),
    block_sharing: BlockTransform | None = None,
) -> DiffusionModel:
    """The model of a `model:` section; its parts are loaded on first use.

    weights_dtype: dtype of the trained module's weights, where it is not the compute dtype `dtype`.
    merge_fn, cpu_blocks: see `ModelLoadOptions`. block_quantizer: for the blocks of the trained module, where it is not
    `quantizer`. block_sharing: shards each block over the ranks; without quantization and modulation cache.
    Raises UserError when the folder is missing, is not a model, or is of another family than `arch`.
    """
    folder = model_folder(model)
    family = family_for(model)
    options = ModelLoadOptions(
        folder=folder,
        device=device,
        dtype=dtype,
        weights_dtype=weights_dtype,
        match_target_res=model.model_kwargs.match_target_res,
        merge_fn=merge_fn,
        modulation_table=_wants_table(model, device) and block_sharing is None,
        transform_block=(block_quantizer or quantizer)(model.qtype) if model.quantize else block_sharing,
        transform_text_block=quantizer(model.qtype_te) if model.quantize_te else None,
        cpu_blocks=cpu_blocks,
        text_encoder_cache_tag=model.qtype_te if model.quantize_te else "",
        low_vram=model.low_vram,
    )
    return family.open(options)


def _wants_table(model: ModelConfig, device: torch.device) -> bool:
    wanted = model.modulation_table
    return device.type == "cuda" if wanted == "auto" else wanted


def model_folder(model: ModelConfig) -> Path:
    """The local folder of `model.name_or_path`: itself, or the hub's snapshot.

    Raises UserError when it is not there, is of another family, or lacks a part. Of a hub model nothing but its
    model_index.json is brought before its family is known.
    """
    name = model.name_or_path
    folder = Path(name).expanduser()
    if folder.is_dir() or looks_like_a_path(name):
        fault = path_fault(name)
    else:
        checked_family(model)
        folder = download(name, model.revision)
        fault = files_fault(name, folder)
    if fault:
        raise UserError(f"model.name_or_path: {fault}")
    return folder


def checked_family(model: ModelConfig) -> ModelFamily:
    """`family_for` once the model's own files have said so: of a hub model, model_index.json is brought if need be.

    For a process that is about to begin: it ends here, with a UserError, where the model is of another family.
    """
    name = model.name_or_path
    if not looks_like_a_path(name) and not Path(name).is_dir():
        fetch_index(name, model.revision)
    return family_for(model)

"""From a `model:` section to the adapter of its family: finds the folder, or brings it from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.model import looks_like_a_path
from toolkit.contracts import ModelAdapter
from toolkit.errors import UserError
from toolkit.models.families import ADAPTERS, family_for
from toolkit.models.hub import download
from toolkit.models.options import AdapterOptions, BlockTransform

if TYPE_CHECKING:
    import torch

Quantizer = Callable[[str], BlockTransform]
"""From a `model.qtype` to what quantizes a block's linears in place."""


def open_adapter(
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    quantizer: Quantizer,
    note: Callable[[str], None] = print,
) -> ModelAdapter:
    """The adapter for a `model:` section; nothing is loaded until it is used.

    Raises UserError when the folder is missing, is no model, or is of another family than `arch` says.
    """
    family = family_for(model)
    folder = model_folder(model, note)
    options = AdapterOptions(
        folder=folder,
        device=device,
        dtype=dtype,
        match_target_res=model.model_kwargs.match_target_res,
        transform_block=quantizer(model.qtype) if model.quantize else None,
        transform_text_block=quantizer(model.qtype_te) if model.quantize_te else None,
        text_variant=model.qtype_te if model.quantize_te else "",
        low_vram=model.low_vram,
    )
    return ADAPTERS.load(family.adapter)(options)


def model_folder(model: Any, note: Callable[[str], None]) -> Path:
    """The local folder of `model.name_or_path`: itself, or the hub's snapshot."""
    folder = Path(model.name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"model.name_or_path: {folder} holds no model_index.json; it is no diffusers model folder.")
        return folder
    if looks_like_a_path(model.name_or_path) or model.name_or_path.count("/") != 1:
        raise UserError(f"model.name_or_path: {folder} does not exist (working directory: {Path.cwd()}).")
    return download(model.name_or_path, model.revision, note)

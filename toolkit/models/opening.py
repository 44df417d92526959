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
    weights_dtype: torch.dtype | None = None,
    merging: Callable[[], BlockTransform] | None = None,
    block_quantizer: Quantizer | None = None,
    on_host: frozenset[int] = frozenset(),
    block_sharing: BlockTransform | None = None,
) -> ModelAdapter:
    """The adapter for a `model:` section; nothing is loaded until it is used.

    weights_dtype: of the trained module's weights, where it is not `dtype`, that of the computation.
    merging, on_host: see `AdapterOptions`. block_quantizer: for the blocks of the trained module, where it is not
    `quantizer`. block_sharing: leaves a share of each block here; its weights are then not quantized, and no table
    stands for a part of them.
    Raises UserError when the folder is missing, is no model, or is of another family than `arch` says.
    """
    family = family_for(model)
    folder = model_folder(model, note)
    options = AdapterOptions(
        folder=folder,
        device=device,
        dtype=dtype,
        weights_dtype=weights_dtype,
        match_target_res=model.model_kwargs.match_target_res,
        merging=merging,
        modulation_table=_wants_table(model, device) and block_sharing is None,
        transform_block=(block_quantizer or quantizer)(model.qtype) if model.quantize else block_sharing,
        transform_text_block=quantizer(model.qtype_te) if model.quantize_te else None,
        on_host=on_host,
        text_variant=model.qtype_te if model.quantize_te else "",
        low_vram=model.low_vram,
    )
    return ADAPTERS.load(family.adapter)(options)


def _wants_table(model: Any, device: torch.device) -> bool:
    wanted = model.modulation_table
    return device.type == "cuda" if wanted == "auto" else wanted


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

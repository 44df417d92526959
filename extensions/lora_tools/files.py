"""What the tools share: LoRA files read with the layers of their model, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from toolkit.config.model import ModelConfig
from toolkit.errors import RunError, UserError
from toolkit.models.families import family_for
from toolkit.networks.lora_export import AdapterFile, LayerShapes, read_adapter
from toolkit.networks.save import write_safetensors_verified
from toolkit.registry import FAMILIES


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

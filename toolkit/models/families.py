"""Which model families exist and how to tell which one a model folder holds. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toolkit.contracts import Size
from toolkit.errors import UserError, did_you_mean
from toolkit.models.footprint import Footprint
from toolkit.models.qwen_edit.prompt_length import SURE_PROMPT
from toolkit.registry import Registry


@dataclass(frozen=True)
class ModelFamily:
    """The facts about a family that planning needs before anything is loaded."""

    arch: str
    """Its name in `model.arch`."""

    adapter: str
    """Its name in `ADAPTERS`, `LINEAR_LAYERS`, `EVERY_LINEAR_LAYER`, `MODULES`, `BLOCK_COUNT` and `FOOTPRINTS`."""

    size_multiple: int
    """Training widths and heights are multiples of this many pixels."""

    max_references: int
    """Reference images one item may have."""

    sure_prompt: int
    """Letters of a prompt that fits into the model whatever the pictures beside it."""

    trained_part: str = "transformer"
    """Subfolder of a model folder that holds what is trained."""

    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        """The layers a LoRA can adapt, full name -> (inputs, outputs), from the model's config files alone."""
        return LINEAR_LAYERS.load(self.adapter)(folder)

    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        """`linear_layers` and the others of the trained part, which a file may change all the same."""
        return EVERY_LINEAR_LAYER.load(self.adapter)(folder)

    def modules(self, folder: Path) -> dict[str, int]:
        """Every module of the trained part that has weights of its own, full name -> their number."""
        return MODULES.load(self.adapter)(folder)

    def prompt_fault(self, model: ModelSection, prompt: str, target: Size, references: Sequence[Size]) -> str | None:
        """What is wrong with a prompt that is too long for a target of this size with these references, or None.

        Also None where that cannot be known yet, because the model's tokenizer is not on the disk.
        """
        folder = Path(model.name_or_path).expanduser()
        match_target = model.model_kwargs.match_target_res
        return PROMPT_FAULTS.load(self.adapter)(folder, prompt, target, references, match_target)

    def block_count(self, folder: Path) -> int:
        """Repeated blocks of the trained part."""
        return BLOCK_COUNT.load(self.adapter)(folder)

    def footprint(self, folder: Path) -> Footprint:
        """What of the whole model takes memory, from its config files and the headers of its weights alone."""
        return FOOTPRINTS.load(self.adapter)(folder)


FAMILIES = {
    "qwen_image_edit_plus": ModelFamily(
        arch="qwen_image_edit_plus", adapter="qwen_edit", size_multiple=32, max_references=3, sure_prompt=SURE_PROMPT
    ),
}

_IMPLEMENTATION = "https://github.com/QwenLM/Qwen-Image"

MODELSPEC = {
    "qwen_image": ("Qwen-Image", _IMPLEMENTATION),
    "qwen_image_edit": ("Qwen-Image-Edit", _IMPLEMENTATION),
    "qwen_image_edit_plus": ("Qwen-Image-Edit-Plus", _IMPLEMENTATION),
}
"""arch -> (`modelspec.architecture` as musubi-tuner writes it, `modelspec.implementation`) in a file's metadata."""

ADAPTERS = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.adapter:QwenEditAdapter"})
LINEAR_LAYERS = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.estimate:linear_layers"})
EVERY_LINEAR_LAYER = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.estimate:every_linear_layer"})
MODULES = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.estimate:modules"})
BLOCK_COUNT = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.estimate:block_count"})
PROMPT_FAULTS = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.prompt_length:prompt_fault"})
FOOTPRINTS = Registry("model adapter", {"qwen_edit": "toolkit.models.qwen_edit.footprint:footprint"})

ARCH_OF_PIPELINE = {
    "QwenImageEditPlusPipeline": "qwen_image_edit_plus",
    "QwenImageEditPipeline": "qwen_image_edit",
    "QwenImagePipeline": "qwen_image",
}
"""`_class_name` in a model folder's model_index.json -> arch."""

DEFAULT_ARCH = "qwen_image_edit_plus"


class ModelSection(Protocol):
    """The keys of the `model:` section that decide the family."""

    name_or_path: str
    arch: str | None
    model_kwargs: Any


def arch_of_folder(folder: Path) -> str | None:
    """The arch a local diffusers folder says it is, or None when it holds no model_index.json."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        class_name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not readable ({error}). Copy or download the model again.") from error
    if class_name not in ARCH_OF_PIPELINE:
        raise UserError(f"{index}: pipeline {class_name!r} is not a model family this program trains.")
    return ARCH_OF_PIPELINE[class_name]


def family_for(model: ModelSection) -> ModelFamily:
    """The family of a `model:` section, from the model's own files or from `arch`.

    Raises UserError when the two contradict each other or the family is not supported.
    """
    found = arch_of_folder(Path(model.name_or_path).expanduser())
    wanted = model.arch
    if found and wanted and found != wanted:
        raise UserError(f"model.arch: {wanted!r}, but the files in {model.name_or_path} are {found!r}. Remove arch.")
    arch = found or wanted or DEFAULT_ARCH
    if arch not in FAMILIES:
        raise UserError(f"model.arch: {arch!r} is not supported yet. {did_you_mean(arch, FAMILIES)}")
    return FAMILIES[arch]

"""Which model families exist and how to tell which one a model folder holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toolkit.config.model_files import (
    ARCH_OF_PIPELINE,
    INDEX,
    cached_snapshot,
    index_fault,
    local_index,
    looks_like_a_path,
    pipeline_of,
)
from toolkit.config.process import JobContext
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
        index = local_index(model.name_or_path, model.revision)
        if index is None:
            return None
        match_target = model.model_kwargs.match_target_res
        return PROMPT_FAULTS.load(self.adapter)(index.parent, prompt, target, references, match_target)

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

DEFAULT_ARCH = "qwen_image_edit_plus"


class ModelSection(Protocol):
    """The keys of the `model:` section that decide the family."""

    name_or_path: str
    revision: str | None
    arch: str | None
    model_kwargs: Any


def arch_of(model: ModelSection) -> str | None:
    """The arch that the model's files say it is, of a hub id those in the hub cache; None when they are not here."""
    index = local_index(model.name_or_path, model.revision)
    if index is None:
        return None
    if fault := index_fault(model.name_or_path, index):
        raise UserError(f"model.name_or_path: {fault}")
    return ARCH_OF_PIPELINE[pipeline_of(index)]


def family_for(model: ModelSection) -> ModelFamily:
    """The family of a `model:` section, from the model's own files or from `arch`.

    Raises UserError when the two contradict each other or the family is not supported.
    """
    found = arch_of(model)
    wanted = model.arch
    if found and wanted and found != wanted:
        raise UserError(f"model.arch: {wanted!r}, but the files of {model.name_or_path} are {found!r}. Remove arch.")
    arch = found or wanted or DEFAULT_ARCH
    if arch not in FAMILIES:
        raise UserError(f"model.arch: {arch!r} is not supported yet. {did_you_mean(arch, FAMILIES)}")
    return FAMILIES[arch]


def yet_to_come(model: ModelSection, job: JobContext) -> Iterator[str]:
    """A line for the plan where the model's files are not here, so that a dry run cannot look at them."""
    name, revision = model.name_or_path, model.revision
    if looks_like_a_path(name) or Path(name).is_dir() or Path(name).resolve() in job.earlier_outputs:
        return
    if cached_snapshot(name, revision):
        return
    if local_index(name, revision):
        yield f"{name} is not complete in the hub cache: the run downloads the rest"
    else:
        yield f"{name} is not in the hub cache: the run downloads it once its {INDEX} says that it can be trained"

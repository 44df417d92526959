"""The interface to a model family before anything is loaded. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.interfaces import DiffusionModel, ModelFacts
from toolkit.models.size_info import ModelSizeInfo
from toolkit.registry import load_object

if TYPE_CHECKING:
    from toolkit.models.load_options import ModelLoadOptions


class ModelFamily(ModelFacts, ABC):
    """A family's facts, one object for each; `toolkit.registry.FAMILIES` lists them.

    folder: always that of a model, in diffusers layout; where it is not here yet, sizes are those of the published
    model. Raises UserError naming the file that cannot be read.
    """

    model_class: str
    """Its `DiffusionModel`, as "module:Class"; imported when a model is loaded."""

    def open(self, options: ModelLoadOptions) -> DiffusionModel:
        """The model in a folder; its parts are loaded on first use."""
        return load_object(self.model_class)(options)

    @abstractmethod
    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        """The layers a LoRA can adapt, full name -> (inputs, outputs), from the model's config files alone."""

    @abstractmethod
    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        """`linear_layers` and the other linear layers of the trained part, which a LoRA file may contain."""

    @abstractmethod
    def modules(self, folder: Path) -> dict[str, int]:
        """Every module of the trained part with its own parameters, full name -> their number."""

    @abstractmethod
    def block_count(self, folder: Path) -> int:
        """Repeated blocks of the trained part."""

    @abstractmethod
    def footprint(self, folder: Path) -> ModelSizeInfo:
        """Sizes of the whole model, from its config files and the headers of its weights alone."""

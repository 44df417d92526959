"""`type: extract`: the difference of two models as a LoRA."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from extensions.tools.lora_tools.config import ExtractConfig
from extensions.tools.lora_tools.files import number_type, write_lowrank
from extensions.tools.shared.run_job import BASE_MODEL
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import UserError
from toolkit.models.families import family_for
from toolkit.models.loading import ShardReader

logger = logging.getLogger(__name__)


class ExtractProcess(BaseExtensionProcess):
    """Reads both models one layer at a time."""

    section: ExtractConfig

    def run(self) -> None:
        super().run()
        section = self.section
        base = section.base_folder()
        tuned = Path(section.tuned).expanduser()
        family = family_for(ModelConfig(name_or_path=str(base)))
        layers = family.every_linear_layer(base)
        with ExitStack() as stack:
            readers = []
            for folder in (base, tuned):
                readers.append(ShardReader(folder / family.trained_part, stack))
            if readers[0].names != readers[1].names:
                name = min(readers[0].names ^ readers[1].names)
                raise UserError(
                    f"base and tuned are not models of one shape: only one of them has {name}."
                )
            weights = readers[1].names & {f"{name}.weight" for name in layers}
            dtype = number_type(section.dtype, map(readers[1].dtype_of, weights))
            changes = Differences(readers, layers)
            name = ModelConfig(name_or_path=section.base or str(base)).public_name()
            metadata = {
                "extracted_from": f"{tuned.name} - {base.name}",
                BASE_MODEL: name,
            }
            write_lowrank(section, changes.of_layers(), metadata, dtype)
            others = changes.others()
        if others:
            logger.warning(
                f"{others} tensors besides (biases, norms) differ too: a LoRA cannot hold them."
            )


class Differences:
    """What differs between two models."""

    def __init__(
        self, readers: list[ShardReader], layers: Mapping[str, tuple[int, int]]
    ) -> None:
        self._readers = readers
        self._weights = {f"{name}.weight": name for name in layers}

    def of_layers(self) -> Iterator[tuple[str, Tensor]]:
        """(name, change [O, I] in float32) of each linear layer that differs. Raises
        UserError where none does."""
        any_differs = False
        for weight, name in self._weights.items():
            if weight in self._readers[0].names:
                change = self._change(weight)
                if change is not None:
                    any_differs = True
                    yield name, change
        if not any_differs:
            raise UserError(
                "base and tuned are the same in every linear layer: there is nothing to extract."
            )

    def others(self) -> int:
        """How many of the tensors that are left differ."""
        return sum(
            self._change(name) is not None for name in sorted(self._readers[0].names)
        )

    def _change(self, name: str) -> Tensor | None:
        base, tuned = (reader.take(name) for reader in self._readers)
        if base.shape != tuned.shape:
            raise UserError(
                f"{name} has the shape {list(base.shape)} in base, {list(tuned.shape)} in tuned."
            )
        if torch.equal(base, tuned):
            return None
        return tuned.float() - base.float()

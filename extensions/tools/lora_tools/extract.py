"""`type: extract`: writes the difference of two models as a LoRA.

Both models are read one layer at a time, so that neither has to fit into memory. Only
linear layers become a LoRA: other tensors that differ are counted and reported. The
rank is chosen and the file written by `files.write_lowrank`. `process` exports the
class for the table of tools.
"""

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
    """Reads both models one layer at a time.

    Example::

        python run.py extract a.safetensors --base base --tuned tuned --rank 16
    """

    section: ExtractConfig

    def run(self) -> None:
        super().run()
        section = self.section
        base = section.base_folder()
        tuned = Path(section.tuned).expanduser()
        family = family_for(ModelConfig(name_or_path=str(base)))
        layers = family.every_linear_layer(base)
        with ExitStack() as stack:
            readers = [
                ShardReader(folder / family.trained_part, stack)
                for folder in (base, tuned)
            ]
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
    """The differences of two models.

    Example::

        differences = Differences([base, tuned], family.every_linear_layer(folder))
        for name, change_OI in differences.of_layers():
            print(name, float(change_OI.norm()))
    """

    def __init__(
        self, readers: list[ShardReader], layers: Mapping[str, tuple[int, int]]
    ) -> None:
        self._readers = readers
        self._weights = {f"{name}.weight": name for name in layers}

    def of_layers(self) -> Iterator[tuple[str, Tensor]]:
        """Name and change [O, I], float32, of each linear layer that differs. Raises
        UserError where no layer differs."""
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
        """The number of other tensors that differ."""
        count = 0
        for name in sorted(self._readers[0].names):
            if self._change(name) is not None:
                count += 1
        return count

    def _change(self, name: str) -> Tensor | None:
        base, tuned = (reader.take(name) for reader in self._readers)
        if base.shape != tuned.shape:
            raise UserError(
                f"{name} has the shape {list(base.shape)} in base, {list(tuned.shape)} in tuned."
            )
        if torch.equal(base, tuned):
            return None
        return tuned.float() - base.float()

"""`type: extract`: writes the difference of two models as a LoRA.

Both models are read one layer at a time, so that neither has to fit into memory. Only
linear layers become a LoRA: other tensors that differ are counted and reported. The
rank is chosen and the file written by `files.write_lowrank`. `process` exports the
class for the table of tools.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
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
            before, after = (
                ShardReader(folder / family.trained_part, stack)
                for folder in (base, tuned)
            )
            if before.names != after.names:
                name = min(before.names ^ after.names)
                raise UserError(
                    f"base and tuned are not models of one shape: only one of them has {name}."
                )

            def change_of(name: str) -> Tensor | None:
                """float32; None where both are equal."""
                old, new = before.take(name), after.take(name)
                if old.shape != new.shape:
                    raise UserError(
                        f"{name} has the shape {list(old.shape)} in base, {list(new.shape)} in tuned."
                    )
                return None if torch.equal(old, new) else new.float() - old.float()

            weights = {f"{layer}.weight": layer for layer in layers}
            in_files = [weight for weight in weights if weight in before.names]
            dtype = number_type(section.dtype, map(after.dtype_of, in_files))
            public = ModelConfig(name_or_path=section.base or str(base)).public_name()
            metadata = {
                "extracted_from": f"{tuned.name} - {base.name}",
                BASE_MODEL: public,
            }
            changes = ((weights[name], change_of(name)) for name in in_files)
            write_lowrank(section, _that_differ(changes), metadata, dtype, layers)
            others = sum(
                change_of(name) is not None for name in before.names - weights.keys()
            )
        if others:
            logger.warning(
                f"{others} tensors besides (biases, norms) differ too: a LoRA cannot hold them."
            )


def _that_differ(
    changes: Iterable[tuple[str, Tensor | None]],
) -> Iterator[tuple[str, Tensor]]:
    """The layers that differ. Raises UserError where none does."""
    any_differs = False
    for name, change_OI in changes:
        if change_OI is not None:
            any_differs = True
            yield name, change_OI
    if not any_differs:
        raise UserError(
            "base and tuned are the same in every linear layer: there is nothing to extract."
        )

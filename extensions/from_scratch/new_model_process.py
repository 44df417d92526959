"""Writes model folders with random weights: tiny ones, and folders with the parts of
other models and a new transformer.

Nothing is trained here. The processes run for `type: tiny_model` and `type: new_model`;
the sections are in `new_model_config`, and `toolkit.models.tiny` writes the published
layouts. The runner of jobs creates the processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from extensions.from_scratch.new_model_config import (
    ModelFolderConfig,
    NewModelConfig,
    TinyModelConfig,
)
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import INDEX
from toolkit.errors import UserError
from toolkit.files.run_files import NEW_MODEL
from toolkit.files.safetensors_io import as_os_error
from toolkit.files.writing import (
    atomic_write_dir,
    move_folder_aside,
    settle,
    sha256_of,
    write_json,
)
from toolkit.models.families import family_for
from toolkit.models.parts import place_file, place_parts
from toolkit.models.tiny import TinySpec, is_written, write_tiny_model
from toolkit.system.seeding import global_generator

logger = logging.getLogger(__name__)


class ModelFolderProcess(BaseExtensionProcess):
    """Writes one model folder. A complete folder of the same settings and parts is not
    changed, so a job can be run again.

    Example::

        class TinyModelProcess(ModelFolderProcess):
            section: TinyModelConfig
            what = "tiny model"

            def is_there(self) -> bool: ...
            def write(self, folder: Path) -> str: ...
    """

    section: ModelFolderConfig
    what = ""
    """For messages."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether the folder holds exactly this model. Raises UserError for parts that
        are missing."""

    @abstractmethod
    def write(self, folder: Path) -> str:
        """Writes the model into an empty folder. Returns the end of the log's line."""

    def run(self) -> None:
        super().run()
        section, folder = self.section, self.section.folder()
        settle(folder)
        if self.is_there() and not section.overwrite:
            logger.info(f"{self.what}: {section.path} is there already")
            return
        if folder.is_dir() and any(folder.iterdir()) and not section.overwrite:
            raise UserError(
                f"process[{self.process_id}].path: {section.path} holds another model. "
                "Give another folder, or set overwrite: true."
            )
        with atomic_write_dir(folder) as new, as_os_error():
            written = self.write(new)
        logger.info(f"{self.what}: wrote {section.path}{written}")


class TinyModelProcess(ModelFolderProcess):
    """Writes a tiny model folder, for tests and examples.

    Example::

        process:
          - type: tiny_model
            path: output/tiny_model
    """

    section: TinyModelConfig
    what = "tiny model"

    @cached_property
    def _spec(self) -> TinySpec:
        section = self.section
        return TinySpec(
            section.seed,
            section.layers,
            section.heads,
            section.texts(),
            section.arch,
            section.zero_cond_t,
        )

    def is_there(self) -> bool:
        return is_written(self.section.folder(), self._spec)

    def write(self, folder: Path) -> str:
        write_tiny_model(folder, self._spec)
        return f" ({self._spec.layers} blocks, seed {self._spec.seed})"


class NewModelProcess(ModelFolderProcess):
    """Writes a model folder with the parts of other folders and a transformer with
    random weights.

    Example::

        process:
          - type: new_model
            path: output/new_model
            base: config/examples/tiny_mascots
    """

    section: NewModelConfig
    what = "new model"

    def is_there(self) -> bool:
        # an earlier process may have left nothing
        for (
            key,
            message,
        ) in self.section.missing():
            raise UserError(f"process[{self.process_id}].{key}: {message}")
        return _recorded(self.section.folder()) == self._recipe()

    def write(self, folder: Path) -> str:
        count = self._fill(folder)
        write_json(folder / NEW_MODEL, self._recipe())
        return f", {count:,} random parameters (seed {self.section.seed})"

    def move_aside(self) -> None:
        moved = move_folder_aside(self.section.folder())
        if moved:
            logger.info(f"moved the old model to {moved}")

    def _fill(self, folder: Path) -> int:
        """Writes the parts of the model. Returns the parameters of the new one."""
        base = Path(self.section.base).expanduser().resolve()
        family = family_for(ModelConfig(name_or_path=str(base)))
        replaced = {family.trained_part, *(["vae"] if self.section.vae else [])}
        place_parts(base, folder, without=replaced)
        if self.section.vae:
            for file in self._vae_files():
                place_file(file, folder / "vae" / file.name)
        with global_generator(self.section.seed, "new model"):
            # a ModelMixin
            network: Any = family.new_network(folder, self.section.transformer)
        network.save_pretrained(folder / family.trained_part)
        return sum(parameter.numel() for parameter in network.parameters())

    def _vae_files(self) -> list[Path]:
        """The autoencoder's own files, without a discriminator next to them."""
        vae = Path(self.section.vae).expanduser().resolve()
        return [vae / "config.json", *sorted(vae.glob("diffusion_pytorch_model*"))]

    def _recipe(self) -> dict[str, object]:
        """The settings, and hashes of the parts' configs and of the autoencoder."""
        base = Path(self.section.base).expanduser().resolve()
        configs = [base / INDEX, *sorted(base.glob("*/config.json"))]
        files = [*configs, *(self._vae_files() if self.section.vae else [])]
        parts = hashlib.sha256(
            "".join(sha256_of(file) for file in files).encode()
        ).hexdigest()
        return {
            "seed": self.section.seed,
            "transformer": self.section.transformer,
            "parts": parts,
        }


def _recorded(folder: Path) -> object:
    """The recipe of the model in the folder; None where there is none."""
    file = folder / NEW_MODEL
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    return None

"""Writes a tiny model folder with random weights, for tests and examples."""

from __future__ import annotations

import logging

from extensions.from_scratch.tiny_model_config import TinyModelConfig
from jobs.process import BaseExtensionProcess
from toolkit.errors import UserError
from toolkit.files.safetensors_io import as_os_error
from toolkit.files.writing import atomic_write_dir, settle
from toolkit.models.qwen_edit.tiny import TinySpec, is_written, write_tiny_model

logger = logging.getLogger(__name__)


class TinyModelProcess(BaseExtensionProcess):
    """A complete folder of the same settings is left as it is, so that a job can be run again."""

    section: TinyModelConfig

    def run(self) -> None:
        super().run()
        folder = self.section.folder()
        settle(folder)
        section = self.section
        spec = TinySpec(section.seed, section.layers, section.heads, section.texts())
        if is_written(folder, spec) and not self.section.overwrite:
            logger.info(f"tiny model: {folder} is there already")
            return
        if folder.is_dir() and any(folder.iterdir()) and not self.section.overwrite:
            raise UserError(
                f"process[{self.process_id}].path: {folder} holds another model. "
                "Give another folder, or set overwrite: true."
            )
        with atomic_write_dir(folder) as new, as_os_error():
            write_tiny_model(new, spec)
        logger.info(f"tiny model: wrote {folder} ({spec.layers} blocks, seed {spec.seed})")

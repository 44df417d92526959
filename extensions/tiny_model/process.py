"""Writes a tiny model folder with random weights, for tests and examples."""

from __future__ import annotations

import logging
from pathlib import Path

from extensions.tiny_model.config import TinyModelConfig
from jobs.process import BaseExtensionProcess
from toolkit.errors import UserError
from toolkit.models.qwen_edit.tiny import TinySpec, is_written, write_tiny_model

logger = logging.getLogger(__name__)


class TinyModelProcess(BaseExtensionProcess):
    """A complete folder of the same settings is left as it is, so that a job can be run again."""

    section: TinyModelConfig

    def run(self) -> None:
        super().run()
        folder = Path(self.section.path).expanduser()
        section = self.section
        spec = TinySpec(section.seed, section.layers, section.heads, section.texts())
        if is_written(folder, spec) and not self.section.overwrite:
            logger.info(f"tiny model: {folder} is there already")
            return
        if _is_another_model(folder) and not self.section.overwrite:
            raise UserError(
                f"process[{self.process_id}].path: {folder} holds another model. "
                "Give another folder, or set overwrite: true."
            )
        write_tiny_model(folder, spec)
        logger.info(f"tiny model: wrote {folder} ({spec.layers} blocks, seed {spec.seed})")


def _is_another_model(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not _is_unfinished(folder)


def _is_unfinished(folder: Path) -> bool:
    """Whether an earlier write was broken off: parts of a model, but no model_index.json yet."""
    return (folder / "tokenizer").is_dir() and not (folder / "model_index.json").exists()

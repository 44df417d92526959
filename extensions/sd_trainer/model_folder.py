"""Writes the model folders of a run that trains the model itself, complete and loadable by diffusers.

    <name>_000000340/
      model_index.json  scheduler/  tokenizer/  processor/     copies of the base model's
      vae/  text_encoder/                                      the same files as the base model's (hard links)
      transformer/                                             what was trained, in shards
      training.json                                            metadata, as in the header of a network file

Changing a linked file in place would change the base model's too; deleting either folder does not affect the other.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from extensions.sd_trainer.lora_writer import LoraWriter
from toolkit.config.sections import DiffusionSection
from toolkit.data.run_plan import RunPlan
from toolkit.errors import RunError
from toolkit.files import atomic_write_dir, fsync, write_json
from toolkit.interfaces import Network
from toolkit.models.families import family_for
from toolkit.models.load import model_folder
from toolkit.networks.sharded_safetensors import write_shards
from toolkit.run_files import FOLDER_METADATA
from toolkit.train.flow_step import NETWORK
from toolkit.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model_index.json"

LINKED_BYTES = 2**20
"""Files from this size on are linked. Smaller ones (configs, vocabularies) are copied: people edit them."""


class ModelFolderWriter(LoraWriter):
    """Writes model folders where a `LoraWriter` writes files."""

    suffix = ""

    def __init__(
        self, network: Network, section: DiffusionSection, meta: dict[str, Any], plan: RunPlan | None = None
    ) -> None:
        super().__init__(network, section, meta, plan)
        self.base = model_folder(section.model).resolve()
        self.trained_part = family_for(section.model).trained_part

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights for `<name>_<step>/`, or for `<name>/` (None: the end) or `<name>_best/`.

        With `save.mem_eff_save` there is no copy: the folders are written at once, while training waits.
        """
        metadata, at_once = self.metadata(run), self.section.save.mem_eff_save
        chosen = self._live_weights(run, step) if at_once else self.copies(run, step)

        def write() -> list[Path]:
            for path, tensors in chosen.items():
                self._write(path, tensors, metadata)
            return list(chosen)

        if at_once:
            written = write()
            return lambda: written
        return write

    def _live_weights(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, dict[str, Tensor]]:
        role = run.roles[NETWORK]
        return {path: self.network.export(role.weights(raw)) for path, raw in self.files(run, step).items()}

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        if path.exists() and not (path / INDEX).is_file():
            raise RunError(f"{path}: holds something else than a model. Move it away, or give the job another name.")
        with _naming(path), atomic_write_dir(path) as folder:
            place_parts(self.base, folder, without=self.trained_part)
            trained = folder / self.trained_part
            trained.mkdir()
            _place(self.base / self.trained_part / "config.json", trained / "config.json")
            write_shards(trained, tensors, self.section.save.dtype, metadata or None)
            if metadata:
                write_json(folder / FOLDER_METADATA, metadata)

    def kind_metadata(self) -> dict[str, Any]:
        return {"full_bf16": self.section.train.full_bf16}


def place_parts(base: Path, folder: Path, without: str) -> None:
    """Links or copies the index of the model folder `base` and its parts, except `without`, into `folder`."""
    index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    _place(base / INDEX, folder / INDEX)
    for part in index:
        if part != without and (base / part).is_dir():
            for file in sorted(path for path in (base / part).rglob("*") if path.is_file()):
                _place(file, folder / file.relative_to(base))


def _place(file: Path, target: Path) -> None:
    """Links a large file, so that a save needs no space for it; copies others, and where links are impossible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = file.resolve()  # the hub's snapshots are links to its store
    if file.stat().st_size >= LINKED_BYTES:
        with suppress(OSError):  # another disk, or a file system without links
            os.link(file, target)
            return
    shutil.copyfile(file, target)
    fsync(target)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns errors inside the block into a RunError that names the folder."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written: {error}") from error

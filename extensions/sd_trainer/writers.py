"""Writes what a run trained: network files, and complete model folders, where the model
itself was trained. With `save.layout: single_file` a model is one file with the
transformer alone.

    <name>_000000340/
      model_index.json  scheduler/  tokenizer/  processor/     copies of the base model's
      vae/  text_encoder/                                      the same files as the base model's (hard links)
      transformer/                                             what was trained, in shards
      training.json                                            metadata, as in the header of a network file

Changing a linked file in place would change the base model's too; deleting either
folder does not affect the other.

`process` chooses the class; `SaveCallback` calls its `snapshot`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Size, Tensor

from toolkit.config.sections.model_files import read_model_json
from toolkit.config.sections.stored_quantization import KEY as QUANTIZATION
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.network import Network
from toolkit.contracts.training import TrainState
from toolkit.files.run_files import FOLDER_METADATA, NEW_MODEL, stem_of
from toolkit.files.safetensors_io import as_os_error
from toolkit.files.writing import atomic_write_dir, write_json
from toolkit.models.families import family_for
from toolkit.models.loading import model_folder
from toolkit.models.parts import INDEX, place_file, place_parts
from toolkit.models.single_file import markers_of
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.adapter_health import health
from toolkit.networks.lora_formats import fused_weights, in_one
from toolkit.networks.save import (
    naming,
    write_file_in_turn,
    write_safetensors_verified,
    write_shards_in_turn,
)
from toolkit.networks.spelling import ALPHA, STORED, Spelling, spelled
from toolkit.registry import hinted_tool
from toolkit.system.device import DTYPES, to_cpu_copies
from toolkit.train.collectives import network_tensors_in_turn
from toolkit.train.flow_step import NETWORK
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

ARCHITECTURE = "modelspec.architecture"


class LoraWriter:
    """Writes the EMA of the weights where there is one, else the raw weights;
    `save.also` adds the raw ones.

    Example::

        writer = LoraWriter(network, section, metadata)
        write = writer.snapshot(run, step=250)
        paths = write()  # while the training continues
    """

    suffix = ".safetensors"

    at_end: Callable[[Path], object] = staticmethod(lambda file: None)
    """Called with the main file of a LoRA at the end of a run, when it is written."""

    def __init__(
        self,
        network: Network,
        section: DiffusionSection,
        metadata: Mapping[str, str],
        spelling: Spelling = STORED,
    ) -> None:
        """metadata: what all files have in their headers (`metadata.job_metadata`).
        spelling: of a LoRA's keys."""
        self.network = network
        self.section = section
        self.metadata = metadata
        self.spelling = spelling

    def snapshot(
        self, run: Run, step: int | Literal["best"] | None
    ) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>.safetensors`, or of `<name>.safetensors`
        for the end (None), or of `<name>_best.safetensors`.

        The result writes the files and returns their paths, while the training goes on.
        """
        copies = self.copies(run, step)
        metadata = self.metadata_at(run.state)

        def write() -> list[Path]:
            for file, tensors in copies.items():
                write_safetensors_verified(file, tensors, metadata or None)
                if step is None and isinstance(self.network, LinearAdapterNetwork):
                    self._report(file.name, tensors, metadata)
            files = list(copies)
            if step is None and isinstance(self.network, LinearAdapterNetwork):
                self.at_end(files[0])
            return files

        return write

    def _report(
        self, file: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Logs the first fault of a final file."""
        wrong = [
            one
            for one in health(tensors, metadata)
            if one.severity == "error" and one.check != "unknown_keys"
        ]
        tool = hinted_tool("examination")
        more = f" See run.py {tool}." if tool else ""
        for one in wrong[:1]:
            logger.warning(f"{file}: {one.message} {one.remedy}{more}")

    def metadata_at(self, state: TrainState) -> dict[str, str]:
        """The metadata with the step and the completed epochs of a state
        (`training_info`, `ss_steps`, `ss_epoch`). Empty where the writer has no
        metadata."""
        step = state.step
        epoch = state.epochs_done
        info = json.dumps({"step": step, "epoch": epoch})
        progress = {
            "training_info": info,
            "ss_steps": str(step),
            "ss_epoch": str(epoch),
        }
        return {**self.metadata, **progress} if self.metadata else {}

    def copies(
        self, run: Run, step: int | Literal["best"] | None
    ) -> dict[Path, dict[str, Tensor]]:
        """Copies of the tensors of each file of a step (as in `snapshot`), in
        `save.dtype` and on the CPU. The network must not be sharded."""
        role = run.roles[NETWORK]
        return {
            file: self._copy(role.weights(raw))
            for file, raw in self.files(run, step).items()
        }

    def _copy(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file, sorted by key, in `save.dtype`. Alphas stay in
        float32: bfloat16 would round them."""
        tensors = spelled(self.network.export(weights), self.spelling)
        alphas = (
            {name for name in tensors if name.endswith(ALPHA)}
            if self.spelling is not STORED
            else set()
        )
        in_dtype = to_cpu_copies(
            {name: t for name, t in tensors.items() if name not in alphas},
            self.section.save.dtype,
        )
        in_float32 = to_cpu_copies({name: tensors[name] for name in alphas}, "float32")
        return dict(sorted({**in_dtype, **in_float32}.items()))

    def files(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, bool]:
        """The files of a step (as in `snapshot`) -> whether the file has the raw
        weights (`Role.weights`)."""
        stem = stem_of(run.name, step)
        raw_of_file = {run.folder / f"{stem}{self.suffix}": False}
        if run.roles[NETWORK].ema and "raw" in self.section.save.also:
            raw_of_file[run.folder / f"{stem}_raw{self.suffix}"] = True
        return raw_of_file


class SingleFileWriter(LoraWriter):
    """Writes the model itself, by the names of ComfyUI.

    Example::

        write = SingleFileWriter(network, section, metadata).snapshot(run, step=None)
        (path,) = write()
    """

    @cached_property
    def markers(self) -> list[str]:
        """Names of the tensors without elements in the file."""
        return markers_of(family_for(self.section.model).title)

    def snapshot(
        self, run: Run, step: int | Literal["best"] | None
    ) -> Callable[[], list[Path]]:
        """As `LoraWriter.snapshot`. Where the model is sharded there is no copy: the
        files are written at once, while training waits."""
        if not self.network.sharded_params():
            return super().snapshot(run, step)
        metadata = self.metadata_at(run.state)
        written = self.files(run, step)
        for file, raw in written.items():
            self._write_sharded(run, file, raw, metadata)
        return lambda: list(written)

    def copies(
        self, run: Run, step: int | Literal["best"] | None
    ) -> dict[Path, dict[str, Tensor]]:
        return {
            file: in_one(tensors, self.markers)
            for file, tensors in super().copies(run, step).items()
        }

    def _write_sharded(
        self, run: Run, file: Path, raw: bool, metadata: Mapping[str, str]
    ) -> None:
        """Gathers tensor by tensor, in the order of the file's names."""
        dtype = self.section.save.dtype

        def by_the_file(names: Iterable[str]) -> list[str]:
            return [part for parts in fused_weights(names).values() for part in parts]

        with network_tensors_in_turn(
            run, self.network, NETWORK, DTYPES[dtype], raw, by_the_file
        ) as (shapes, gather):
            parts_of = fused_weights(shapes)
            in_file = {}
            for name, parts in parts_of.items():
                first, *others = (shapes[part] for part in parts)
                if others:
                    rows = first[0] + sum(other[0] for other in others)
                    in_file[name] = Size((rows, *first[1:]))
                else:
                    in_file[name] = first

            def fetch(name: str) -> Tensor:
                parts = [gather(part) for part in parts_of[name]]
                return torch.cat(parts) if len(parts) > 1 else parts[0]

            write_file_in_turn(
                file, in_file, fetch, dtype, metadata or None, self.markers
            )


class ModelFolderWriter(LoraWriter):
    """Writes model folders where a `LoraWriter` writes files.

    Example::

        write = ModelFolderWriter(network, section, metadata).snapshot(run, step=None)
        (folder,) = write()
    """

    suffix = ""

    @cached_property
    def base(self) -> Path:
        """The folder of the model that was trained."""
        return model_folder(self.section.model).resolve()

    @cached_property
    def trained_part(self) -> str:
        """Its folder of the weights that were trained."""
        return family_for(self.section.model).trained_part

    def snapshot(
        self, run: Run, step: int | Literal["best"] | None
    ) -> Callable[[], list[Path]]:
        """Copies the weights for `<name>_<step>/`, or for `<name>/` (None: the end) or
        `<name>_best/`.

        With `save.mem_eff_save`, or where the model is sharded, there is no copy: the
        folders are written at once, while training waits.
        """
        metadata = self.metadata_at(run.state)
        if self.section.save.mem_eff_save or self.network.sharded_params():
            dtype = DTYPES[self.section.save.dtype]
            written = self.files(run, step)
            for path, raw in written.items():
                with network_tensors_in_turn(
                    run, self.network, NETWORK, dtype, raw
                ) as (shapes, gather):
                    self._write(path, shapes, gather, metadata)
            return lambda: list(written)
        copies = self.copies(run, step)

        def write() -> list[Path]:
            for path, tensors in copies.items():
                shapes = {name: tensor.shape for name, tensor in tensors.items()}
                self._write(path, shapes, tensors.__getitem__, metadata)
            return list(copies)

        return write

    def _write(
        self,
        path: Path,
        shapes: Mapping[str, Size],
        fetch: Callable[[str], Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        with (
            atomic_write_dir(path, known_by=INDEX) as folder,
            as_os_error(),
            naming(path),
        ):
            place_parts(self.base, folder, without={self.trained_part})
            if (self.base / NEW_MODEL).is_file():
                place_file(self.base / NEW_MODEL, folder / NEW_MODEL)
            trained = folder / self.trained_part
            trained.mkdir()
            self._place_config(trained)
            write_shards_in_turn(
                trained, shapes, fetch, self.section.save.dtype, metadata or None
            )
            if metadata:
                write_json(folder / FOLDER_METADATA, metadata)

    def _place_config(self, trained: Path) -> None:
        """The base's config.json; without how its weights were quantized, where a file
        gave others in their place."""
        of_base = self.base / self.trained_part / "config.json"
        config = read_model_json(of_base)
        if config.pop(QUANTIZATION, None) is None:
            place_file(of_base, trained / of_base.name)
        else:
            write_json(trained / of_base.name, config)

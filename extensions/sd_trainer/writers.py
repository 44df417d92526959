"""Writes what a run trained: network files; complete model folders, where the model itself was trained; and
(`save.also: [merged_lora]`) a plain LoRA beside each file of a LoHa, LoKr or DoRA. With `save.layout: single_file` a
model is one file with the transformer alone.

    <name>_000000340/
      model_index.json  scheduler/  tokenizer/  processor/     copies of the base model's
      vae/  text_encoder/                                      the same files as the base model's (hard links)
      transformer/                                             what was trained, in shards
      training.json                                            metadata, as in the header of a network file

Changing a linked file in place would change the base model's too; deleting either folder does not affect the other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from extensions.sd_trainer.metadata import network_module, with_progress
from toolkit.config.output import SaveConfig
from toolkit.config.sections import DiffusionSection
from toolkit.errors import RunError
from toolkit.files.run_files import FOLDER_METADATA, NEW_MODEL, best_stem, step_stem
from toolkit.files.safetensors_io import as_os_error
from toolkit.files.writing import atomic_write_dir, write_json
from toolkit.models.families import family_for
from toolkit.models.loading import model_folder
from toolkit.models.parts import INDEX, place_file, place_parts
from toolkit.models.single_file import markers_of
from toolkit.networks.adapter import AdapterBase, LinearAdapterNetwork
from toolkit.networks.adapter_health import health
from toolkit.networks.extract_lora import ExtractedLora, extract_network_lora
from toolkit.networks.interface import Network
from toolkit.networks.lora_formats import in_one
from toolkit.networks.save import to_cpu_copies, write_safetensors_verified, write_shards
from toolkit.system.device import DTYPES
from toolkit.train.collectives import network_state_dict
from toolkit.train.flow_step import NETWORK
from toolkit.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor


class LoraWriter:
    """Writes the EMA of the weights where there is one, else the raw weights; `save.also: [raw]` adds the raw ones."""

    suffix = ".safetensors"

    def __init__(self, network: Network, section: DiffusionSection, metadata: Mapping[str, str]) -> None:
        """metadata: what all files have in their headers (`metadata.job_metadata`)."""
        self.network = network
        self.section = section
        self.metadata = metadata

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>.safetensors`, or of `<name>.safetensors` for the end (None), or of
        `<name>_best.safetensors`.

        The result writes the files and returns their paths, while the training goes on.
        """
        copies, metadata = self.copies(run, step), with_progress(self.metadata, run.state)

        def write() -> list[Path]:
            for file, tensors in copies.items():
                write_safetensors_verified(file, tensors, metadata or None)
                if step is None and isinstance(self.network, AdapterBase):
                    for finding in [one for one in health(tensors, metadata) if one.is_wrong][:1]:
                        logger.warning(f"{file.name}: {finding} See run.py doctor.")
            return list(copies)

        return write

    def copies(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, dict[str, Tensor]]:
        """Copies of the tensors of each file of a step (as in `snapshot`)."""
        dtype = DTYPES[self.section.save.dtype]
        return {
            file: network_state_dict(run, self.network, NETWORK, dtype, raw)
            for file, raw in self.files(run, step).items()
        }

    def files(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, bool]:
        """The files of a step (as in `snapshot`) -> whether the file has the raw weights (`Role.weights`)."""
        stem = run.name if step is None else best_stem(run.name) if step == "best" else step_stem(run.name, step)
        found = {run.folder / f"{stem}{self.suffix}": False}
        if run.roles[NETWORK].ema and "raw" in self.section.save.also:
            found[run.folder / f"{stem}_raw{self.suffix}"] = True
        return found


class SingleFileWriter(LoraWriter):
    """Writes the model itself, by the names of ComfyUI."""

    def copies(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, dict[str, Tensor]]:
        markers = markers_of(family_for(self.section.model).title)
        return {file: in_one(tensors, markers) for file, tensors in super().copies(run, step).items()}


class ModelFolderWriter(LoraWriter):
    """Writes model folders where a `LoraWriter` writes files."""

    suffix = ""

    def __init__(self, network: Network, section: DiffusionSection, metadata: Mapping[str, str]) -> None:
        super().__init__(network, section, metadata)
        self.base = model_folder(section.model).resolve()
        self.trained_part = family_for(section.model).trained_part

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights for `<name>_<step>/`, or for `<name>/` (None: the end) or `<name>_best/`.

        With `save.mem_eff_save` there is no copy: the folders are written at once, while training waits.
        """
        metadata, at_once = with_progress(self.metadata, run.state), self.section.save.mem_eff_save
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
        with atomic_write_dir(path, known_by=INDEX) as folder, as_os_error(), _naming(path):
            place_parts(self.base, folder, without={self.trained_part})
            if (self.base / NEW_MODEL).is_file():
                place_file(self.base / NEW_MODEL, folder / NEW_MODEL)
            trained = folder / self.trained_part
            trained.mkdir()
            place_file(self.base / self.trained_part / "config.json", trained / "config.json")
            write_shards(trained, tensors, self.section.save.dtype, metadata or None)
            if metadata:
                write_json(folder / FOLDER_METADATA, metadata)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A RunError about a file of the folder names the folder too."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{path}: {error}") from error


logger = logging.getLogger(__name__)

OF_THE_KIND = ("network_type", "rank", "alpha", "lokr_factor")
"""Metadata of the main file that describe what the LoRA was extracted from."""

ARCHITECTURE = "modelspec.architecture"


class ExtractedLoraWriter:
    """Wraps another writer, and adds an extracted LoRA of the same weights."""

    def __init__(
        self,
        writer: LoraWriter,
        network: LinearAdapterNetwork,
        save: SaveConfig,
        event: Callable[..., None],
    ) -> None:
        """save: the typed `save` section. event: called from the writer thread."""
        self.writer = writer
        self.network = network
        self.save = save
        self.event = event

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """As `LoraWriter.snapshot`: copies the weights; the result extracts and writes."""
        write_others = self.writer.snapshot(run, step)
        if step == "best":  # written while the training waits
            return write_others
        weights = to_cpu_copies(run.roles[NETWORK].eval_weights(), "float32")
        metadata, done = with_progress(self.writer.metadata, run.state), run.state.step

        def should_stop() -> bool:
            """A stop does not wait for the extraction, as the checkpoint is written after it; the end of a run does."""
            return step is not None and run.interrupted

        def write() -> list[Path]:
            files = write_others()
            file = files[0].with_name(f"{files[0].stem}_lora.safetensors")
            extracted = extract_network_lora(
                self.network, weights, self.save.merged_lora_rank, self.save.dtype, should_stop
            )
            if extracted is None:
                logger.info(f"{file.name} is left out: the run is asked to stop")
                return files
            write_safetensors_verified(file, extracted.tensors, _metadata(extracted, metadata) if metadata else None)
            self._log(file, extracted, done)
            return [*files, file]

        return write

    def _log(self, file: Path, extracted: ExtractedLora, step: int) -> None:
        logger.info(
            f"{file.name}: the nearest LoRA of rank {extracted.rank}; relative error of a layer's change "
            f"{extracted.mean:.2g} on average, {extracted.worst:.2g} in {extracted.worst_layer}"
        )
        self.event("merged_lora", step=step, file=file.name, rank=extracted.rank, **_errors(extracted))


def _metadata(extracted: ExtractedLora, of_main: dict[str, str]) -> dict[str, str]:
    """The main file's metadata with the kind replaced, and the errors of the extraction."""
    made_from = {key: of_main[key] for key in OF_THE_KIND if key in of_main}
    shared = {key: text for key, text in of_main.items() if key not in made_from and not key.startswith("ss_network_")}
    if ARCHITECTURE in shared:
        shared[ARCHITECTURE] = f"{shared[ARCHITECTURE].rpartition('/')[0]}/lora"
    rank = str(extracted.rank)
    return {
        **shared,
        "network_type": "lora",
        "rank": rank,
        "alpha": rank,
        "ss_network_module": network_module("lora"),
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "merged_from": json.dumps(made_from),
        **{key: json.dumps(value) if isinstance(value, float) else value for key, value in _errors(extracted).items()},
    }


def _errors(extracted: ExtractedLora) -> dict[str, Any]:
    """Relative errors (Frobenius norm) of a layer's delta."""
    return {"error_mean": extracted.mean, "error_worst": extracted.worst, "error_worst_layer": extracted.worst_layer}

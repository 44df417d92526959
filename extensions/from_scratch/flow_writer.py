"""Writes what a run trained: model folders in the layout of `start/`, from which the parts that stay are linked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from extensions.from_scratch.autoencoder_writer import DISCRIMINATOR_FILE, write_autoencoder
from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER
from extensions.from_scratch.latent_flow.family import PIPELINE_CODE, PROJECTION
from extensions.from_scratch.latent_flow.new import TEXT_WEIGHTS
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.trainer import TrainedVae
from toolkit.config.output import SaveIntervalConfig
from toolkit.files.run_files import best_stem, step_stem
from toolkit.files.writing import atomic_write_dir
from toolkit.models.parts import CUSTOM_PIPELINE, INDEX, place_file, place_parts
from toolkit.networks.full import FullNetwork
from toolkit.networks.save import to_cpu_copies, write_safetensors_verified, write_shards
from toolkit.train.run import Run


class FlowWriter:
    """Writes the EMA of the weights where there is one, else the raw weights."""

    def __init__(
        self,
        start: Path,
        networks: Mapping[str, FullNetwork],
        save: SaveIntervalConfig,
        along: TrainedVae | None = None,
    ) -> None:
        """start: folder of the model as it began. networks: of each role. along: what is trained besides."""
        self.start = start
        self.networks = networks
        self.save = save
        self.along = along

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>/`, or of `<name>/` (None: the end) or `<name>_best/`. The result writes
        the folder and returns its path."""
        stem = run.name if step is None else best_stem(run.name) if step == "best" else step_stem(run.name, step)
        path = run.folder / stem
        weights = {
            role: to_cpu_copies(network.export(run.roles[role].eval_weights()), self.save.dtype)
            for role, network in self.networks.items()
        }
        if self.along:
            weights |= self.along.copied(run, self.save.dtype)
        config = self.along.autoencoder.config() if self.along else {}  # as it is now

        def write() -> list[Path]:
            with atomic_write_dir(path, known_by=INDEX) as folder:
                self._write(folder, weights, config)
            return [path]

        return write

    def _write(self, folder: Path, weights: Mapping[str, dict[str, Tensor]], config: Mapping[str, Any]) -> None:
        parts = {FLOW: "transformer", TEXT_ENCODER: "text_encoder", VAE: "vae"}
        written = {role: parts[role] for role in weights if role in parts}
        place_parts(self.start, folder, without=set(written.values()))
        place_file(PIPELINE_CODE, folder / CUSTOM_PIPELINE)
        for role in written:
            place_file(self.start / parts[role] / "config.json", folder / parts[role] / "config.json")
        write_shards(folder / parts[FLOW], weights[FLOW], self.save.dtype, None)
        if TEXT_ENCODER in weights:
            _write_text_encoder(folder / parts[TEXT_ENCODER], weights[TEXT_ENCODER])
        if self.along:
            write_autoencoder(folder / parts[VAE], self.along.autoencoder, weights[VAE], config)
        if DISCRIMINATOR in weights:
            write_safetensors_verified(folder / parts[VAE] / DISCRIMINATOR_FILE, weights[DISCRIMINATOR], None)


def _write_text_encoder(part: Path, weights: Mapping[str, Tensor]) -> None:
    of_encoder = {
        name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")
    }
    write_safetensors_verified(part / TEXT_WEIGHTS, of_encoder, None)
    if (projection := weights.get("projection.weight")) is not None:
        write_safetensors_verified(part / PROJECTION, {"weight": projection}, None)

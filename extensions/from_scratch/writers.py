"""Writes the trained weights of a run, the EMA where there is one, into folders that
`from_pretrained` of diffusers loads. An autoencoder has one folder. A flow model has
the layout of `start/`, and its frozen parts are linked from there.

A writer copies the weights at once, and writes them later in the thread that saves. It
does not decide when to save. `vae_process` and `flow_process` return the `snapshot` of
a writer from `weights_writer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from extensions.from_scratch.autoencoder_config import CONFIG
from extensions.from_scratch.autoencoders import write_autoencoder
from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER
from extensions.from_scratch.joint import scale_by
from extensions.from_scratch.latent_flow.family import PIPELINE_CODE, PROJECTION
from extensions.from_scratch.latent_flow.new import TEXT_WEIGHTS
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.pixels import Picture
from extensions.from_scratch.trainer import TrainedVae
from toolkit.config.sections.output import SaveIntervalConfig
from toolkit.files.run_files import stem_of
from toolkit.files.writing import atomic_write_dir
from toolkit.models.parts import CUSTOM_PIPELINE, INDEX, place_file, place_parts
from toolkit.networks.full import FullNetwork
from toolkit.networks.save import (
    write_safetensors_verified,
    write_shards,
)
from toolkit.system.device import to_cpu_copies
from toolkit.train.run import Run

PARTS = {FLOW: "transformer", TEXT_ENCODER: "text_encoder", VAE: "vae"}
"""Role -> its subfolder in the model's folder."""


class FolderWriter(ABC):
    """Writes folders where other trainers write LoRA files. Its `snapshot` is a
    `PrepareNetwork`; a subclass says how the weights are copied and written.

    Example::

        class AutoencoderWriter(FolderWriter):
            known_by = CONFIG

            def copied(self, run: Run) -> Callable[[Path], None]: ...
    """

    known_by: ClassVar[str]
    """A file that identifies a folder as written by this program."""

    @abstractmethod
    def copied(self, run: Run) -> Callable[[Path], None]:
        """Copies the weights; the result writes them into a folder."""

    def snapshot(
        self, run: Run, step: int | Literal["best"] | None
    ) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>/`, or of `<name>/` (None: the end) or
        `<name>_best/`. The result writes the folder and returns its path."""
        path = run.folder / stem_of(run.name, step)
        write_into = self.copied(run)

        def write() -> list[Path]:
            with atomic_write_dir(path, known_by=self.known_by) as folder:
                write_into(folder)
            return [path]

        return write


class AutoencoderWriter(FolderWriter):
    """Writes an autoencoder, with the mean and standard deviation of its latents.

    Example::

        writer = AutoencoderWriter(trained, section.save, pictures)
        write = writer.snapshot(run, step=1000)
        (folder,) = write()  # in the thread that saves
    """

    known_by = CONFIG

    def __init__(
        self, trained: TrainedVae, save: SaveIntervalConfig, pictures: Sequence[Picture]
    ) -> None:
        """pictures: images whose latents are measured."""
        self.trained = trained
        self.save = save
        self.pictures = pictures

    def copied(self, run: Run) -> Callable[[Path], None]:
        autoencoder = self.trained.autoencoder
        weights = self.trained.copied(run, self.save.dtype)
        with run.roles[VAE].using_eval_weights():
            config = autoencoder.config() | scale_by(autoencoder, self.pictures)
        return lambda folder: write_autoencoder(
            folder, weights[VAE], config, weights.get(DISCRIMINATOR)
        )


class FlowWriter(FolderWriter):
    """Writes the model of a flow training.

    Example::

        writer = FlowWriter(start, networks, section.save, along=None)
        write = writer.snapshot(run, step=None)
        (folder,) = write()  # in the thread that saves
    """

    known_by = INDEX

    def __init__(
        self,
        start: Path,
        networks: Mapping[str, FullNetwork],
        save: SaveIntervalConfig,
        along: TrainedVae | None,
    ) -> None:
        """start: folder of the model as it began. networks: of each role. along: the
        autoencoder where it is trained too."""
        self.start = start
        self.networks = networks
        self.save = save
        self.along = along

    def copied(self, run: Run) -> Callable[[Path], None]:
        weights = {
            role: to_cpu_copies(
                network.export(run.roles[role].eval_weights()), self.save.dtype
            )
            for role, network in self.networks.items()
        }
        if self.along:
            weights |= self.along.copied(run, self.save.dtype)
        config = self.along.autoencoder.config() if self.along else {}  # as it is now

        def write(folder: Path) -> None:
            written = {role: part for role, part in PARTS.items() if role in weights}
            place_parts(self.start, folder, without=set(written.values()))
            place_file(PIPELINE_CODE, folder / CUSTOM_PIPELINE)
            for part in written.values():
                place_file(self.start / part / CONFIG, folder / part / CONFIG)
            write_shards(folder / PARTS[FLOW], weights[FLOW], self.save.dtype, None)
            if TEXT_ENCODER in weights:
                _write_text_encoder(folder / PARTS[TEXT_ENCODER], weights[TEXT_ENCODER])
            if VAE in weights:
                write_autoencoder(
                    folder / PARTS[VAE],
                    weights[VAE],
                    config,
                    weights.get(DISCRIMINATOR),
                )

        return write


def _write_text_encoder(part: Path, weights: Mapping[str, Tensor]) -> None:
    tensors = {
        name.removeprefix("encoder."): weight
        for name, weight in weights.items()
        if name.startswith("encoder.")
    }
    write_safetensors_verified(part / TEXT_WEIGHTS, tensors, None)
    projection = weights.get("projection.weight")
    if projection is not None:
        write_safetensors_verified(part / PROJECTION, {"weight": projection}, None)

"""Writes what a run trained: folders that `from_pretrained` of diffusers loads, with the discriminator beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from torch import Tensor

from extensions.from_scratch.autoencoder_config import CONFIG
from extensions.from_scratch.autoencoder_step import evaluating
from extensions.from_scratch.autoencoder_writer import DISCRIMINATOR_FILE, write_autoencoder
from extensions.from_scratch.autoencoders import Autoencoder, measure_latents
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.losses_config import VAE
from toolkit.config.output import SaveIntervalConfig
from toolkit.files.run_files import best_stem, step_stem
from toolkit.files.writing import atomic_write_dir
from toolkit.networks.save import to_cpu_copies, write_safetensors_verified
from toolkit.train.run import Run


class AutoencoderWriter:
    """Writes the EMA of the weights where there is one, else the raw weights."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        discriminator: PatchDiscriminator | None,
        save: SaveIntervalConfig,
        images: Callable[[], Iterable[Tensor]],
    ) -> None:
        """images: what the latents are measured on, [1, 3, H, W] each."""
        self.autoencoder = autoencoder
        self.discriminator = discriminator
        self.save = save
        self.images = images

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>/`, or of `<name>/` (None: the end) or `<name>_best/`, and measures the
        mean and standard deviation of the latents. The result writes the folder and returns its path.
        """
        stem = run.name if step is None else best_stem(run.name) if step == "best" else step_stem(run.name, step)
        role = run.roles[VAE]
        with role.using_eval_weights(), evaluating(self.autoencoder):
            weights = to_cpu_copies(self.autoencoder.module.state_dict(), self.save.dtype)
            latents = measure_latents(self.autoencoder.encode, self.images())
        scale = self.autoencoder.normalisation(*latents)
        of_discriminator = to_cpu_copies(self.discriminator.state_dict(), "float32") if self.discriminator else None

        def write() -> list[Path]:
            path = run.folder / stem
            with atomic_write_dir(path, known_by=CONFIG) as folder:
                write_autoencoder(folder, self.autoencoder, weights, scale)
                if of_discriminator:
                    write_safetensors_verified(folder / DISCRIMINATOR_FILE, of_discriminator, None)
            return [path]

        return write

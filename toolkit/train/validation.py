"""The validation loss: always the same noise and timesteps, so that only the weights
make a difference.

Shape suffixes: B batch (1), C latent channels, H/W latent height and width.

`jobs.process.image_trainer` makes the validator; `callbacks.validation` calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from toolkit.config.sections.dataset import LOSS, TEXTURE, loss_at, noise_levels
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.dataloader import BatchLoader, LatentBatch
from toolkit.data.batches.latent_cache import EncodedDataset
from toolkit.data.scan.fingerprint import file_digest
from toolkit.files.tensor_cache import key_of
from toolkit.flow.loss import INTERPOLANTS, loss_per_sample
from toolkit.system.seeding import generator
from toolkit.train.anomalies import HIGH

SEED = 0
"""Seed of the noise."""


class Validator:
    """Mean squared error of the model's prediction, unweighted, one image and timestep
    at a time.

    It uses no shared random generator and changes no weights.

    Example::

        validator = Validator(model, held_out, timesteps=8)
        losses = validator.losses()
        print(losses["validation/loss"])
    """

    def __init__(
        self,
        model: DiffusionModel,
        dataset: EncodedDataset,
        timesteps: int,
        predict: Callable[..., Tensor] | None = None,
    ) -> None:
        """dataset: the validation split. timesteps: number of timesteps per item.
        predict: replaces `model.predict_velocity`."""
        self._model = model
        self._predict = predict or model.predict_velocity
        self._dataset = dataset
        self._levels = noise_levels(timesteps)
        self._loader = BatchLoader(dataset, SEED)
        self.by_image: dict[str, list[float]] = {}
        """The latest `losses`: hash of an image -> its losses, one per size and noise
        level."""

    @property
    def identity(self) -> str:
        """Hash of all that decides the losses besides the weights: losses compare only
        where it is the same."""
        entries = [
            [entry.key for entry in (*e.images(), *e.texts())]
            for e in self._dataset.entries
        ]
        return key_of(entries=entries, levels=self._levels, seed=SEED)

    @torch.no_grad()
    def losses(
        self, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The mean loss and the loss of each timestep, by their logged names.

        should_stop: called before each forward pass. Returns None after it returned
        True.
        """
        self._model.prefetch_timesteps(self._levels)
        by_level: list[list[float]] = [[] for _ in self._levels]
        textures: list[float] = []
        by_image: dict[str, list[float]] = {}
        for index, item in enumerate(self._dataset.items):
            batch = self._loader.load(BatchSpec(0, (index,), (index,)))
            # The item's own noise [1, C, H, W], keyed by the hash of its image.
            key = (file_digest(item.sample.image), str(item.crop.bucket))
            random = generator(SEED, "validation", *key)
            noise_BCHW = torch.randn(
                (1, *batch.latents_BCHW.shape[1:]), generator=random
            )
            of_levels: list[float] = []
            for level in self._levels:
                if should_stop():
                    return None
                loss, predicted_x0_BCHW = self._at_level(batch, noise_BCHW, level)
                of_levels.append(loss)
            # Of the highest level, where least of the image is given and most is the
            # network's own.
            textures.append(
                high_energy(predicted_x0_BCHW)
                / max(high_energy(batch.latents_BCHW), 1e-12)
            )
            for losses, loss in zip(by_level, of_levels, strict=True):
                losses.append(loss)
            by_image.setdefault(key[0], []).extend(of_levels)
        self.by_image = by_image
        means = [fmean(losses) for losses in by_level]
        numbers = {
            loss_at(level): mean
            for level, mean in zip(self._levels, means, strict=True)
        }
        return {LOSS: fmean(means)} | numbers | {TEXTURE: fmean(textures)}

    def _at_level(
        self, batch: LatentBatch, noise_BCHW: Tensor, level: float
    ) -> tuple[float, Tensor]:
        """The unweighted loss of a batch of one image with this noise at noise fraction
        `level`, in [0, 1], and the image x0 [1, C, H, W] that the prediction gives, on
        the CPU."""
        t_B = torch.tensor([level])
        mix = INTERPOLANTS[self._model.family.prediction].mix
        x_t_BCHW, target_BCHW = mix(batch.latents_BCHW, noise_BCHW, t_B)
        predicted_BCHW = self._predict(
            x_t_BCHW, t_B, batch.prompts, batch.control_latents
        )
        # The share of the noise in x_t is also the share of the error in x0.
        share_B111 = mix(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), t_B)[0]
        x0_BCHW = batch.latents_BCHW + share_B111 * (
            target_BCHW - predicted_BCHW.detach().cpu()
        )
        device = predicted_BCHW.device
        mask_B1HW = batch.loss_mask_B1HW
        if mask_B1HW is not None:
            mask_B1HW = mask_B1HW.to(device)
        loss_B = loss_per_sample(
            predicted_BCHW, target_BCHW.to(device), mask_B1HW=mask_B1HW
        )
        return loss_B.item(), x0_BCHW


def high_energy(latents_BCHW: Tensor) -> float:
    """Mean square of the frequencies above a quarter of the Nyquist frequency in
    latents, over all channels."""
    height, width = latents_BCHW.shape[-2:]
    radius_HW = torch.hypot(
        torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    )
    energy_BCHW = torch.fft.fft2(latents_BCHW.float(), norm="ortho").abs().square()
    return float(energy_BCHW[..., radius_HW > HIGH].sum() / energy_BCHW.numel())

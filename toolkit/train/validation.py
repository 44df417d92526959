"""The validation loss: always the same noise and timesteps, so that only the weights make a difference.

Shape suffixes: B batch (1), C latent channels, H/W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from toolkit.config.dataset import LOSS, loss_at, noise_levels
from toolkit.data.cache import key_of
from toolkit.data.dataloader import BatchLoader, LatentBatch
from toolkit.data.file_hashes import file_digest
from toolkit.data.latent_cache import EncodedDataset
from toolkit.data.types import BatchSpec, BucketedSample
from toolkit.flow.loss import INTERPOLANTS, loss_per_sample
from toolkit.models.interface import DiffusionModel
from toolkit.system.seeding import generator


class Validator:
    """Mean squared error of what the model predicts, unweighted, one image and timestep at a time.

    It uses no shared random generator and changes no weights.
    """

    def __init__(
        self,
        model: DiffusionModel,
        dataset: EncodedDataset,
        timesteps: int,
        seed: int,
        predict: Callable[..., Tensor] | None = None,
    ) -> None:
        """dataset: the validation split. timesteps: number of timesteps per item. seed: of the noise. predict: replaces
        `model.predict_velocity`."""
        self._model = model
        self._predict = predict or model.predict_velocity
        self._dataset = dataset
        self._levels = noise_levels(timesteps)
        self._seed = seed
        self._loader = BatchLoader(dataset, seed)

    @property
    def identity(self) -> str:
        """Hash of all that decides the losses besides the weights: losses compare only where it is the same."""
        entries = [[entry.key for entry in (*e.images(), *e.texts())] for e in self._dataset.entries]
        return key_of(entries=entries, levels=self._levels, seed=self._seed)

    @torch.no_grad()
    def losses(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The mean loss and the loss of each timestep, by their logged names.

        should_stop: called before each forward pass. Returns None after it returned True.
        """
        self._model.prefetch_timesteps(self._levels)
        by_level: list[list[float]] = [[] for _ in self._levels]
        for index, item in enumerate(self._dataset.items):
            batch = self._loader.load(BatchSpec(0, (index,), (index,)))
            noise_BCHW = self._noise(item, batch.latents_BCHW.shape[1:])
            for level, losses in zip(self._levels, by_level, strict=True):
                if should_stop():
                    return None
                losses.append(self._loss(batch, noise_BCHW, level))
        means = [fmean(losses) for losses in by_level]
        return {LOSS: fmean(means)} | {loss_at(level): mean for level, mean in zip(self._levels, means, strict=True)}

    def _loss(self, batch: LatentBatch, noise_BCHW: Tensor, level: float) -> float:
        t_B = torch.tensor([level])
        mix = INTERPOLANTS[self._model.family.prediction].mix
        x_t_BCHW, target_BCHW = mix(batch.latents_BCHW, noise_BCHW, t_B)
        predicted_BCHW = self._predict(x_t_BCHW, t_B, batch.prompts, batch.control_latents)
        mask_B1HW = batch.loss_mask_B1HW
        if mask_B1HW is not None:
            mask_B1HW = mask_B1HW.to(predicted_BCHW.device)
        return loss_per_sample(predicted_BCHW, target_BCHW.to(predicted_BCHW.device), mask_B1HW=mask_B1HW).item()

    def _noise(self, item: BucketedSample, shape_CHW: Sequence[int]) -> Tensor:
        """The item's own noise [1, C, H, W], keyed by the hash of its image."""
        key = (file_digest(item.sample.image), str(item.crop.bucket))
        return torch.randn((1, *shape_CHW), generator=generator(self._seed, "validation", *key))

"""The `TrainStep` of flow matching: from a batch of latents to one loss per sample.

Every draw has a key of its own (architecture, section 5): the same use of an image gets the same noise and t,
whatever the batch size, accumulation or number of restarts.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.contracts import Batch, BatchSpec, ModelAdapter, StepLosses
from toolkit.flow.losses import loss_per_sample
from toolkit.flow.path import at_least_float32, linear_path
from toolkit.flow.sampler import shift_mu
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import Picture, draw_timestep, strata
from toolkit.flow.weighting import weights
from toolkit.seeding import generator

ROLE = "network"
"""The one role of a LoRA or a fully trained model."""


class FlowMatchingStep:
    """Velocity loss on the straight path between each image and its own noise."""

    def __init__(
        self,
        adapter: ModelAdapter,
        seed: int,
        timestep_type: str = "sigmoid",
        samples_per_epoch: int = 0,
        **settings: Any,
    ) -> None:
        """settings: further fields of `FlowSettings`. samples_per_epoch: needed with `num_timestep_buckets`."""
        self.adapter = adapter
        self.seed = seed
        self.samples_per_epoch = samples_per_epoch
        self.settings = FlowSettings(timestep_type=timestep_type, **settings)
        self._strata: tuple[int, list[int]] = (-1, [])

    def __call__(self, batch: Batch) -> StepLosses:
        latents_BCHW = at_least_float32(batch.latents_BCHW)
        noise_BCHW, t_B = self.draws(batch.spec, latents_BCHW.shape[1:])
        noise_BCHW, t_B = noise_BCHW.to(latents_BCHW.device), t_B.to(latents_BCHW.device)
        x_t_BCHW, velocity_BCHW = linear_path(latents_BCHW, noise_BCHW, t_B)
        predicted_BCHW = self.adapter.predict_velocity(x_t_BCHW, t_B, batch.prompts, batch.references)
        # The adapter decides the device: the batch may still be on the CPU.
        velocity_BCHW = velocity_BCHW.to(predicted_BCHW.device)
        loss_B = loss_per_sample(predicted_BCHW, velocity_BCHW, t_B, batch.loss_mask_B1HW, self.settings)
        weight_B = (self.weighting(t_B) * batch.loss_weight_B.to(t_B.device)).to(loss_B.device)
        return StepLosses({ROLE: loss_B * weight_B}, {"t": t_B})

    def weighting(self, t_B: Tensor) -> Tensor:
        """How much the loss of each sample counts, by its t."""
        return weights(t_B, self.settings)

    def draws(self, spec: BatchSpec, shape_CHW: torch.Size) -> tuple[Tensor, Tensor]:
        """Noise [B, C, H, W] and t [B] of a batch, float32 on the CPU."""
        keys = [(spec.epoch, position) for position in spec.positions]
        noise = [torch.randn(shape_CHW, generator=generator(self.seed, "noise", *key)) for key in keys]
        picture = self._picture(shape_CHW)
        t = [
            draw_timestep(self.settings, generator(self.seed, "timestep", *key), picture, self._stratum(*key))
            for key in keys
        ]
        return torch.stack(noise), torch.tensor(t)

    def _stratum(self, epoch: int, position: int) -> int | None:
        """Which part of the distribution a use draws from; a function of (seed, epoch, position) alone."""
        buckets = self.settings.num_timestep_buckets
        if not buckets:
            return None
        if self._strata[0] != epoch:
            drawn = strata(self.samples_per_epoch, buckets, generator(self.seed, "strata", epoch))
            self._strata = (epoch, drawn)
        return self._strata[1][position]

    def _picture(self, shape_CHW: torch.Size) -> Picture:
        tokens = (shape_CHW[-2] // 2) * (shape_CHW[-1] // 2)
        line = self.adapter.dynamic_shift
        mu = shift_mu(tokens, line.base_image_seq_len, line.max_image_seq_len, line.base_shift, line.max_shift)
        return Picture(tokens, mu, line.shift_terminal)

"""The `TrainStep` of flow matching: from a batch of latents to one loss per sample.

Every draw has a key of its own (architecture, section 5): the same use of an image gets the same noise and t,
whatever the batch size, accumulation or number of restarts.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.contracts import Batch, BatchSpec, ModelAdapter, StepLosses
from toolkit.flow.path import at_least_float32, linear_path, mse_per_sample
from toolkit.flow.timesteps import draw_timestep
from toolkit.flow.weighting import weighting_for
from toolkit.seeding import generator

ROLE = "network"
"""The one role of a LoRA or a fully trained model."""


class FlowMatchingStep:
    """Velocity loss on the straight path between each image and its own noise."""

    def __init__(self, adapter: ModelAdapter, seed: int, timestep_type: str) -> None:
        self.adapter = adapter
        self.seed = seed
        self.timestep_type = timestep_type
        self.weighting = weighting_for(timestep_type)

    def __call__(self, batch: Batch) -> StepLosses:
        latents_BCHW = at_least_float32(batch.latents_BCHW)
        noise_BCHW, t_B = self.draws(batch.spec, latents_BCHW.shape[1:])
        noise_BCHW, t_B = noise_BCHW.to(latents_BCHW.device), t_B.to(latents_BCHW.device)
        x_t_BCHW, velocity_BCHW = linear_path(latents_BCHW, noise_BCHW, t_B)
        predicted_BCHW = self.adapter.predict_velocity(x_t_BCHW, t_B, batch.prompts, batch.references)
        # The adapter decides the device: the batch may still be on the CPU.
        velocity_BCHW = velocity_BCHW.to(predicted_BCHW.device)
        loss_B = mse_per_sample(predicted_BCHW, velocity_BCHW, batch.loss_mask_B1HW)
        weight_B = (self.weighting(t_B) * batch.loss_weight_B.to(t_B.device)).to(loss_B.device)
        return StepLosses({ROLE: loss_B * weight_B}, {"t_mean": float(t_B.mean())})

    def draws(self, spec: BatchSpec, shape_CHW: torch.Size) -> tuple[Tensor, Tensor]:
        """Noise [B, C, H, W] and t [B] of a batch, float32 on the CPU."""
        keys = [(spec.epoch, position) for position in spec.positions]
        noise = [torch.randn(shape_CHW, generator=generator(self.seed, "noise", *key)) for key in keys]
        t = [draw_timestep(self.timestep_type, generator(self.seed, "timestep", *key)) for key in keys]
        return torch.stack(noise), torch.tensor(t)

"""The `TrainStep` of flow matching: from a batch of latents to one loss per sample.

Every random number has its own key (docs/architecture.md, "Randomness"): the same use of an image gets the same
noise and t, whatever the batch size, accumulation or number of restarts.

Shape suffixes: B batch, C channels, H/W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.data.dataloader import LatentBatch
from toolkit.data.types import BatchSpec, Size
from toolkit.flow.loss import INTERPOLANTS, at_least_float32, loss_per_sample, weights
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import LEVELS, TimestepContext, draw_timestep, strata
from toolkit.models.families import LOOKAHEAD_BATCHES
from toolkit.models.interface import DiffusionModel
from toolkit.system.device import to_device
from toolkit.system.seeding import generator
from toolkit.train.interface import Backward, StepLosses, TrainStep

NETWORK = "network"
"""The only role of a LoRA or a fully trained model."""


class ExtraLoss(Protocol):
    """A further loss of each sample, with its own forward passes."""

    def __call__(self, batch: LatentBatch, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Losses [B], float32. x_t_BCHW: the noised latents of the batch at t_B, on its device."""


class FlowMatchingStep(TrainStep[LatentBatch]):
    """Loss of what the model predicts (`ModelFacts.prediction`) on the path between each image and its own noise, and
    further losses."""

    extra_losses: dict[str, ExtraLoss]
    """Name -> loss that is added to that of the velocity. Its mean over the batch is logged as `loss/<name>`.

    Each has its own backward pass, so that only the activations of one are in memory."""

    def __init__(
        self,
        model: DiffusionModel,
        seed: int,
        timestep_type: str = "sigmoid",
        samples_per_epoch: int = 0,
        roles: Sequence[str] = (NETWORK,),
        **settings: Any,
    ) -> None:
        """settings: further fields of `FlowSettings`. samples_per_epoch: needed with `num_timestep_buckets`. roles:
        those that learn from the loss."""
        self.model = model
        self.seed = seed
        self.samples_per_epoch = samples_per_epoch
        self.roles = tuple(roles)
        self.interpolant = INTERPOLANTS[model.family.prediction]
        self.settings = FlowSettings(timestep_type=timestep_type, **settings)
        self.extra_losses = {}
        self._shift = model.dynamic_shift  # read from the model folder once, before the first step
        self._strata: tuple[int, list[int]] = (-1, [])

    def __call__(self, batch: LatentBatch, step: int = 0) -> StepLosses:
        """The loss of the velocity; `backward` adds `extra_losses` to it."""
        x_t_BCHW, target_BCHW, t_B = self._noised(batch)
        predicted_BCHW = self.model.predict_velocity(x_t_BCHW, t_B, batch.prompts, batch.control_latents)
        # The model decides the device: the batch may still be on the CPU.
        device = predicted_BCHW.device
        mask_B1HW = None if batch.loss_mask_B1HW is None else to_device(batch.loss_mask_B1HW, device)
        loss_B = loss_per_sample(
            predicted_BCHW, to_device(target_BCHW, device), to_device(t_B, device), mask_B1HW, self.settings
        )
        weight_B = to_device(self.weighting(t_B) * batch.loss_weight_B.to(t_B.device), device)
        return StepLosses(dict.fromkeys(self.roles, loss_B * weight_B), {"t": t_B})

    def backward(self, batch: LatentBatch, backward: Backward) -> StepLosses:
        losses = self(batch, backward.step)
        backward(losses.by_role, final=not self.extra_losses)
        if not self.extra_losses:
            return losses
        x_t_BCHW, _, t_B = self._noised(batch)
        loss_B, numbers = losses.by_role[self.roles[0]].detach(), dict(losses.numbers)
        for index, (name, extra_loss) in enumerate(self.extra_losses.items(), start=1):
            extra_B = extra_loss(batch, x_t_BCHW, t_B)
            backward(dict.fromkeys(self.roles, extra_B), final=index == len(self.extra_losses))
            numbers[f"loss/{name}"] = extra_B.detach().mean()
            loss_B = loss_B + extra_B.detach()
        return StepLosses(dict.fromkeys(self.roles, loss_B), losses.per_sample, numbers)

    def _noised(self, batch: LatentBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t [B, C, H, W], what is predicted [B, C, H, W], t [B]) of a batch, on its device."""
        latents_BCHW = at_least_float32(batch.latents_BCHW)
        noise_BCHW, t_B = self.sample_noise_and_t(batch.spec, latents_BCHW.shape[1:])
        noise_BCHW, t_B = (to_device(tensor, latents_BCHW.device) for tensor in (noise_BCHW, t_B))
        return (*self.interpolant.mix(latents_BCHW, noise_BCHW, t_B), t_B)

    def weighting(self, t_B: Tensor) -> Tensor:
        """Loss weight of each sample, by its t [B]."""
        return weights(t_B, self.settings)

    def sample_noise_and_t(self, spec: BatchSpec, shape_CHW: torch.Size) -> tuple[Tensor, Tensor]:
        """Noise [B, C, H, W] and t [B] of a batch, float32 on the CPU."""
        keys = [(spec.epoch, position) for position in spec.positions]
        noise = [torch.randn(shape_CHW, generator=generator(self.seed, "noise", *key)) for key in keys]
        return torch.stack(noise), torch.tensor(self.sample_t(spec, Size(shape_CHW[-1], shape_CHW[-2])))

    def sample_t(self, spec: BatchSpec, latent: Size) -> list[float]:
        """The timestep t of each item of a batch whose targets have latents of this size."""
        keys = [(spec.epoch, position) for position in spec.positions]
        tokens = self.model.family.tokens(latent)
        context = TimestepContext(tokens, self._shift.mu(tokens, LEVELS), self._shift.shift_terminal)
        return [
            draw_timestep(self.settings, generator(self.seed, "timestep", *key), context, self._stratum(*key))
            for key in keys
        ]

    def announce_timesteps(
        self, specs: Iterable[BatchSpec], latent_of: Callable[[BatchSpec], Size]
    ) -> Iterator[BatchSpec]:
        """Passes the specs on; the model prefetches their timesteps some micro-batches ahead.

        latent_of: width and height of a batch's target latents.
        """
        specs = iter(specs)
        while upcoming := list(islice(specs, LOOKAHEAD_BATCHES)):
            self.model.prefetch_timesteps([t for spec in upcoming for t in self.sample_t(spec, latent_of(spec))])
            yield from upcoming

    def _stratum(self, epoch: int, position: int) -> int | None:
        """The stratum of the timestep distribution of one use; a function of (seed, epoch, position) alone."""
        buckets = self.settings.num_timestep_buckets
        if not buckets:
            return None
        if self._strata[0] != epoch:
            order = strata(self.samples_per_epoch, buckets, generator(self.seed, "strata", epoch))
            self._strata = (epoch, order)
        return self._strata[1][position % len(self._strata[1])]  # those of a stream continue from epoch to epoch

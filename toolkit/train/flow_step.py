"""The `TrainStep` of flow matching: from a batch of latents to one loss per sample.

Every random number has its own key (docs/architecture.md, "Randomness"): the same use
of an image gets the same noise and t, whatever the batch size, accumulation or number
of restarts.

Shape suffixes: B batch, C channels, H/W latent height and width.

The trainers make a step for the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.contracts.data import BatchSpec, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.contracts.training import Backward, StepLosses, TrainStep
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.errors import RunError
from toolkit.flow.loss import INTERPOLANTS, at_least_float32, loss_per_sample, weights
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import TimestepContext, draw_timestep, strata
from toolkit.models.families import LOOKAHEAD_BATCHES
from toolkit.system.device import to_device
from toolkit.system.seeding import generator

NETWORK = "network"
"""The only role of a LoRA or a fully trained model."""


class ExtraLoss(Protocol):
    """A further loss of each sample, with its own forward passes.

    Example::

        extra_loss: ExtraLoss = PriorPreservation(model, network, "blank_prompt")
        step.extra_losses["blank_prompt"] = extra_loss
    """

    def __call__(self, batch: LatentBatch, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Losses [B], float32. x_t_BCHW: the noised latents of the batch at t_B, on its
        device."""


class Loss(Protocol):
    """The loss of the prediction, in the place of `train.loss_type`'s.

    Example::

        step.loss = lambda predicted_BCHW, target_BCHW, t_B, mask_B1HW: (
            (predicted_BCHW.float() - target_BCHW).abs().flatten(1).mean(1)
        )
    """

    def __call__(
        self,
        predicted_BCHW: Tensor,
        target_BCHW: Tensor,
        t_B: Tensor,
        mask_B1HW: Tensor | None,
    ) -> Tensor:
        """Losses [B], float32, before their weights. The prediction has the model's
        number type, the target float32. mask_B1HW: 0 where nothing is learned."""


def _checked(loss_B: Tensor, t_B: Tensor, name: str) -> Tensor:
    """A loss as it is; raises RunError where it has not one number per sample."""
    if not isinstance(loss_B, Tensor):
        raise RunError(
            f"the loss {name!r} is {loss_B!r}, and must be a tensor [B] that its function returns"
        )
    if loss_B.shape != t_B.shape:
        raise RunError(
            f"the loss {name!r} has the shape {list(loss_B.shape)}, and must have one number per sample, "
            f"[{len(t_B)}]: end it with .flatten(1).mean(1)"
        )
    return loss_B


def _refuse_constant(loss_B: Tensor, name: str) -> None:
    """Raises RunError for a loss without a gradient."""
    if not loss_B.requires_grad:
        raise RunError(
            f"the loss {name!r} does not depend on what is trained: compute it from a prediction, "
            f"without .detach(), and outside of torch.no_grad()"
        )


class FlowMatchingStep(TrainStep[LatentBatch]):
    """Loss of the model's prediction (`ModelFacts.prediction`) on the path between each
    image and its own noise, and further losses.

    Example::

        step = FlowMatchingStep(model, seed=42, timestep_type="sigmoid")
        train(run, source, step)
    """

    loss: Loss
    """The loss of the prediction. An extension may put another one in its place."""

    extra_losses: dict[str, ExtraLoss]
    """Name -> loss that is added to the loss of the velocity. Its mean over the batch
    is logged as `loss/<name>`.

    Each has its own backward pass, so that only the activations of one are in
    memory."""

    def __init__(
        self,
        model: DiffusionModel,
        seed: int,
        timestep_type: str = "sigmoid",
        samples_per_epoch: int = 0,
        roles: Sequence[str] = (NETWORK,),
        **settings: Any,
    ) -> None:
        """settings: further fields of `FlowSettings`. samples_per_epoch: needed with
        `num_timestep_buckets`. roles: those that learn from the loss."""
        self.model = model
        self.seed = seed
        self.samples_per_epoch = samples_per_epoch
        self.roles = tuple(roles)
        self.interpolant = INTERPOLANTS[model.family.prediction]
        self.settings = FlowSettings(timestep_type=timestep_type, **settings)
        self.loss = self._usual_loss
        self.extra_losses = {}
        # Read from the model folder once, before the first step.
        self._shift = model.dynamic_shift
        self._strata: tuple[int, list[int]] = (-1, [])

    def __call__(self, batch: LatentBatch, step: int = 0) -> StepLosses:
        """The loss of the velocity; `backward` adds `extra_losses` to it."""
        x_t_BCHW, target_BCHW, t_B = self.lesson(batch)
        predicted_BCHW = self.model.predict_velocity(
            x_t_BCHW, t_B, batch.prompts, batch.control_latents
        )
        # The model decides the device: the batch may still be on the CPU.
        device = predicted_BCHW.device
        mask_B1HW = batch.loss_mask_B1HW
        if mask_B1HW is not None:
            mask_B1HW = to_device(mask_B1HW, device)
        loss_B = self.loss(
            predicted_BCHW,
            to_device(target_BCHW, device),
            to_device(t_B, device),
            mask_B1HW,
        )
        loss_B = _checked(loss_B, t_B, "loss")
        weight_B = self.weighting(t_B) * batch.loss_weight_B.to(t_B.device)
        loss_B = loss_B * to_device(weight_B, device)
        return StepLosses(dict.fromkeys(self.roles, loss_B), {"t": t_B})

    def _usual_loss(
        self,
        predicted_BCHW: Tensor,
        target_BCHW: Tensor,
        t_B: Tensor,
        mask_B1HW: Tensor | None,
    ) -> Tensor:
        return loss_per_sample(
            predicted_BCHW, target_BCHW, t_B, mask_B1HW, self.settings
        )

    def backward(self, batch: LatentBatch, backward: Backward) -> StepLosses:
        losses = self(batch, backward.step)
        _refuse_constant(losses.by_role[self.roles[0]], "loss")
        backward(losses.by_role, final=not self.extra_losses)
        if not self.extra_losses:
            return losses
        loss_B = losses.by_role[self.roles[0]].detach()
        numbers = dict(losses.numbers)
        for index, name in enumerate(self.extra_losses, start=1):
            extra_B = self._extra(name, batch)
            _refuse_constant(extra_B, name)
            backward(
                dict.fromkeys(self.roles, extra_B),
                final=index == len(self.extra_losses),
            )
            numbers[f"loss/{name}"] = extra_B.detach().mean()
            loss_B = loss_B + extra_B.detach()
        return replace(
            losses, by_role=dict.fromkeys(self.roles, loss_B), numbers=numbers
        )

    def _extra(self, name: str, batch: LatentBatch) -> Tensor:
        """A further loss of each item [B]."""
        x_t_BCHW, _, t_B = FlowMatchingStep.lesson(self, batch)
        return _checked(self.extra_losses[name](batch, x_t_BCHW, t_B), t_B, name)

    def lesson(self, batch: LatentBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t [B, C, H, W], the target of the prediction [B, C, H, W], t [B]) of a
        batch, on its device."""
        latents_BCHW = at_least_float32(batch.latents_BCHW)
        noise_BCHW, t_B = self.sample_noise_and_t(
            batch.spec, latents_BCHW.shape[1:], batch.stacked
        )
        t_B = to_device(t_B, latents_BCHW.device)
        device = latents_BCHW.device
        mixed = self.interpolant.mix(latents_BCHW, to_device(noise_BCHW, device), t_B)
        return (*mixed, t_B)

    def weighting(self, t_B: Tensor) -> Tensor:
        """Loss weight of each sample [B], by its t [B]."""
        return weights(t_B, self.settings)

    def sample_noise_and_t(
        self, spec: BatchSpec, shape_CHW: torch.Size, stacked: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Noise [B, C, H, W] and t [B] of a batch, float32 on the CPU. stacked:
        number of images below each other; the size of one of them decides t."""
        keys = noise_keys(spec)
        noise = [
            torch.randn(shape_CHW, generator=generator(self.seed, "noise", *key))
            for key in keys
        ]
        return torch.stack(noise), torch.tensor(
            self.sample_t(spec, Size(shape_CHW[-1], shape_CHW[-2] // stacked))
        )

    def sample_t(self, spec: BatchSpec, latent: Size) -> list[float]:
        """The timestep t, in [0, 1], of each item of a batch whose targets have latents
        of this size.

        The random numbers depend only on the seed and on the epoch and position of the
        item.
        """
        family = self.model.family
        tokens = family.tokens(latent)
        # As its own samples shift: some shifts depend on the number of steps.
        mu = self._shift.mu(tokens, family.sample_steps)
        context = TimestepContext(tokens, mu, self._shift.shift_terminal)
        buckets = self.settings.num_timestep_buckets
        if buckets and self._strata[0] != spec.epoch:
            order = strata(
                self.samples_per_epoch,
                buckets,
                generator(self.seed, "strata", spec.epoch),
            )
            self._strata = (spec.epoch, order)
        order = self._strata[1]
        drawn = []
        for key in noise_keys(spec):
            # A function of (seed, epoch, position) alone; the strata of a stream
            # continue from epoch to epoch.
            part = order[key[1] % len(order)] if buckets else None
            drawn.append(
                draw_timestep(
                    self.settings,
                    generator(self.seed, "timestep", *key),
                    context,
                    part,
                    max(1, buckets),
                )
            )
        return drawn

    def announce_timesteps(
        self, specs: Iterable[BatchSpec], latent_of: Callable[[BatchSpec], Size]
    ) -> Iterator[BatchSpec]:
        """Passes the specs on; the model prefetches their timesteps some micro-batches
        ahead.

        latent_of: width and height of a batch's target latents.
        """
        specs = iter(specs)
        while upcoming := list(islice(specs, LOOKAHEAD_BATCHES)):
            self.model.prefetch_timesteps(
                [t for spec in upcoming for t in self.sample_t(spec, latent_of(spec))]
            )
            yield from upcoming


@dataclass(frozen=True)
class PriorPreservation:
    """factor * mean((v(x_t, t, prompt) - v0(x_t, t, prompt))^2) of each sample; v0 is
    the model without the network: it must not change what the model predicts for
    another prompt. An `ExtraLoss`.

    The base model's own prediction takes the place of the images that DreamBooth draws
    of the class (Ruiz et al. 2023, arXiv:2208.12242, eq. 2). No mask and no weight of a
    sample or noise level applies. Source: ai-toolkit, `SDTrainer.py`,
    `diff_output_preservation` and `blank_prompt_preservation`.

    Example::

        name = "blank_prompt_preservation"
        step.extra_losses[name] = PriorPreservation(model, network, name, factor=0.5)
    """

    model: DiffusionModel
    network: Network
    prompt: str
    """Its name in `LatentBatch.extra_prompts`."""

    factor: float = 1.0

    def __call__(self, batch: LatentBatch, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        prompts = batch.extra_prompts[self.prompt]
        predict = partial(
            self.model.predict_velocity, x_t_BCHW, t_B, prompts, batch.control_latents
        )
        with torch.no_grad(), self.network.disabled():
            prior_BCHW = predict()
        difference_BCHW = predict().float() - prior_BCHW.float()
        return self.factor * difference_BCHW.square().flatten(1).mean(1)


def noise_keys(spec: BatchSpec) -> list[tuple[int, int]]:
    """Keys of the random numbers of each item of a batch: epoch and position.

    >>> noise_keys(BatchSpec(1, items=(4,), positions=(0,)))
    [(1, 0)]
    """
    return [(spec.epoch, position) for position in spec.positions]

"""`train.few_step_loss`: with a few-step LoRA the network learns to have the effect
that it has without it in many steps.

In the later micro-batches, or a share of them, the few-step LoRA is active, at the
noise levels at which it will be sampled. x_t is the result of sampling with it up to
that level. The target is the velocity of the model with the few-step LoRA but without
the network, plus what the teacher, the mean of the network, changes in many steps: the
difference that it makes to the velocity that leads from x_t to where the model without
the few-step LoRA, with guidance, arrives at the next level in several Euler steps. So
errors of the few-step LoRA itself are not part of it. Only the network learns; the
few-step LoRA is frozen, and the target has no gradient. Each level counts the same, as
each is one step of the sampling.

Source: the way to the next level: Luhman & Luhman 2021, arXiv:2101.02388; Salimans & Ho
2022, arXiv:2202.00512, section 3. x_t of the student's own sampling: Yin et al. 2024,
arXiv:2405.14867.

Shape suffixes: B rows of the batch, C channels, H/W latent height and width.

`extensions.sd_trainer.process` makes the step and its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.config.sections.few_step import FewStepLossConfig
from toolkit.contracts.data import BatchSpec, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.contracts.training import Backward, StepLosses
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.flow.sampler import sigmas
from toolkit.optim.ema import copy_into, swapped_in
from toolkit.system.device import to_device
from toolkit.system.seeding import uniform
from toolkit.train.flow_step import FlowMatchingStep, noise_keys
from toolkit.train.optimizer_step import Role

NEGATIVE = "few_step_loss"
"""Name of the negative prompt in `LatentBatch.extra_prompts`."""

CHECKPOINT_FILE = "few_step_loss"
"""Stem of the file of the teacher in a checkpoint."""


MEMORY = 0.3
"""Steps over which the teacher is averaged, as a share of those before the few-step
micro-batches: independent of how many are still to come."""


class Teacher:
    """The running mean of the network since the few-step micro-batches began, from its
    average where it has one.

    A network that learned from itself as it is would run away: what it changes with
    guidance grows with each lesson. As it was in the beginning it would have nothing of
    what the network still learns. Source: Tarvainen & Valpola 2017, arXiv:1703.01780.

    Example::

        teacher = Teacher(role, first_step=1000)
        with teacher.teaching():
            velocity = model.predict_velocity(x_t, t, prompts, references)
    """

    def __init__(self, role: Role, first_step: int) -> None:
        """It takes in the network before each step of the role, and its tensors become
        part of the role's checkpoints. first_step: steps done before the first
        micro-batch."""
        self.first_step = first_step
        self._role = role
        role.before_step = self._take_in
        self._rate = 1 / max(1.0, MEMORY * first_step)
        self._weights = {
            name: p.detach().clone() for name, p in role.parameters.items()
        }
        self._step = torch.tensor(-1)
        role.further[CHECKPOINT_FILE] = {**self._weights, "begun": self._step}

    def has_begun(self, step: int) -> bool:
        """Whether few-step micro-batches have begun when `step` steps are done."""
        return step >= self.first_step

    @torch.no_grad()
    def _take_in(self, step: int) -> None:
        """Once in each step from the first one on. It starts over in a resumed run
        whose first one has moved to a later step."""
        if not self.has_begun(step):
            return
        if int(self._step) < self.first_step:
            if self._role.ema:
                start: Mapping[str, Tensor] = self._role.ema.averages
            else:
                start = self._role.parameters
            copy_into(self._weights, start)
        elif int(self._step) < step:
            for name, weight in self._weights.items():
                weight.lerp_(self._role.parameters[name].to(weight.dtype), self._rate)
        self._step.fill_(step)

    def teaching(self) -> AbstractContextManager[None]:
        """Inside the block the network is the teacher."""
        return swapped_in(self._role.parameters, self._weights)


class FewStepMixture(FlowMatchingStep):
    """A flow matching step that computes the later micro-batches, or a share of them,
    in few steps.

    Which ones depends on the seed, the epoch and the place of their first item alone: a
    resume repeats it, and so does each piece of a micro-batch that is cut.

    Example::

        beside = process.beside
        step = FewStepMixture(
            model, seed, few, network, teacher,
            with_lora=partial(beside.using, "train.few_step_loss"),
            alone=partial(beside.using, ""),
        )
        train(run, source, step)
    """

    def __init__(
        self,
        model: DiffusionModel,
        seed: int,
        few: FewStepLossConfig,
        network: Network,
        teacher: Teacher,
        with_lora: Callable[[], AbstractContextManager[None]],
        alone: Callable[[], AbstractContextManager[None]],
        **settings: Any,
    ) -> None:
        """with_lora: inside its block the few-step LoRA is active; alone: no file is.
        settings: as of `FlowMatchingStep`."""
        super().__init__(model, seed, **settings)
        self.few = few
        self._network = network
        self._teacher = teacher
        self._with_lora = with_lora
        self._alone = alone
        self._is_active = False

    def is_few(self, spec: BatchSpec, step: int) -> bool:
        """Whether the few-step LoRA is active for this micro-batch. step: optimizer
        steps done."""
        drawn = uniform(self.seed, "few-step batch", spec.epoch, spec.first)
        return self._teacher.has_begun(step) and drawn < self.few.share

    def backward(self, batch: LatentBatch, backward: Backward) -> StepLosses:
        if not self.is_few(batch.spec, backward.step):
            return super().backward(batch, backward)
        self._is_active = True
        try:
            with self._with_lora():
                losses = super().backward(batch, backward)
        finally:
            self._is_active = False
        mean = losses.by_role[self.roles[0]].detach().mean()
        return replace(losses, numbers={**losses.numbers, "loss/few_step": mean})

    def weighting(self, t_B: Tensor) -> Tensor:
        return torch.ones_like(t_B) if self._is_active else super().weighting(t_B)

    def sample_t(self, spec: BatchSpec, latent: Size, levels: int = 1) -> list[float]:
        if not self._is_active:
            return super().sample_t(spec, latent, levels)
        schedule = self.schedule(latent)
        sampled = []
        for key in noise_keys(spec, levels):
            draw = uniform(self.seed, "few-step level", *key)
            sampled.append(schedule[int(draw * len(schedule))])
        return sampled

    def schedule(self, latent: Size) -> list[float]:
        """The noise levels of a sampling run with the LoRA, for latents of this size:
        one per step, descending from 1, without the 0 at the end."""
        steps = self.few.steps
        if (shift := self.few.flow_shift) is not None:
            return sigmas(steps, math.log(shift), None).tolist()[:-1]
        dynamic_shift = self.model.dynamic_shift
        return sigmas(
            steps,
            dynamic_shift.mu(self.model.family.tokens(latent), steps),
            dynamic_shift.shift_terminal,
        ).tolist()[:-1]

    # ------------------------------------------------------------ distillation

    @torch.no_grad()
    def lesson(self, batch: LatentBatch, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        if not self._is_active:
            return super().lesson(batch, levels)
        shape_CHW = batch.latents_BCHW.shape[1:]
        device = batch.latents_BCHW.device
        drawn = self.sample_noise_and_t(batch.spec, shape_CHW, levels)
        noise_BCHW, t_B = (to_device(tensor, device) for tensor in drawn)
        schedule = torch.tensor(
            [*self.schedule(Size(shape_CHW[-1], shape_CHW[-2])), 0.0], device=device
        )
        at_B = (schedule - t_B[:, None]).abs().argmin(1)
        self.model.prefetch_timesteps(schedule[:-1].tolist())
        x_t_BCHW = self._student(batch, noise_BCHW, schedule, at_B)
        aim = partial(self._aim, batch, x_t_BCHW, t_B, schedule[at_B + 1])
        with self._teacher.teaching():
            change_BCHW = aim()
        with self._network.disabled():
            change_BCHW = change_BCHW - aim()
            few_BCHW = self.model.predict_velocity(
                x_t_BCHW, t_B, batch.prompts, batch.control_latents
            )
        return x_t_BCHW, to_device(few_BCHW.float(), device) + change_BCHW, t_B

    def _student(
        self, batch: LatentBatch, noise_BCHW: Tensor, schedule: Tensor, at_B: Tensor
    ) -> Tensor:
        """The latents after `at_B` steps of the sampling with the few-step LoRA."""
        x_BCHW = noise_BCHW
        prompts = batch.prompts
        references = batch.control_latents
        for step in range(int(at_B.max())):
            t_B = schedule[step].expand(len(x_BCHW))
            v_BCHW = to_device(
                self.model.predict_velocity(x_BCHW, t_B, prompts, references).float(),
                x_BCHW.device,
            )
            span_B = torch.where(at_B > step, schedule[step + 1] - schedule[step], 0.0)
            x_BCHW = (
                x_BCHW + self.interpolant.speed * span_B[:, None, None, None] * v_BCHW
            )
        return x_BCHW

    def _aim(
        self, batch: LatentBatch, x_t_BCHW: Tensor, t_B: Tensor, until_B: Tensor
    ) -> Tensor:
        """The prediction with which one Euler step from t to `until` ends where the
        network alone, guided, ends in `teacher_steps`."""
        few = self.few
        x_BCHW = x_t_BCHW
        total_BCHW = torch.zeros_like(x_BCHW)
        with self._alone():
            for step in range(few.teacher_steps):
                level_B = t_B + (until_B - t_B) * (step / few.teacher_steps)
                v_BCHW = to_device(
                    self._guided(batch, x_BCHW, level_B).float(), x_BCHW.device
                )
                span_B = (until_B - t_B) / few.teacher_steps
                x_BCHW = (
                    x_BCHW
                    + self.interpolant.speed * span_B[:, None, None, None] * v_BCHW
                )
                total_BCHW = total_BCHW + v_BCHW
        return total_BCHW / few.teacher_steps

    def _guided(self, batch: LatentBatch, x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        family = self.model.family
        references = batch.control_latents
        scale = (
            family.guidance
            if self.few.guidance_scale is None
            else self.few.guidance_scale
        )
        embedded = [torch.full_like(t_B, scale)] if family.embeds_guidance else []
        cond_BCHW = self.model.predict_velocity(
            x_BCHW, t_B, batch.prompts, references, *embedded
        )
        if scale <= 1 or embedded:
            return cond_BCHW
        negative = batch.extra_prompts[NEGATIVE]
        uncond_BCHW = self.model.predict_velocity(x_BCHW, t_B, negative, references)
        return self.model.apply_cfg(cond_BCHW, uncond_BCHW, scale)

"""`train.preference`: Diffusion-DPO for flow matching.

For a pair of images of one prompt and the same control images, better (w) and worse
(l), with the same noise and t:

    -log sigmoid(-beta / 2 * ((e(w) - e_ref(w)) - (e(l) - e_ref(l))))

e is the mean squared error of the predicted velocity, e_ref the same error of the model
without the network (or with another LoRA file in its place). Both images are in one
micro-batch: one forward pass without gradients for the reference, one with gradients.
Source: Wallace et al. 2023, arXiv:2311.12908, equation 14; with velocities, Liu et al.
2025, arXiv:2501.13918. The weight of t is constant, as in these papers.

Shape suffixes: P pairs, 2P better images and then worse ones, C channels, H/W latent
height and width.

`extensions.sd_trainer.process` makes the step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from toolkit.config.sections.train import (
    DISTANCE,
    LOSS_OF_IMAGES,
    LOSS_OF_PAIRS,
    MARGIN,
    RIGHT,
    PreferenceConfig,
)
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.training import StepLosses
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.flow.loss import loss_per_sample, margin
from toolkit.system.device import to_device
from toolkit.system.seeding import uniform
from toolkit.train.flow_step import FlowMatchingStep


class PreferenceStep(FlowMatchingStep):
    """A flow matching step in which images that have a worse one are compared with it;
    others are as usual.

    In which micro-batches depends on the seed, the epoch and the place of their first
    item alone: a resume repeats it, and so does each piece of a micro-batch that is
    cut.

    Example::

        preference = section.train.preference
        step = PreferenceStep(model, seed, preference, reference=network.disabled)
        train(run, source, step)
    """

    def __init__(
        self,
        model: DiffusionModel,
        seed: int,
        preference: PreferenceConfig,
        reference: Callable[[], AbstractContextManager[None]],
        **settings: Any,
    ) -> None:
        """reference: inside its block the model is the reference. settings: as of
        `FlowMatchingStep`."""
        super().__init__(model, seed, **settings)
        self.preference = preference
        self._reference = reference

    def __call__(self, batch: LatentBatch, step: int = 0) -> StepLosses:
        drawn = uniform(
            self.seed, "preference batch", batch.spec.epoch, batch.spec.first
        )
        compares = drawn < self.preference.share
        pairs = [
            row
            for row, worse_CHW in enumerate(batch.worse)
            if compares and worse_CHW is not None
        ]
        if not pairs:
            return self._plain(batch, step)
        if len(pairs) == len(batch):
            return self._compare(batch)
        compared = self._compare(batch.select(pairs))
        others = [row for row in range(len(batch)) if row not in pairs]
        plain = self._plain(batch.select(others), step)
        order = torch.tensor([*pairs, *others]).argsort()

        def joined(of_pairs: Tensor, of_others: Tensor) -> Tensor:
            return torch.cat([of_pairs, of_others])[order.to(of_pairs.device)]

        # All roles have the same loss.
        role = self.roles[0]
        loss_B = joined(compared.by_role[role], plain.by_role[role])
        t_B = joined(compared.per_sample["t"], plain.per_sample["t"])
        numbers = compared.numbers | plain.numbers
        counts = compared.counts | plain.counts
        return StepLosses(
            dict.fromkeys(self.roles, loss_B), {"t": t_B}, numbers, counts
        )

    def _plain(self, batch: LatentBatch, step: int) -> StepLosses:
        """The losses of images that are not compared."""
        losses = super().__call__(batch, step)
        mean = losses.by_role[self.roles[0]].detach().mean()
        return replace(
            losses, numbers={LOSS_OF_IMAGES: mean}, counts={LOSS_OF_IMAGES: len(batch)}
        )

    def _compare(self, batch: LatentBatch) -> StepLosses:
        """The losses [P] of a batch of pairs."""
        count = len(batch)
        worse_PCHW = torch.stack(
            [worse_CHW for worse_CHW in batch.worse if worse_CHW is not None]
        )
        of_worse = replace(batch, latents_BCHW=worse_PCHW)
        lessons = zip(self.lesson(batch, 1), self.lesson(of_worse, 1), strict=True)
        x_t_2PCHW, target_2PCHW, t_2P = (torch.cat(both) for both in lessons)
        prompts = batch.prompts.select([*range(count)] * 2)
        predict = partial(
            self.model.predict_velocity,
            x_t_2PCHW,
            t_2P,
            prompts,
            batch.control_latents * 2,
        )
        with torch.no_grad(), self._reference():
            of_reference_2PCHW = predict().float()
        predicted_2PCHW = predict().float()
        device = predicted_2PCHW.device
        target_2PCHW = to_device(target_2PCHW, device)
        t_2P = to_device(t_2P, device)
        mask_P1HW = batch.loss_mask_B1HW
        if mask_P1HW is not None:
            mask_P1HW = to_device(mask_P1HW, device)
        weight = 1.0 if mask_P1HW is None else mask_P1HW.repeat(2, 1, 1, 1)

        def error(velocity_2PCHW: Tensor) -> Tensor:
            return (
                ((velocity_2PCHW - target_2PCHW).square() * weight).flatten(1).mean(1)
            )

        gain_w, gain_l = (error(predicted_2PCHW) - error(of_reference_2PCHW)).chunk(2)
        margin_P = margin(self.preference.beta, gain_w, gain_l)
        loss_P = -logsigmoid(margin_P)
        if self.preference.sft_weight:
            parts = predicted_2PCHW[:count], target_2PCHW[:count], t_2P[:count]
            plain_P = loss_per_sample(*parts, mask_P1HW, self.settings) * to_device(
                self.weighting(t_2P[:count]), device
            )
            loss_P = loss_P + self.preference.sft_weight * plain_P
        loss_P = loss_P * to_device(batch.loss_weight_B, device)
        moved = (predicted_2PCHW - of_reference_2PCHW).square().mean()
        right = (margin_P > 0).float().mean()
        numbers = {
            LOSS_OF_PAIRS: loss_P.detach().mean(),
            MARGIN: margin_P.mean(),
            RIGHT: right,
            DISTANCE: moved,
        }
        counts = dict.fromkeys(numbers, count)
        return StepLosses(
            dict.fromkeys(self.roles, loss_P), {"t": t_2P[:count]}, numbers, counts
        )

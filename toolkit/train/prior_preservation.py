"""Prior preservation without class images: the adapter must not change what the model predicts for another prompt.

The base model's own prediction, with the adapter off, takes the place of the images that DreamBooth draws of the class
(Ruiz et al. 2023, arXiv:2208.12242, eq. 2).

Source: ai-toolkit, `SDTrainer.py`, `diff_output_preservation` and `blank_prompt_preservation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from toolkit.data.dataloader import LatentBatch
from toolkit.models.interface import DiffusionModel
from toolkit.networks.interface import Network


@dataclass(frozen=True)
class PriorPreservation:
    """factor * mean((v(x_t, t, prompt) - v0(x_t, t, prompt))^2) of each sample; v0 is the model without the network.

    An `ExtraLoss`. No mask and no weight of a sample or noise level applies.
    """

    model: DiffusionModel
    network: Network
    prompt: str
    """Its name in `LatentBatch.extra_prompts`."""

    factor: float = 1.0

    def __call__(self, batch: LatentBatch, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        prompts = batch.extra_prompts[self.prompt]
        predict = partial(self.model.predict_velocity, x_t_BCHW, t_B, prompts, batch.control_latents)
        with torch.no_grad(), self.network.disabled():
            prior_BCHW = predict()
        difference_BCHW = predict().float() - prior_BCHW.float()
        return self.factor * difference_BCHW.square().flatten(1).mean(1)

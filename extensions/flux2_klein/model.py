"""`DiffusionModel` for FLUX.2 [klein]: the call of its transformer, as its pipeline makes
it, and its latents.

Shape suffixes: B batch, C latent channels, H/W latent height and width, P pixel
channels, N tokens of images, L text tokens, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.contracts.model import DynamicShift
from toolkit.models.diffusers_model import DiffusersModel
from toolkit.system.device import to_device

from .family import EmpiricalShift

TIME_BETWEEN = 10
"""Positions in time from the target to the first control image, and from each of them
to the next. Source: diffusers, pipeline_flux2_klein.py, `_prepare_image_ids`."""

SMALLEST = 16
"""Pixels of the shortest side of a control image, and the multiple that sides are cut
to."""


class Flux2KleinModel(DiffusersModel):
    """A folder of FLUX.2 [klein]; see `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        velocity_BCHW = model.predict_velocity(x_t_BCHW, t_B, prompts, [(control_CHW,)])
    """

    dynamic_shift: DynamicShift = EmpiricalShift()

    def reference_size(self, image: Size, target: Size) -> Size:
        """Only larger ones are scaled. Source: diffusers, pipeline_flux2_klein.py,
        `__call__`, which scales, and cuts the edges off."""
        area = self.options.reference_area or target.width * target.height
        scale = min(1.0, math.sqrt(area / (image.width * image.height)))
        return Size(
            *(max(SMALLEST, int(side * scale) // SMALLEST * SMALLEST) for side in image)
        )

    @torch.no_grad()
    def encode_images(self, pixels_BPHW: Tensor) -> Tensor:
        vae, mean_C11, std_C11 = self._vae()
        pixels_BPHW = pixels_BPHW.to(self.options.device, self.options.dtype)
        latents_BCHW = pixel_unshuffle(vae.encode(pixels_BPHW).latent_dist.mode(), 2)
        return (latents_BCHW - mean_C11) / std_C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        vae, mean_C11, std_C11 = self._vae()
        latents_BCHW = latents_BCHW.to(self.options.device, self.options.dtype)
        unscaled_BCHW = pixel_shuffle(latents_BCHW * std_C11 + mean_C11, 2)
        pixels_BPHW: Tensor = vae.decode(unscaled_BCHW).sample.float()
        return pixels_BPHW.clamp(-1, 1)

    def _vae(self) -> tuple[Any, Tensor, Tensor]:
        """The autoencoder, with the statistics of its batch norm [C, 1, 1]."""
        vae = self.on_device("vae")
        mean_C11 = vae.bn.running_mean.view(-1, 1, 1)
        variance_C11 = vae.bn.running_var.view(-1, 1, 1)
        return vae, mean_C11, (variance_C11 + vae.config.batch_norm_eps).sqrt()

    def forward(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        """Source: diffusers, pipeline_flux2_klein.py, `__call__`."""
        device = self.options.device
        texts_BLD = torch.stack(self.texts(prompts, len(x_t_BCHW)))
        images = [self.to_model(x_t_BCHW), *slots]
        found_BNC = self.network_module(
            hidden_states=torch.cat([one.flatten(2).mT for one in images], dim=1),
            encoder_hidden_states=texts_BLD,
            timestep=to_device(t_B, device),
            img_ids=torch.cat(
                [
                    positions(device, TIME_BETWEEN * number, (*one.shape[-2:], 1))
                    for number, one in enumerate(images)
                ]
            ),
            txt_ids=positions(device, 0, (1, 1, texts_BLD.shape[1])),
            return_dict=False,
        )[0]
        grid = x_t_BCHW.shape[-2:]
        found_BCHW: Tensor = found_BNC[:, : grid.numel()].mT.unflatten(2, grid)
        return found_BCHW.float()


def positions(device: torch.device, time: int, sides: Sequence[int]) -> Tensor:
    """Time, row, column, and place in the text of each token [N, 4]. sides: rows,
    columns, tokens of text.

    >>> positions(torch.device("cpu"), 10, (1, 2, 1)).tolist()
    [[10, 0, 0, 0], [10, 0, 1, 0]]
    """
    begin = torch.arange(time, time + 1, device=device)
    return torch.cartesian_prod(
        begin, *(torch.arange(side, device=device) for side in sides)
    )

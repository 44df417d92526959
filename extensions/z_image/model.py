"""`DiffusionModel` for Z-Image: the call of its transformer, as its pipeline makes it.

Shape suffixes: B batch, C latent channels, H/W latent height and width, F frames (1), L
text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.contracts.data import PromptEmbeds
from toolkit.models.diffusers_model import DiffusersModel
from toolkit.system.device import to_device

TEXT_MULTIPLE = 32
"""The transformer pads texts and images to multiples of so many tokens. Source:
diffusers, transformer_z_image.py, SEQ_MULTI_OF."""


class ZImageModel(DiffusersModel):
    """A folder of Z-Image; see `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        velocity_BCHW = model.predict_velocity(x_t_BCHW, t_B, prompts, [()])
    """

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """Its pipeline does not round the level."""
        return t_B

    def text_layout(self, prompts: PromptEmbeds, row: int) -> int:
        """Texts of the same padded length need no attention mask beside each other."""
        return -(-prompts.lengths[row] // TEXT_MULTIPLE)

    def forward(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        """Source: diffusers, pipeline_z_image.py, `__call__`: its time runs from noise
        to image."""
        images = list(self.to_model(x_t_BCHW).unsqueeze(2))
        levels_B = to_device(1 - t_B, self.options.device)
        texts = self.texts(prompts, len(images))
        found = self.network_module(images, levels_B, texts, return_dict=False)[0]
        return -torch.stack([image_CFHW.float() for image_CFHW in found]).squeeze(2)

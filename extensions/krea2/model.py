"""`DiffusionModel` for Krea 2: the call of its transformer, as its pipeline makes it.

Shape suffixes: B batch, C latent channels, H/W latent height and width, N tokens of the
image, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import Krea2Pipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from toolkit.contracts.data import EncodedPrompt, PromptEmbeds
from toolkit.models.diffusers_model import DiffusersModel
from toolkit.models.template import SUFFIX, TEXT_TO_IMAGE
from toolkit.system.device import to_device


class Krea2Model(DiffusersModel):
    """A folder of Krea 2; see `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        velocity_BCHW = model.predict_velocity(x_t_BCHW, t_B, prompts, [()])
    """

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """Its pipeline divides before it rounds."""
        return t_B.to(self.options.dtype).to(t_B.dtype)

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> EncodedPrompt:
        """Its pipeline pads between the prompt and the end of the template, with
        positions that do not count the padding: the features are those without it."""
        tokenizer, dropped = self.part("tokenizer"), TEXT_TO_IMAGE.dropped_tokens
        longest = dropped + self.family.text_length - self.family.text_tokens
        text = TEXT_TO_IMAGE.prefix + prompt
        begin = tokenizer(text, truncation=True, max_length=longest).input_ids
        ids = torch.tensor([begin + tokenizer(SUFFIX).input_ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.text_features(inputs)[dropped:]

    def forward(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        """Source: diffusers, pipeline_krea2.py, `__call__`."""
        patches_BCHW = pixel_unshuffle(self.to_model(x_t_BCHW), self.family.patch)
        grid = patches_BCHW.shape[-2:]
        texts_BLD = torch.stack(self.texts(prompts, len(x_t_BCHW)))
        found_BNC = self.network_module(
            hidden_states=patches_BCHW.flatten(2).mT,
            encoder_hidden_states=texts_BLD.unflatten(
                -1, (len(self.family.text_taps), -1)
            ),
            timestep=to_device(t_B, self.options.device),
            position_ids=Krea2Pipeline.prepare_position_ids(
                texts_BLD.shape[1], *grid, self.options.device
            ),
            return_dict=False,
        )[0]
        patches_BCHW = found_BNC.mT.unflatten(2, grid)
        return pixel_shuffle(patches_BCHW, self.family.patch).float()

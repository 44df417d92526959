"""`DiffusionModel` for Qwen-Image-2.1.

It connects `prompts` and `forward` with `FolderModel` and `QwenModel`, and keeps the
keys and values of text and control images between the steps of a sample. It has no
modulation cache: the modulation is small. Made by `QwenImage21Family.open`.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels / 16), N
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

from toolkit.contracts.data import EncodedPrompt, PromptEmbeds
from toolkit.models import vl_prompts
from toolkit.models.layerwise import LayerwiseEncoder
from toolkit.models.loading import (
    load_blockwise,
    load_frozen,
)
from toolkit.models.qwen_image.forward import with_fused_norms
from toolkit.models.qwen_image21 import prompts as text
from toolkit.models.qwen_image21.family import QwenImage21Family
from toolkit.models.qwen_image21.forward import (
    KeysValues,
    RunIndexed,
    compose_wrappers,
    forward,
)
from toolkit.models.qwen_model import QwenModel
from toolkit.system.device import free_memory

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


TEXT_ENCODER = "Qwen3VLForConditionalGeneration"


class QwenImage21Model(QwenModel):
    """A Qwen-Image-2.1 folder; see `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        predict = model.sampling_steps(prompts, references)
        velocity_BCHW = predict(x_t_BCHW, t_B)
    """

    family: QwenImage21Family
    fused_projections = (
        ("attn.to_q", "attn.to_k", "attn.to_v"),
        ("img_mlp.gate_layer", "img_mlp.proj"),
    )
    _kept: dict[Hashable, list[KeysValues]] | None = None
    """Keys and values of the sampling run that is predicting, by the layout of a
    group. None outside of one."""

    def load_part(self, name: str) -> object:
        o = self.options
        part = self.options.folder / name
        if name == "transformer":
            return with_fused_norms(load_blockwise(o, QwenImage21Transformer2DModel))
        if name == "vae":
            kind, file = AutoencoderKLQwenImage21, o.files.get(name)
            return load_frozen(part, kind, o.dtype, file, decoder=o.decoder)
        if name == "processor":
            return vl_prompts.load_tokenizer(part), vl_prompts.load_image_processor(
                part
            )
        file = o.files.get(name)
        encoder = vl_prompts.load_text_model(
            part,
            TEXT_ENCODER,
            o.dtype,
            o.transform_text_block,
            file,
            o.keeps_text_codes,
        )
        # The transformer was trained on the features in front of the final norm.
        encoder.language_model.norm = torch.nn.Identity()
        return encoder

    def layerwise_encoder(self) -> LayerwiseEncoder | None:
        # The transformer was trained on the features in front of the final norm.
        return LayerwiseEncoder(self.options, TEXT_ENCODER, final_norm=False)

    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> EncodedPrompt:
        tokenizer, image_processor = self.part("processor")
        encoder = self.on_device("text_encoder")
        most = self.family.max_references
        return text.encode(
            prompt, references, most, tokenizer, image_processor, encoder
        )

    compose = staticmethod(compose_wrappers)

    def text_layout(self, prompts: PromptEmbeds, row: int) -> tuple[int, ...]:
        """The length of the text, and the numbers of text tokens in front of each
        control image."""
        slots = prompts.extra[text.SLOTS][row].tolist()
        return (prompts.lengths[row], *(slot for slot in slots if slot >= 0))

    def sampling_steps(
        self, prompts: PromptEmbeds, references: Sequence[Sequence[Tensor]]
    ) -> Callable[..., Tensor]:
        """See `DiffusionModel`. Keys and values of text and control images are kept
        where they take at most half of the free memory: 0.5 MB per token of the
        published model in bfloat16."""
        prefix_caches: dict[Hashable, list[KeysValues]] = {}

        @torch.no_grad()
        def predict(x_t_BCHW: Tensor, t_B: Tensor, *guidance: Tensor) -> Tensor:
            self._kept = prefix_caches
            try:
                return self.predict_velocity(
                    x_t_BCHW, t_B, prompts, references, *guidance
                )
            finally:
                self._kept = None

        return predict

    def _kept_of(
        self, prompts: PromptEmbeds, slots: Sequence[Tensor]
    ) -> list[KeysValues] | None:
        """The keys and values that a sampling run keeps of a group. None outside of a
        sampling run, and where they do not fit."""
        if self._kept is None:
            return None
        group = (
            self.text_layout(prompts, 0),
            *(slot_BCHW.shape for slot_BCHW in slots),
        )
        if group not in self._kept:
            tokens = prompts.embeds_BLD.shape[:2].numel() + sum(
                slot_BCHW[:, 0].numel() for slot_BCHW in slots
            )
            needed = (
                2
                * len(self.blocks())
                * tokens
                * self.hidden_size
                * self.options.dtype.itemsize
            )
            if 2 * needed > free_memory(self.options.device):
                return None
        return self._kept.setdefault(group, [])

    def predict_group(
        self,
        run: RunIndexed,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        velocity_BNC = forward(
            self.network_module,
            run,
            pack(self.to_model(x_t_BCHW)),
            t_B,
            self.to_model(prompts.embeds_BLD),
            self.text_layout(prompts, 0)[1:],
            [pack(latents_BCHW) for latents_BCHW in slots],
            [(1, *latents_BCHW.shape[-2:]) for latents_BCHW in (*slots, x_t_BCHW)],
            self._kept_of(prompts, slots),
        )
        velocity_BCHW: Tensor = velocity_BNC.transpose(1, 2).unflatten(
            2, x_t_BCHW.shape[-2:]
        )
        return velocity_BCHW


def pack(latents_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] to tokens [B, H W, C].

    >>> pack(torch.zeros(1, 64, 4, 6)).shape
    torch.Size([1, 24, 64])
    """
    return latents_BCHW.flatten(2).transpose(1, 2)

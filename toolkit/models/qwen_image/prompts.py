"""A prompt and its reference images as the text encoder's input, as diffusers' pipeline builds it.

Source: diffusers, pipeline_qwenimage_edit_plus.py, `_get_qwen_prompt_embeds`. One thing differs from diffusers 0.42.1:
the text encoder is told which tokens are images, so that they get the three-dimensional positions that the published
model was trained and released with (transformers before 5.3 found them by itself; diffusers issue 14194).

Shape suffixes: B batch (1), L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from toolkit.data.types import Size
from toolkit.models import vl_prompts
from toolkit.models.qwen_image.sizes import condition_size
from toolkit.models.vl_prompts import IMAGE_PAD

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new "
    "image that meets the user's requirements while maintaining consistency with the original input where "
    "appropriate.<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "Picture {}: <|vision_start|>" + IMAGE_PAD + "<|vision_end|>"
DROP_TOKENS = 64
"""Leading hidden states that are discarded: the length of PREFIX in the published tokenizer."""


def prompt_text(prompt: str, references: int) -> str:
    """The text handed to the tokenizer, one image placeholder per reference."""
    return PREFIX + "".join(PICTURE.format(i + 1) for i in range(references)) + prompt + SUFFIX


def resize_condition_image(image: Image.Image) -> Image.Image:
    """A reference as the text encoder sees it: RGB values 0..255, area of about 384x384, aspect ratio kept."""
    return image.convert("RGB").resize(condition_size(Size(*image.size)), Image.Resampling.LANCZOS)


def encoder_inputs(
    prompt: str,
    references: Sequence[Image.Image],
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VLImageProcessorPil | None,
) -> dict[str, Tensor]:
    """See `vl_prompts.encoder_inputs`."""
    images = [resize_condition_image(image) for image in references]
    vision = vl_prompts.vision_inputs(images, image_processor) if image_processor else {}
    ids = token_ids(prompt, vl_prompts.image_tokens(vision, image_processor), tokenizer)
    return vl_prompts.encoder_inputs(ids, vision, tokenizer)


def token_ids(prompt: str, image_tokens: Sequence[int], tokenizer: Qwen2Tokenizer) -> list[int]:
    """The tokens of `prompt_text`, each image's placeholder repeated as often as `image_tokens` says."""
    before, after = prompt_text("\0", len(image_tokens)).split("\0")
    for number, count in enumerate(image_tokens, start=1):
        before = before.replace(PICTURE.format(number), PICTURE.format(number).replace(IMAGE_PAD, IMAGE_PAD * count))
    return vl_prompts.token_ids(before, prompt, after, tokenizer)


@torch.no_grad()
def prompt_embedding(inputs: dict[str, Tensor], text_model: PreTrainedModel) -> Tensor:
    """Hidden states [L, D] of the last layer without the first `DROP_TOKENS`.

    `text_model` is the encoder without its language-model head, which this model family never uses.
    """
    inputs = {name: value.to(text_model.device) for name, value in inputs.items()}
    hidden_BLD = text_model(**inputs, use_cache=False).last_hidden_state
    return hidden_BLD[0, DROP_TOKENS:]

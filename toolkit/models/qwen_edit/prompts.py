"""A prompt and its reference pictures as the text encoder's input, exactly as diffusers' pipeline builds it.

The tokenizer and the PIL image processor are used on their own: transformers' `Qwen2VLProcessor` needs
torchvision, and one path for all machines means the same numbers everywhere.

Source: diffusers, pipeline_qwenimage_edit_plus.py, `_get_qwen_prompt_embeds`.

Shape suffixes: B batch (1), L tokens, D embedding width, N vision patches, V patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from toolkit.contracts import Size
from toolkit.models.qwen_edit.sizes import condition_size

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
IMAGE_PAD = "<|image_pad|>"
PICTURE = "Picture {}: <|vision_start|>" + IMAGE_PAD + "<|vision_end|>"
MARKERS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_PAD)
"""Special tokens of the template: one id each."""

DROP_TOKENS = 64
"""Leading hidden states that are discarded: the length of PREFIX in the published tokenizer."""


def prompt_text(prompt: str, references: int) -> str:
    """The text handed to the tokenizer, one image placeholder per reference."""
    return PREFIX + "".join(PICTURE.format(i + 1) for i in range(references)) + prompt + SUFFIX


def condition_picture(image: Image.Image) -> Image.Image:
    """A reference as the text encoder sees it: RGB values 0..255, area of about 384x384, aspect ratio kept."""
    return image.convert("RGB").resize(condition_size(Size(*image.size)), Image.Resampling.LANCZOS)


def encoder_inputs(
    prompt: str,
    references: Sequence[Image.Image],
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VLImageProcessorPil,
) -> dict[str, Tensor]:
    """input_ids_BL and attention_mask_BL, with pixel_values_NV and image_grid_thw when there are references."""
    text = prompt_text(prompt, len(references))
    vision: dict[str, Tensor] = {}
    if references:
        pictures = [condition_picture(image) for image in references]
        vision = dict(image_processor(images=pictures, return_tensors="pt"))
        text = _expand_placeholders(text, vision["image_grid_thw"], image_processor.merge_size)
    tokens = tokenizer(text, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], **vision}


def _expand_placeholders(text: str, grid_thw: Tensor, merge_size: int) -> str:
    """Repeats each image placeholder once per merged vision patch of its image."""
    parts = text.split(IMAGE_PAD)
    # A prompt may hold the placeholder's text itself; only the first ones, which we put there, are images.
    counts = [int(grid.prod()) // merge_size**2 for grid in grid_thw]
    counts += [1] * (len(parts) - 1 - len(counts))
    return "".join(part + IMAGE_PAD * count for part, count in zip(parts, [*counts, 0], strict=True))


@torch.no_grad()
def prompt_embedding(inputs: dict[str, Tensor], text_model: PreTrainedModel) -> Tensor:
    """Hidden states [L, D] of the last layer without the first `DROP_TOKENS`.

    `text_model` is the encoder without its language-model head, which this model family never uses.
    """
    inputs = {name: value.to(text_model.device) for name, value in inputs.items()}
    hidden_BLD = text_model(**inputs, use_cache=False).last_hidden_state
    return hidden_BLD[0, DROP_TOKENS:]

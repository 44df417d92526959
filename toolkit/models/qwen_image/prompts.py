"""A prompt and its reference images as the text encoder's input, as diffusers' pipeline builds it.

The tokenizer and the PIL image processor are used on their own: transformers' `Qwen2VLProcessor` needs
torchvision, and one path for all machines means the same numbers everywhere.

Source: diffusers, pipeline_qwenimage_edit_plus.py, `_get_qwen_prompt_embeds`. One thing differs from diffusers 0.42.1:
the text encoder is told which tokens are images, so that they get the three-dimensional positions that the published
model was trained and released with (transformers before 5.3 found them by itself; diffusers issue 14194).

Shape suffixes: B batch (1), L tokens, D embedding width, N vision patches, V patch width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from toolkit.data.types import Size
from toolkit.models.qwen_image.sizes import condition_size

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
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_PAD)
"""Special tokens of the template: one id each."""

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
    image_processor: Qwen2VLImageProcessorPil,
) -> dict[str, Tensor]:
    """input_ids_BL and attention_mask_BL; with references also pixel_values_NV, image_grid_thw [references, 3] and
    mm_token_type_ids_BL (1 for the tokens of an image, 0 for text), by which the encoder places images on a grid.

    Special tokens that the prompt spells out, such as `<|image_pad|>`, are encoded as the text they are.
    """
    if not references:
        ids_BL = torch.tensor([token_ids(prompt, (), tokenizer)])
        return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    pictures = [resize_condition_image(image) for image in references]
    vision = dict(image_processor(images=pictures, return_tensors="pt"))
    counts = [int(grid.prod()) // image_processor.merge_size**2 for grid in vision["image_grid_thw"]]
    ids_BL = torch.tensor([token_ids(prompt, counts, tokenizer)])
    is_picture_BL = ids_BL == tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    return {
        "input_ids": ids_BL,
        "attention_mask": torch.ones_like(ids_BL),
        "mm_token_type_ids": is_picture_BL.int(),
        **vision,
    }


def token_ids(prompt: str, picture_tokens: Sequence[int], tokenizer: Qwen2Tokenizer) -> list[int]:
    """The tokens of `prompt_text`, each image's placeholder repeated as often as `picture_tokens` says.

    Only the placeholders of the template are images: a special token within the prompt is split into plain ones.
    """
    template = prompt_text("\0", len(picture_tokens))
    before, after = template.split("\0")
    for number, count in enumerate(picture_tokens, start=1):
        before = before.replace(PICTURE.format(number), PICTURE.format(number).replace(IMAGE_PAD, IMAGE_PAD * count))
    ids: list[int] = []
    for text, is_plain in _pieces(before, prompt, after, tokenizer.all_special_tokens):
        ids += tokenizer(text, split_special_tokens=is_plain, verbose=False)["input_ids"]
    return ids


def _pieces(before: str, prompt: str, after: str, special_tokens: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The whole text cut around the special tokens of the prompt, and whether a piece is one of those.

    The tokenizer cuts a text at special tokens as well, so the tokens around them are those of the whole text.
    """
    parts = re.split(f"({'|'.join(map(re.escape, special_tokens))})", prompt)
    parts[0] = before + parts[0]
    parts[-1] += after
    for index, part in enumerate(parts):
        if part:
            yield part, index % 2 == 1


@torch.no_grad()
def prompt_embedding(inputs: dict[str, Tensor], text_model: PreTrainedModel) -> Tensor:
    """Hidden states [L, D] of the last layer without the first `DROP_TOKENS`.

    `text_model` is the encoder without its language-model head, which this model family never uses.
    """
    inputs = {name: value.to(text_model.device) for name, value in inputs.items()}
    hidden_BLD = text_model(**inputs, use_cache=False).last_hidden_state
    return hidden_BLD[0, DROP_TOKENS:]

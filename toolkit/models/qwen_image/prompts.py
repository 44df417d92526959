"""Turns a prompt and its control images into the text encoder's input, as diffusers'
pipeline does.

The words are in `template`, the tokens come from `vl_prompts`; this module puts them
together, and takes the embedding from the output. It loads nothing. Called by `model`
to encode, and by `sizes` to count tokens.

Source: diffusers, pipeline_qwenimage_edit_plus.py, `_get_qwen_prompt_embeds`. One thing
differs from diffusers 0.42.1: the text encoder gets the information which tokens are
images. So they have the three-dimensional positions that the published model was
trained and released with (transformers before 5.3 found them by itself; diffusers issue
14194).

Shape suffixes: B batch (1), L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from toolkit.models import vl_prompts
from toolkit.models.folder_family import size_of_area
from toolkit.models.template import EDIT_PLUS, IMAGE_PAD, SUFFIX, Template

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

DROP_TOKENS = EDIT_PLUS.dropped_tokens


def resize_condition_image(
    image: Image.Image, area: int = EDIT_PLUS.condition_area
) -> Image.Image:
    """A control image as the text encoder sees it: RGB values 0..255, about `area`
    pixels, with its aspect ratio.

    >>> resize_condition_image(Image.new("RGB", (1000, 1000))).size
    (384, 384)
    """
    return image.convert("RGB").resize(
        size_of_area(area, image.width / image.height), Image.Resampling.LANCZOS
    )


def encoder_inputs(
    prompt: str,
    references: Sequence[Image.Image],
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VLImageProcessorPil | None,
    template: Template = EDIT_PLUS,
) -> dict[str, Tensor]:
    """The inputs of the text encoder for a prompt with control images; see
    `vl_prompts.encoder_inputs`."""
    images = [
        resize_condition_image(image, template.condition_area) for image in references
    ]
    vision = (
        vl_prompts.vision_inputs(images, image_processor) if image_processor else {}
    )
    ids = token_ids(
        prompt, vl_prompts.image_tokens(vision, image_processor), tokenizer, template
    )
    return vl_prompts.encoder_inputs(ids, vision, tokenizer)


def token_ids(
    prompt: str,
    image_tokens: Sequence[int],
    tokenizer: Qwen2Tokenizer,
    template: Template = EDIT_PLUS,
) -> list[int]:
    """The tokens of a prompt in its template, with each image's placeholder repeated.

    image_tokens: number of tokens of each image.
    """
    images = (
        template.image.format(number).replace(IMAGE_PAD, IMAGE_PAD * count)
        for number, count in enumerate(image_tokens, start=1)
    )
    return vl_prompts.token_ids(
        template.prefix + "".join(images), prompt, SUFFIX, tokenizer
    )


@torch.no_grad()
def prompt_embedding(
    inputs: dict[str, Tensor],
    text_model: PreTrainedModel,
    dropped_tokens: int = DROP_TOKENS,
) -> Tensor:
    """Hidden states [L, D] of the last layer without the first `dropped_tokens`.

    `text_model` is the encoder without its language-model head, which this model family
    never uses.
    """
    inputs = {name: value.to(text_model.device) for name, value in inputs.items()}
    hidden_BLD: Tensor = text_model(**inputs, use_cache=False).last_hidden_state
    return hidden_BLD[0, dropped_tokens:]

"""Turns a prompt and its control images into the text encoder's input, and selects the
features that the transformer gets.

The features at the tokens of images are dropped: the transformer has latents in their
place, and only needs the places. Nothing is loaded here. Called by `model` to encode,
and by `family` to count tokens; `tiny` uses the words.

Source: diffusers, pipeline_qwenimage21.py, `_get_qwen_prompt_embeds`.

Shape suffixes: B batch (1), L text tokens, S tokens of the encoder, D embedding width,
R `max_references`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from toolkit.contracts.data import EMBEDS
from toolkit.models import vl_prompts
from toolkit.models.template import IMAGE_PAD, SUFFIX

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
USER = "<|im_start|>user\n"
REFERENCE = "<image{}><|vision_start|>{}<|vision_end|>"

SLOTS = "slots"
"""Key of the places of control images: the number of text tokens in front of each, -1
where there is none, int64 [R]."""


def token_ids(
    prompt: str, image_tokens: Sequence[int], tokenizer: Qwen2Tokenizer
) -> list[int]:
    """The tokens of a prompt in its template. An empty prompt becomes a space.

    image_tokens: number of tokens of each image.
    """
    images = " ".join(
        REFERENCE.format(i, IMAGE_PAD * count)
        for i, count in enumerate(image_tokens, start=1)
    )
    return vl_prompts.token_ids(
        SYSTEM + USER + images, prompt or " ", SUFFIX, tokenizer
    )


def dropped_tokens(tokenizer: Qwen2Tokenizer) -> int:
    """The number of leading tokens whose features are dropped: the system turn."""
    return len(tokenizer(SYSTEM)["input_ids"])


def count_text_tokens(prompt: str, references: int, processor: Path) -> int:
    """The number of text tokens that the transformer gets. processor: the folder."""
    tokenizer = vl_prompts.known_tokenizer(processor)
    return len(token_ids(prompt, [0] * references, tokenizer)) - dropped_tokens(
        tokenizer
    )


@torch.no_grad()
def encode(
    prompt: str,
    references: Sequence[Image.Image],
    most: int,
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VLImageProcessorPil,
    text_model: PreTrainedModel,
) -> dict[str, Tensor]:
    """Features of the text [L, D] under EMBEDS, and the places of the control images
    [R] under SLOTS.

    references: RGB, in the size in which the VAE sees them. most: R. text_model:
    without its final norm.
    """
    vision = vl_prompts.vision_inputs(references, image_processor, do_resize=False)
    ids = token_ids(prompt, vl_prompts.image_tokens(vision, image_processor), tokenizer)
    inputs = vl_prompts.encoder_inputs(ids, vision, tokenizer)
    is_image_S = inputs["input_ids"][0] == tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    on_device = {name: value.to(text_model.device) for name, value in inputs.items()}
    hidden_SD = text_model(**on_device, use_cache=False).last_hidden_state[0]
    drop = dropped_tokens(tokenizer)
    is_text_S = ~is_image_S
    is_text_S[:drop] = False
    # Text (`<|vision_end|>`) is between any two images, so each run of image tokens is
    # one image.
    begins = [
        i for i in is_image_S.nonzero().flatten().tolist() if not is_image_S[i - 1]
    ]
    slots_R = torch.full((most,), -1, dtype=torch.int64)
    slots_R[: len(begins)] = torch.tensor(
        [int(is_text_S[:begin].sum()) for begin in begins], dtype=torch.int64
    )
    return {EMBEDS: hidden_SD[is_text_S.to(hidden_SD.device)], SLOTS: slots_R}

"""Prompts with images for a vision-language encoder of the Qwen family: tokens, vision
inputs, tokenizer, processor.

The words around a prompt are not here: `qwen_image.prompts` and `qwen_image21.prompts`
have them, and build the encoder's inputs with these functions. The models load their
text encoder, tokenizer and processor with them.

Tokenizer and PIL image processor are used separately. transformers' processors of these
models need torchvision, and one path for all machines gives the same numbers
everywhere.

Shape suffixes: B batch (1), L tokens, N vision patches, V patch width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from accelerate import init_empty_weights
from PIL import Image
from transformers.utils import logging as transformers_logging

from toolkit.errors import RunError
from toolkit.models.families import BlockTransform
from toolkit.models.loading import (
    STRICTLY,
    check_finite,
    check_loaded,
    fill_from_file,
    reading,
)
from toolkit.models.single_file import HEAD, text_encoder_name
from toolkit.models.template import IMAGE_PAD

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

transformers_logging.disable_progress_bar()  # a bar per part would tear the status line

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE_PAD,
)
"""Special tokens of the templates: one id each."""


def vision_inputs(
    images: Sequence[Image.Image], processor: Qwen2VLImageProcessorPil, **options: bool
) -> dict[str, Tensor]:
    """pixel_values_NV and image_grid_thw [images, 3]; empty without images.

    options: of the processor.
    """
    if images:
        return dict(processor(images=list(images), return_tensors="pt", **options))
    return {}


def image_tokens(
    vision: dict[str, Tensor], processor: Qwen2VLImageProcessorPil | None
) -> list[int]:
    """The number of tokens that the encoder has for each image of `vision_inputs`."""
    grids = vision.get("image_grid_thw", ())
    if processor:
        return [int(grid.prod()) // processor.merge_size**2 for grid in grids]
    return []


def encoder_inputs(
    ids: Sequence[int], vision: dict[str, Tensor], tokenizer: Qwen2Tokenizer
) -> dict[str, Tensor]:
    """The inputs of an encoder's forward pass: input_ids_BL and attention_mask_BL.

    With images, also the tensors of `vision_inputs`, and mm_token_type_ids_BL (1 for
    the tokens of an image, 0 for text), by which the encoder places images on a grid.
    """
    ids_BL = torch.tensor([ids])
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    if not vision:
        return inputs
    is_image_BL = ids_BL == tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    return {**inputs, "mm_token_type_ids": is_image_BL.int(), **vision}


def token_ids(
    before: str, prompt: str, after: str, tokenizer: Qwen2Tokenizer
) -> list[int]:
    """The tokens of a prompt within its template. Special tokens that the prompt spells
    out, such as `<|image_pad|>`, are encoded as plain text."""
    # The tokenizer cuts a text at special tokens as well, so the tokens around them do
    # not change.
    parts = re.split(
        f"({'|'.join(map(re.escape, tokenizer.all_special_tokens))})", prompt
    )
    parts[0] = before + parts[0]
    parts[-1] += after
    ids: list[int] = []
    for index, part in enumerate(parts):
        if part:
            ids += tokenizer(part, split_special_tokens=index % 2 == 1, verbose=False)[
                "input_ids"
            ]
    return ids


def load_text_model(
    part: Path,
    kind: str,
    dtype: torch.dtype,
    transform_block: BlockTransform | None = None,
    file: Path | None = None,
    codes: str = "",
) -> PreTrainedModel:
    """The text encoder in a folder with its vision tower and without its language-model
    head, frozen, on the CPU.

    kind: its class in transformers. file: its weights, in place of the folder's. codes:
    number type of `FILE_CODES`; `transform_block` gets weights of layers in it as they
    are stored. Raises RunError when weights do not fit the config, or are not finite.
    """
    of_kind = getattr(transformers, kind)
    head = (HEAD,)
    if file:
        with reading(part), init_empty_weights(include_buffers=False):
            model = of_kind(
                of_kind.config_class.from_json_file(part / "config.json")
            ).model
        model = fill_from_file(
            model, file, dtype, text_encoder_name, head, codes, "language_model.layers."
        )
    else:
        with reading(part):
            encoder, info = of_kind.from_pretrained(part, dtype=dtype, **STRICTLY)
        check_loaded(part, info, unused=head)
        model = encoder.model
        check_finite(part, model)
    if transform_block:
        for index, block in enumerate(model.language_model.layers):
            transform_block(block, f"language_model.layers.{index}")
    return model.requires_grad_(False).eval()


def load_tokenizer(part: Path) -> Qwen2Tokenizer:
    """The tokenizer in a folder, from tokenizer.json or from vocab.json and merges.txt.

    Raises RunError when its vocabulary lacks the markers of the prompt template.
    """
    with reading(part):
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(
            part, local_files_only=True
        )
    split_up = [
        marker for marker in SPECIAL_TOKENS if len(tokenizer.encode(marker)) != 1
    ]
    absent = [marker for marker in split_up if marker not in tokenizer.get_vocab()]
    if absent:
        raise RunError(
            f"{part}: {', '.join(absent)} are not in the vocabulary. Copy added_tokens.json and "
            "tokenizer_config.json of the model as well."
        )
    if split_up:  # in vocab.json, but no other file says that they are special
        tokenizer.add_special_tokens({"additional_special_tokens": split_up})
    return tokenizer


@lru_cache(maxsize=4)
def known_tokenizer(part: Path) -> Qwen2Tokenizer:
    """`load_tokenizer`, read once."""
    return load_tokenizer(part)


def load_image_processor(part: Path) -> Qwen2VLImageProcessorPil:
    """The preprocessing of images for the text encoder's vision tower."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    with reading(part):
        return Qwen2VLImageProcessorPil.from_pretrained(part, local_files_only=True)

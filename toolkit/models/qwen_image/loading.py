"""Reads the parts of a Qwen-Image-Edit folder, each when it is needed; every size comes from its config files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging as transformers_logging

from toolkit.errors import RunError
from toolkit.models.families import BlockTransform, ModelLoadOptions
from toolkit.models.loading import ASKED_BY, STRICTLY, block_import, check_finite, check_loaded, load_blockwise, reading
from toolkit.models.one_frame import expect_one_frame
from toolkit.models.qwen_image.prompts import SPECIAL_TOKENS
from toolkit.registry import SPADE_LOADER, load_object

with block_import("bitsandbytes", ASKED_BY):  # diffusers would import it only to know that it is there
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

transformers_logging.disable_progress_bar()  # a bar per part would tear the status line

TABULATED = ("img_mod", "txt_mod")
"""Parts of a block that a table can stand for: of the image stream, of the text stream."""


def load_transformer(options: ModelLoadOptions) -> QwenImageTransformer2DModel:
    """The transformer of a model folder; see `load_blockwise`."""
    return load_blockwise(options, QwenImageTransformer2DModel, TABULATED)


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLQwenImage:
    """The VAE with its SPADE, frozen, on the CPU.

    Raises RunError when its weights are not those of its config, or not finite.
    """
    part = folder / "vae"
    with reading(part):
        vae, info = AutoencoderKLQwenImage.from_pretrained(part, torch_dtype=dtype, **STRICTLY)
    check_loaded(part, info)
    check_finite(part, vae)
    if vae.config.get("_spade"):  # trained by this program's vae_trainer
        load_object(SPADE_LOADER)(vae, part)
    return expect_one_frame(vae).requires_grad_(False).eval()


def load_text_model(folder: Path, dtype: torch.dtype, transform_block: BlockTransform | None = None) -> PreTrainedModel:
    """The text encoder with its vision tower and without its language-model head, frozen, on the CPU.

    Raises RunError when its weights are not those of its config, or not finite.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    part = folder / "text_encoder"
    with reading(part):
        encoder, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(part, dtype=dtype, **STRICTLY)
    check_loaded(part, info, unused=("lm_head.weight",))
    model = encoder.model
    check_finite(part, model)
    if transform_block:
        for index, block in enumerate(model.language_model.layers):
            transform_block(block, f"language_model.layers.{index}")
    return model.requires_grad_(False).eval()


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer, from tokenizer.json or from vocab.json and merges.txt.

    Raises RunError when it does not know the markers of the prompt template.
    """
    from transformers import Qwen2Tokenizer

    with reading(folder / "tokenizer"):
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    split_up = [marker for marker in SPECIAL_TOKENS if len(tokenizer.encode(marker)) != 1]
    absent = [marker for marker in split_up if marker not in tokenizer.get_vocab()]
    if absent:
        raise RunError(
            f"{folder / 'tokenizer'}: {', '.join(absent)} are not in the vocabulary. Copy added_tokens.json and "
            "tokenizer_config.json of the model as well."
        )
    if split_up:  # in vocab.json, but no other file says that they are special
        tokenizer.add_special_tokens({"additional_special_tokens": split_up})
    return tokenizer


def load_image_processor(folder: Path) -> Qwen2VLImageProcessorPil:
    """The preprocessing of images for the text encoder's vision tower."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    with reading(folder / "processor"):
        return Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)

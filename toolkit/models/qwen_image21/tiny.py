"""The parts of a tiny Qwen-Image-2.1.

It makes real classes at a small size, with random weights. The scheduler, the index and
the transformer are written by `toolkit.models.tiny`, which calls `write_parts` through
`ModelFamily.tiny_parts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from toolkit.models.qwen_image21.family import QwenImage21Family
from toolkit.models.qwen_image21.prompts import REFERENCE, SYSTEM, USER
from toolkit.models.template import IMAGE_PAD, SUFFIX
from toolkit.models.tiny import (
    HEAD_DIM,
    ROPE_AXES,
    TEXT_WIDTH,
    TinySpec,
    make_tokenizer,
    save_tokenizer,
    scale_latents,
    smooth_images,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHANNELS = 16
"""Channels of the latents; the published model has 64."""

TEMPLATE = SYSTEM + USER + REFERENCE.format(1, "") + SUFFIX

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
"""The template by which diffusers' pipeline counts the tokens of the system turn."""


def write_parts(
    folder: Path, family: QwenImage21Family, spec: TinySpec
) -> QwenImage21Transformer2DModel:
    """Writes all parts except the scheduler and the transformer. Returns the
    transformer."""
    tokenizer = make_tokenizer(TEMPLATE, spec.captions)
    save_tokenizer(tokenizer, folder / "processor")
    (folder / "processor" / "chat_template.jinja").write_text(
        CHAT_TEMPLATE, encoding="utf-8"
    )
    half = [0.5] * 3
    Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=half, image_std=half
    ).save_pretrained(folder / "processor")
    _text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    _vae().save_pretrained(folder / "vae")
    return QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=spec.layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=spec.heads,
        context_in_dim=TEXT_WIDTH,
        axes_dims_rope=ROPE_AXES,
    )


def _vae() -> AutoencoderKLQwenImage21:
    """A random VAE whose latents_mean and latents_std make the latents of images about
    unit normal."""
    vae = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    ).eval()
    images_BCHW = smooth_images()
    return scale_latents(
        vae, torch.cat([images_BCHW, torch.ones_like(images_BCHW[:, :1])], dim=1)
    )


def _text_encoder(tokenizer: Tokenizer) -> Qwen3VLForConditionalGeneration:
    vocab = tokenizer.get_vocab()
    width = TEXT_WIDTH
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=vocab[IMAGE_PAD],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
    )
    encoder = Qwen3VLForConditionalGeneration(config)
    # As uneven as a trained norm. With equal weights the transformer's own norm would
    # undo it, and features behind it would give the same result.
    torch.nn.init.uniform_(encoder.model.language_model.norm.weight, 0.1, 2)
    return encoder

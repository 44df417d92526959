"""The parts of a tiny model of the members that share the 20 B transformer.

It makes real classes at a small size, with random weights. The scheduler, the index and
the transformer are written by `toolkit.models.tiny`, which calls `write_parts` through
`ModelFamily.tiny_parts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from toolkit.models.qwen_image.family import QwenImageFamily
from toolkit.models.template import IMAGE_PAD, SUFFIX
from toolkit.models.tiny import (
    HEAD_DIM,
    ROPE_AXES,
    SPECIAL_TOKENS,
    TEXT_WIDTH,
    VISION_PIXELS,
    TinySpec,
    make_tokenizer,
    save_processor,
    save_tokenizer,
    scale_latents,
    smooth_images,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def write_parts(
    folder: Path, family: QwenImageFamily, spec: TinySpec
) -> QwenImageTransformer2DModel:
    """Writes all parts except the scheduler and the transformer. Returns the
    transformer."""
    tokenizer = make_tokenizer(family.template.prefix + SUFFIX, spec.captions)
    save_tokenizer(tokenizer, folder / "tokenizer")
    if "processor" in family.parts:
        save_processor(
            tokenizer, folder / "processor", VISION_PIXELS if spec.captions else None
        )
    make_encoder = _frozen_text_encoder if spec.captions else _text_encoder
    make_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    _vae(family.pixel_channels).save_pretrained(folder / "vae")
    return _transformer(spec, family.stacks_layers)


def _transformer(spec: TinySpec, stacks_layers: bool) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=spec.layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=spec.heads,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=ROPE_AXES,
        zero_cond_t=spec.zero_cond_t,
        use_additional_t_cond=stacks_layers,
        use_layer3d_rope=stacks_layers,
    )


def _vae(channels: int) -> AutoencoderKLQwenImage:
    """A random VAE whose latents_mean and latents_std make the latents of images about
    unit normal."""
    shape = {
        "base_dim": 8,
        "z_dim": 16,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "input_channels": channels,
    }
    vae = AutoencoderKLQwenImage(
        **shape, latents_mean=[0.0] * 16, latents_std=[1.0] * 16
    ).eval()
    return scale_latents(vae, smooth_images(channels))


def _text_encoder(
    tokenizer: Tokenizer, layers: int = 2, tied: bool = False
) -> Qwen2_5_VLForConditionalGeneration:
    vocab = tokenizer.get_vocab()
    ids = {token: vocab[token] for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": layers,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@torch.no_grad()
def _frozen_text_encoder(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A text encoder whose words are far apart. With the usual deviation of 0.02 they
    would drown in the mean of their context."""
    encoder = _text_encoder(tokenizer, layers=1, tied=True)
    encoder.get_input_embeddings().weight.normal_(0, 0.5)
    return encoder.half()

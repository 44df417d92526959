"""A complete Qwen-Image-2.1 folder of a few megabytes, with random weights; see `toolkit.models.qwen_image.tiny`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from toolkit.files.run_files import TINY_MODEL
from toolkit.models.loading import ASKED_BY, block_import
from toolkit.models.qwen_image import tiny as shared
from toolkit.models.qwen_image.tiny import TinySpec
from toolkit.models.qwen_image21.prompts import REFERENCE, SUFFIX, SYSTEM, USER
from toolkit.models.vl_prompts import IMAGE_PAD
from toolkit.system.seeding import global_generator

with block_import("bitsandbytes", ASKED_BY):
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHANNELS = 16
"""Of the latents; the published model has 64."""

TEMPLATE = SYSTEM + USER + REFERENCE.format(1, "") + SUFFIX

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
"""What diffusers' pipeline counts the tokens of the system turn by."""

MODEL_INDEX = {
    "_class_name": "QwenImage21Pipeline",
    "_diffusers_version": "0.42.1",
    "processor": ["transformers", "Qwen3VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
    "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage21"],
}


def write_tiny_model(folder: Path, spec: TinySpec = TinySpec()) -> None:  # noqa: B008 - frozen
    """As `toolkit.models.qwen_image.tiny.write_tiny_model`."""
    with global_generator(spec.seed, "tiny_model"):
        tokenizer = shared._tokenizer((*spec.captions, TEMPLATE))
        shared._save_tokenizer(tokenizer, folder / "processor")
        (folder / "processor" / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
            folder / "processor"
        )
        shared._scheduler().save_pretrained(folder / "scheduler")
        _text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
        _vae().save_pretrained(folder / "vae")
        transformer = QwenImage21Transformer2DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=spec.layers,
            attention_head_dim=shared.HEAD_DIM,
            num_attention_heads=spec.heads,
            context_in_dim=shared.TEXT_WIDTH,
            axes_dims_rope=shared.ROPE_AXES,
        )
        shutil.rmtree(folder / "transformer", ignore_errors=True)
        transformer.save_pretrained(folder / "transformer")
    shared._write_json(folder / "model_index.json", MODEL_INDEX)
    shared._write_json(folder / TINY_MODEL, spec.recipe())


def _vae() -> AutoencoderKLQwenImage21:
    """A random VAE whose latents_mean and latents_std make the latents of images about unit normal."""
    vae = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    ).eval()
    images_BCHW = shared._pictures()
    with torch.no_grad():
        opaque_BPHW = torch.cat([images_BCHW, torch.ones_like(images_BCHW[:, :1])], dim=1)
        latents_BCFHW = vae.encode(opaque_BPHW.unsqueeze(2)).latent_dist.mode()
    std, mean = torch.std_mean(latents_BCFHW, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


def _text_encoder(tokenizer: Tokenizer) -> Qwen3VLForConditionalGeneration:
    vocab, width = tokenizer.get_vocab(), shared.TEXT_WIDTH
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
    return Qwen3VLForConditionalGeneration(config)

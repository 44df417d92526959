"""A small Z-Image by the classes of diffusers and transformers, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from toolkit.models.tiny import make_tokenizer, save_tokenizer
from toolkit.system.seeding import global_generator

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
"""The template of Qwen3 for one message of a user, with thinking on."""

BLOCKS = 3


def write_z_image(folder: Path, shift: float = 6.0, blocks: int = BLOCKS) -> Path:
    """The folder with its five parts. shift: of the scheduler; 3 makes it a Turbo."""
    with global_generator(0, "z_image"):
        transformer = ZImageTransformer2DModel(
            dim=96,
            n_layers=blocks,
            n_refiner_layers=1,
            n_heads=3,
            n_kv_heads=3,
            cap_feat_dim=48,
            axes_dims=[8, 12, 12],
            axes_lens=[512, 64, 64],
        )
        for name, weight in transformer.named_parameters():
            if "norm" in name or "pad_token" in name:  # ones and zeros hide mistakes
                weight.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[16] * 4,
            latent_channels=16,
            norm_num_groups=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        tokenizer = write_tokenizer(folder / "tokenizer")
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=12,
            )
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    ZImagePipeline(
        scheduler, vae, text_encoder, tokenizer, transformer
    ).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> AutoTokenizer:
    """A tokenizer of some words with the template of Qwen3."""
    save_tokenizer(make_tokenizer("user assistant"), folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "chat_template": CHAT}), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def load_pipeline(folder: Path) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

"""A small Z-Image by the classes of diffusers and transformers, with random weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model

from tests.small_parts import SMALL_TEXT, roughen, small_vae, write_tokenizer
from toolkit.system.seeding import global_generator

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
"""The template of Qwen3 for one message of a user, with thinking on."""

BLOCKS = 3


def write_z_image(
    folder: Path,
    shift: float = 6.0,
    blocks: int = BLOCKS,
    heads: int = 3,
    head: tuple[int, int, int] = (8, 12, 12),
) -> Path:
    """The folder with its five parts. shift: of the scheduler; 3 makes it a Turbo.
    head: channels of a head by axis."""
    with global_generator(0, "z_image"):
        transformer = ZImageTransformer2DModel(
            dim=heads * sum(head),
            n_layers=blocks,
            n_refiner_layers=1,
            n_heads=heads,
            n_kv_heads=heads,
            cap_feat_dim=48,
            axes_dims=list(head),
            axes_lens=[512, 64, 64],
        )
        roughen(transformer)
        vae = small_vae()
        tokenizer = write_tokenizer(folder / "tokenizer", CHAT)
        text_encoder = Qwen3Model(
            Qwen3Config(**SMALL_TEXT, vocab_size=len(tokenizer), num_hidden_layers=3)
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    ZImagePipeline(
        scheduler, vae, text_encoder, tokenizer, transformer
    ).save_pretrained(folder)
    return folder

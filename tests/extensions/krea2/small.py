"""A small Krea 2 by the classes of diffusers and transformers, with random weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.small_parts import SMALL_TEXT, write_tokenizer
from toolkit.system.seeding import global_generator

BLOCKS = 4
TAPS = (1, 2, 4)


def write_krea2(
    folder: Path,
    turbo: bool = False,
    blocks: int = BLOCKS,
    heads: int = 3,
    head: tuple[int, int, int] = (8, 12, 12),
) -> Path:
    """The folder with its five parts. head: channels of a head by axis."""
    width = heads * sum(head)
    with global_generator(0, "krea2"):
        transformer = Krea2Transformer2DModel(
            num_layers=blocks,
            attention_head_dim=sum(head),
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            intermediate_size=8 * width // 3,
            timestep_embed_dim=32,
            text_hidden_dim=48,
            num_text_layers=len(TAPS),
            text_num_attention_heads=4,
            text_num_key_value_heads=4,
            text_intermediate_size=96,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=head,
        )
        # Zeros hide mistakes in norms and in the modulation.
        for name, weight in transformer.named_parameters():
            if "norm" in name or "table" in name:
                weight.data.normal_(0, 0.2)
        vae = AutoencoderKLQwenImage(
            base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1
        )
        tokenizer = write_tokenizer(folder / "tokenizer")
        text_encoder = Qwen3VLModel(
            Qwen3VLConfig(
                text_config={
                    **SMALL_TEXT,
                    "vocab_size": len(tokenizer),
                    "num_hidden_layers": 5,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 5e6,
                        "mrope_section": [2, 2, 2],
                        "mrope_interleaved": True,
                    },
                },
                vision_config={
                    "depth": 1,
                    "hidden_size": 32,
                    "intermediate_size": 32,
                    "num_heads": 2,
                    "out_hidden_size": 48,
                    "patch_size": 8,
                    "num_position_embeddings": 16,
                    "deepstack_visual_indexes": [0],
                },
            )
        )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=6400,
    )
    Krea2Pipeline(
        scheduler,
        vae,
        text_encoder,
        tokenizer,
        transformer,
        text_encoder_select_layers=TAPS,
        is_distilled=turbo,
    ).save_pretrained(folder)
    return folder

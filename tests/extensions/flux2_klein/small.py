"""A small FLUX.2 [klein] by the classes of diffusers and transformers, with random
weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.small_parts import roughen, write_tokenizer
from toolkit.system.seeding import global_generator

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
"""The template of Qwen3 for one message of a user."""

TEXT_LAYERS = 28
"""The prompt is read after 9, 18 and 27 of them."""

TEXT_WIDTH = 24


def write_klein(
    folder: Path,
    distilled: bool = False,
    blocks: tuple[int, int] = (2, 3),
    heads: int = 3,
    head: tuple[int, int, int, int] = (8, 8, 8, 8),
) -> Path:
    """The folder with its five parts. blocks: double, single. head: channels of a head
    by axis."""
    with global_generator(0, "flux2_klein"):
        transformer = Flux2Transformer2DModel(
            num_layers=blocks[0],
            num_single_layers=blocks[1],
            attention_head_dim=sum(head),
            num_attention_heads=heads,
            joint_attention_dim=3 * TEXT_WIDTH,
            axes_dims_rope=head,
            guidance_embeds=False,
        )
        roughen(transformer)
        vae = AutoencoderKLFlux2(
            block_out_channels=(16,) * 4, layers_per_block=1, norm_num_groups=4
        )
        # So that a forgotten normalisation shows.
        vae.bn.running_mean.normal_(0, 0.1)
        vae.bn.running_var.uniform_(0.5, 1.5)
        tokenizer = write_tokenizer(folder / "tokenizer", CHAT)
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=32,
                num_hidden_layers=TEXT_LAYERS,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=12,
            )
        )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    Flux2KleinPipeline(
        scheduler, vae, text_encoder, tokenizer, transformer, is_distilled=distilled
    ).save_pretrained(folder)
    return folder

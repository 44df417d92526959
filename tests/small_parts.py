"""Parts of small models by the classes of diffusers and transformers, with random
weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import DiffusersFamily
from toolkit.models.tiny import make_tokenizer, save_tokenizer
from toolkit.system.seeding import global_generator

BEGIN = "<|im_start|>"

SMALL_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
"""Of the config of a text encoder."""


def roughen(module: nn.Module) -> None:
    """Norms and learned tokens that are not ones and zeros, which hide mistakes."""
    for name, weight in module.named_parameters():
        if "norm" in name and weight.dim() == 1:
            weight.data.normal_(1.0, 0.2)
        elif "pad_token" in name:
            weight.data.normal_(0.0, 0.2)


def small_vae() -> AutoencoderKL:
    """16 latent channels at an eighth of the size."""
    return AutoencoderKL(
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


def write_tokenizer(folder: Path, chat: str = "", begin: str = "") -> AutoTokenizer:
    """A tokenizer of some words. chat: its template of messages. begin: a token before
    each text."""
    save_tokenizer(make_tokenizer("user assistant"), folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "chat_template": chat}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if begin:
        numbers = [(begin, tokenizer.convert_tokens_to_ids(begin))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=numbers
        )
    return tokenizer


def write_lumina2(folder: Path) -> Path:
    """The model of the page docs/extending.md."""
    with global_generator(0, "lumina2"):
        transformer = Lumina2Transformer2DModel(
            hidden_size=96,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(8, 8, 8),
            axes_lens=(300, 64, 64),
            cap_feat_dim=48,
        )
        roughen(transformer)
        vae = small_vae()
        tokenizer = write_tokenizer(folder / "tokenizer", begin=BEGIN)
        text_encoder = Gemma2Model(
            Gemma2Config(**SMALL_TEXT, vocab_size=len(tokenizer), num_hidden_layers=3)
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    Lumina2Pipeline(
        transformer, scheduler, vae, text_encoder, tokenizer
    ).save_pretrained(folder)
    return folder


class SmallFamily(DiffusersFamily):
    """The facts that have no default, for the model of `write_lumina2`. Its shapes are
    not written."""

    arch, title = "small", "Small"
    model_class = "toolkit.models.diffusers_model:DiffusersModel"
    pipelines, modelspec = ("SmallPipeline",), ("small", "https://example.org")
    classes = {  # noqa: RUF012
        "transformer": "Lumina2Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "Gemma2Model",
    }
    block_lists: Sequence[str] = ("noise_refiner", "context_refiner", "layers")
    shapes_file = Path("no_such_folder") / "shapes.json"
    latent_channels, latent_scale, size_multiple = 16, 8, 16
    text_width_key, text_tokens = "cap_feat_dim", 24
    published_text = published_vae = EncoderSize(1, 1)
    published_text_sizes, published_text_layers = (1, 1), 1

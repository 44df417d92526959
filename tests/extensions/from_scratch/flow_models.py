"""Model folders of the family `latent_flow`, with small random weights."""

from pathlib import Path

import torch

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoders import make_autoencoder
from extensions.from_scratch.latent_flow import new

SMALL_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
"""Arguments of an AutoencoderKL with 2 x 2 pixels per latent pixel."""

SMALL_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL_FLOW = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}


def write_flow_model(
    folder: Path,
    class_name: str = "SD3Transformer2DModel",
    prediction: str = "flow",
    positions: int = 0,
) -> Path:
    """A latent flow model of random weights. positions: of SD3Transformer2DModel, along
    a side; 0: as by default."""
    vae = make_autoencoder(AutoencoderConfig(config=SMALL_VAE), 0, torch.device("cpu"))
    vae.module.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    vae.module.save_pretrained(folder / "vae")
    new.write_text_encoder(folder, SMALL_TEXT, ["a cat", "a photo of a dog"], 16, 0)
    table = {"pos_embed_max_size": positions} if positions else {}
    new.write_transformer(folder, class_name, SMALL_FLOW | table, 0)
    new.write_scheduler(folder)
    new.write_index(folder, prediction, 16)
    return folder

"""What of a Qwen-Image-Edit folder takes memory: its config and the headers of its files. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.models.qwen_edit.layer_shapes import BYTES_PER_WEIGHT, linear_layers, modules, part_config
from toolkit.models.qwen_edit.resolutions import CONDITION_AREA, LATENT_CHANNELS, LATENT_SCALE, PATCH, REFERENCE_AREA
from toolkit.models.size_info import EncoderSize, ModelSizeInfo
from toolkit.safetensors_header import tensor_sizes

PUBLISHED_TEXT = EncoderSize(linear_params=6_525_288_448, other_params=1_221_880_832, unused=544_997_376)
"""Qwen2.5-VL-7B by its config: 28 layers; embedding, vision tower and norms; the head, which is not used."""

PUBLISHED_TEXT_SIZES = {"hidden_size": 3584, "intermediate_size": 18944}
PUBLISHED_VAE = EncoderSize(linear_params=0, other_params=126_892_531)
PUBLISHED_VAE_WIDTH = 96
"""Channels at full resolution (`base_dim`)."""

ENCODE_TENSORS, DECODE_TENSORS = 14, 22
"""How many tensors of the VAE's width and the image's size it has in memory at most. Measured with diffusers' class
on the CPU in bfloat16, base_dim 32, dim_mult 1 2 4 4; convolutions that copy their input take more."""

OF_TEXT_LAYERS = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.\d+\..*_proj\.weight")
TABULATED = re.compile(r"transformer_blocks\.\d+\.(?:img_mod|txt_mod)\.1")


def footprint(folder: Path) -> ModelSizeInfo:
    """The facts of a local folder, or of the published model where it is not here yet.

    Raises UserError naming the file of the folder that is damaged.
    """
    layers, all_modules = linear_layers(folder), modules(folder)
    in_blocks = sum(inputs * outputs for inputs, outputs in layers.values())
    width = next(iter(layers.values()))[0]
    tabulated = {name: inputs * outputs for name, (inputs, outputs) in layers.items() if TABULATED.fullmatch(name)}
    sizes = _text_sizes(folder)
    vae_width = part_config(folder / "vae").get("base_dim", PUBLISHED_VAE_WIDTH)
    return ModelSizeInfo(
        width=width,
        blocks=len({name.split(".")[1] for name in layers}),
        linear_params=in_blocks,
        other_params=sum(all_modules.values()) - in_blocks,
        largest_layer=max(inputs * outputs for inputs, outputs in layers.values()),
        largest_of_tokens=max(i * o for name, (i, o) in layers.items() if name not in tabulated),
        modulation_layers=frozenset(tabulated),
        tabulated_weights=sum(tabulated.values()),
        table_inputs=frozenset(name for name in all_modules if name.startswith("time_text_embed.")),
        text=_text_encoder(folder),
        vae=_vae(folder),
        encode_numbers=ENCODE_TENSORS * vae_width,
        decode_numbers=DECODE_TENSORS * vae_width,
        text_token_numbers=3 * sizes["intermediate_size"] + 8 * sizes["hidden_size"],
        text_width=sizes["hidden_size"],
        latent_numbers=LATENT_CHANNELS / LATENT_SCALE**2,
        pixels_per_token=(LATENT_SCALE * PATCH) ** 2,
        reference_pixels=REFERENCE_AREA,
        text_tokens=12,
        text_tokens_per_reference=CONDITION_AREA // 28**2 + 18,
        bytes_per_weight=BYTES_PER_WEIGHT,
    )


def _text_encoder(folder: Path) -> EncoderSize:
    shapes = _stored_shapes(folder / "text_encoder")
    if not shapes:
        return PUBLISHED_TEXT
    unused = sum(count for name, count in shapes.items() if name.startswith("lm_head"))
    linears = sum(count for name, count in shapes.items() if OF_TEXT_LAYERS.fullmatch(name))
    return EncoderSize(linears, sum(shapes.values()) - linears - unused, unused)


def _vae(folder: Path) -> EncoderSize:
    shapes = _stored_shapes(folder / "vae")
    return EncoderSize(linear_params=0, other_params=sum(shapes.values())) if shapes else PUBLISHED_VAE


def _text_sizes(folder: Path) -> dict[str, int]:
    config = part_config(folder / "text_encoder")
    config |= config.get("text_config") or {}
    return {name: config.get(name, published) for name, published in PUBLISHED_TEXT_SIZES.items()}


def _stored_shapes(part: Path) -> dict[str, int]:
    """Name and number of weights of each tensor in a part's safetensors files, read from their headers alone."""
    return {name: count for path in sorted(part.glob("*.safetensors")) for name, count in tensor_sizes(path).items()}

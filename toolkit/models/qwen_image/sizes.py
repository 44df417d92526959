"""How large references, the model and its files are, by arithmetic on its config and the headers of its files.
Imports no torch.

Sizes of references: diffusers, pipelines/qwenimage/pipeline_qwenimage_edit_plus.py, `calculate_dimensions`,
CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE; "target area": ai-toolkit, `match_target_res`. Sizes of the published model
(transformer 20.4 B parameters, of which 20.39 B in 60 blocks; text encoder 8.3 B; VAE 0.13 B) are used when the model
folder is not here yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.config.model_files import read_model_json
from toolkit.data.types import Size
from toolkit.errors import UserError
from toolkit.files.safetensors_io import tensor_sizes
from toolkit.models.families import EncoderSize, ModelSizeInfo
from toolkit.models.interface import DynamicShift
from toolkit.number_types import QTYPE_BYTES

CONDITION_AREA = 384 * 384
"""Pixels of a reference as the text encoder sees it."""

REFERENCE_AREA = 1024 * 1024
"""Pixels of a reference as the transformer sees it, unless it follows the target's size."""

SIDE_MULTIPLE = 32

OWN_SIZES = tuple(
    Size(*sides)
    for sides in ((1328, 1328), (1664, 928), (928, 1664), (1472, 1104), (1104, 1472), (1584, 1056), (1056, 1584))
)
"""1:1, 16:9, 9:16, 4:3, 3:4, 3:2, 2:3. Source: README of QwenLM/Qwen-Image, `aspect_ratios`."""

LATENT_CHANNELS = 16
LATENT_SCALE = 8
"""Pixels along one side of a latent pixel. Source: diffusers, AutoencoderKLQwenImage, `spatial_compression_ratio`."""

PATCH = 2
"""Latent pixels along one side of a token. Source: diffusers, pipeline_qwenimage_edit_plus.py, `_pack_latents`."""


def size_of_area(area: int, aspect: float, multiple: int = SIDE_MULTIPLE) -> Size:
    """The size of about `area` pixels with aspect ratio width / height, sides rounded to this multiple."""
    width = math.sqrt(area * aspect)
    height = width / aspect
    return Size(*(max(1, round(side / multiple)) * multiple for side in (width, height)))


def condition_size(image: Size) -> Size:
    """The size in which the text encoder sees a reference."""
    return size_of_area(CONDITION_AREA, image.width / image.height)


def reference_size(image: Size, target: Size, match_target: bool) -> Size:
    """The size in which the VAE and the transformer see a reference; its own aspect ratio is kept."""
    area = target.width * target.height if match_target else REFERENCE_AREA
    return size_of_area(area, image.width / image.height)


PUBLISHED = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "in_channels": 64,
    "out_channels": 16,
}
BYTES_PER_WEIGHT: Mapping[str | None, float] = {None: 2.0} | QTYPE_BYTES
"""By `model.qtype`; None: not quantized."""


def block_linears(dim: int) -> dict[str, tuple[int, int]]:
    """The 14 linear layers of one block of width `dim`: name -> (inputs, outputs).

    Source: diffusers, transformer_qwenimage.py, QwenImageTransformerBlock.
    """
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    shapes = {f"attn.{name}": (dim, dim) for name in attention}
    for stream in ("img", "txt"):
        shapes[f"{stream}_mlp.net.0.proj"] = (dim, 4 * dim)
        shapes[f"{stream}_mlp.net.2"] = (4 * dim, dim)
    for stream in ("img", "txt"):
        shapes[f"{stream}_mod.1"] = (dim, 6 * dim)
    return shapes


def block_count(folder: Path) -> int:
    """Blocks of the transformer."""
    return _transformer_config(folder)["num_layers"]


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Every linear layer a LoRA can adapt: full name -> (inputs, outputs)."""
    config = _transformer_config(folder)
    shapes = block_linears(config["num_attention_heads"] * config["attention_head_dim"])
    return {
        f"transformer_blocks.{index}.{name}": shape
        for index in range(config["num_layers"])
        for name, shape in shapes.items()
    }


def every_linear_layer(folder: Path) -> dict[str, tuple[int, int]]:
    """`linear_layers` and those outside of the blocks, which no adapter is put on: full name -> (inputs, outputs).

    Source: diffusers, transformer_qwenimage.py, QwenImageTransformer2DModel.
    """
    config = _transformer_config(folder)
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        "time_text_embed.timestep_embedder.linear_1": (256, dim),
        "time_text_embed.timestep_embedder.linear_2": (dim, dim),
        "img_in": (config["in_channels"], dim),
        "txt_in": (config["joint_attention_dim"], dim),
        **linear_layers(folder),
        "norm_out.linear": (dim, 2 * dim),
        "proj_out": (dim, 4 * config["out_channels"]),
    }


def modules(folder: Path) -> dict[str, int]:
    """Every module of the transformer that has weights of its own: full name -> their number, biases included.

    Source: diffusers, transformer_qwenimage.py, QwenImageTransformer2DModel.
    """
    config = _transformer_config(folder)
    norms = {
        f"transformer_blocks.{index}.attn.{name}": config["attention_head_dim"]
        for index in range(config["num_layers"])
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    }
    linears = every_linear_layer(folder).items()
    norms["txt_norm"] = config["joint_attention_dim"]
    return {name: (inputs + 1) * outputs for name, (inputs, outputs) in linears} | norms


_AGAIN = "Copy or download the model again."
MOST_LAYERS, WIDEST = 1000, 10**5
"""Above these the config is damaged rather than large."""


def _transformer_config(folder: Path) -> dict[str, int]:
    """The sizes among its keys. Raises UserError naming the one that cannot be."""
    part = folder / "transformer"
    config = PUBLISHED | {key: value for key, value in part_config(part).items() if key in PUBLISHED}
    for key, value in config.items():
        most = MOST_LAYERS if key == "num_layers" else WIDEST
        if type(value) is not int or not 1 <= value <= most:
            expected = f"a whole number from 1 to {most}"
            raise UserError(f"{part / 'config.json'}: {key}: {value!r} is not {expected}. {_AGAIN}")
    return config


def dynamic_shift(folder: Path) -> DynamicShift:
    """The sampler's time shift from scheduler/scheduler_config.json, with diffusers' defaults for absent keys.

    Raises UserError naming a value that cannot be.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    config = read_model_json(path)
    values = {key: config.get(key, default) for key, default in defaults.items()}
    values["shift_terminal"] = config.get("shift_terminal")
    for key, value in values.items():
        absent = value is None and key == "shift_terminal"
        if not absent and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"{path}: {key}: {value!r} is not a number. {_AGAIN}")
    if values["base_image_seq_len"] == values["max_image_seq_len"]:
        raise UserError(f"{path}: base_image_seq_len and max_image_seq_len are equal. {_AGAIN}")
    return DynamicShift(**values)


def part_config(part: Path) -> dict[str, Any]:
    """The config of a part; empty where it is not here yet. Raises UserError when it cannot be read."""
    path = part / "config.json"
    return read_model_json(path) if path.is_file() else {}


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
    text_config = part_config(folder / "text_encoder")
    text_config |= text_config.get("text_config") or {}
    text_width, text_inner = (text_config.get(name, published) for name, published in PUBLISHED_TEXT_SIZES.items())
    text, vae = PUBLISHED_TEXT, PUBLISHED_VAE
    if stored := _stored_counts(folder / "text_encoder"):
        unused = sum(count for name, count in stored.items() if name.startswith("lm_head"))
        linears = sum(count for name, count in stored.items() if OF_TEXT_LAYERS.fullmatch(name))
        text = EncoderSize(linears, sum(stored.values()) - linears - unused, unused)
    if stored := _stored_counts(folder / "vae"):
        vae = EncoderSize(linear_params=0, other_params=sum(stored.values()))
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
        text=text,
        vae=vae,
        encode_numbers=ENCODE_TENSORS * vae_width,
        decode_numbers=DECODE_TENSORS * vae_width,
        text_token_numbers=3 * text_inner + 8 * text_width,
        text_width=text_width,
        latent_numbers=LATENT_CHANNELS / LATENT_SCALE**2,
        pixels_per_token=(LATENT_SCALE * PATCH) ** 2,
        reference_pixels=REFERENCE_AREA,
        text_tokens=12,
        text_tokens_per_reference=CONDITION_AREA // 28**2 + 18,
        bytes_per_weight=BYTES_PER_WEIGHT,
    )


def _stored_counts(part: Path) -> dict[str, int]:
    """Name and number of weights of each tensor in a part's safetensors files, read from their headers alone."""
    return {name: count for path in sorted(part.glob("*.safetensors")) for name, count in tensor_sizes(path).items()}

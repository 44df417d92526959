"""How large the model is, by arithmetic on its config alone, before anything is loaded. Imports no torch.

Sizes of the published model (transformer 20.4 B parameters, of which 20.39 B in 60 blocks; text encoder 8.3 B;
VAE 0.13 B) are used when the model folder is not here yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.config.model_files import read_model_json
from toolkit.number_types import QTYPE_BYTES

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


def _transformer_config(folder: Path) -> dict[str, int]:
    return PUBLISHED | part_config(folder / "transformer")


def part_config(part: Path) -> dict[str, Any]:
    """The config of a part; empty where it is not here yet. Raises UserError when it cannot be read."""
    path = part / "config.json"
    return read_model_json(path) if path.is_file() else {}

"""What of a Qwen-Image-Edit folder takes memory: its config and the headers of its files. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

from toolkit.models.footprint import Encoder, Footprint
from toolkit.models.qwen_edit.estimate import BYTES_PER_WEIGHT, linear_layers, modules
from toolkit.models.qwen_edit.sizes import CONDITION_AREA, REFERENCE_AREA

PUBLISHED_TEXT = Encoder(linears=6_525_288_448, others=1_221_880_832, unused=544_997_376)
"""Qwen2.5-VL-7B by its config: 28 layers; embedding, vision tower and norms; the head, which is not used."""

PUBLISHED_TEXT_SIZES = {"hidden_size": 3584, "intermediate_size": 18944}
PUBLISHED_VAE = Encoder(linears=0, others=126_892_531)
PUBLISHED_VAE_WIDTH = 96
"""Channels at full resolution (`base_dim`)."""

ENCODE_TENSORS, DECODE_TENSORS = 14, 22
"""How many tensors of the VAE's width and the picture's size it has in memory at most. Measured with diffusers' class
on the CPU in bfloat16, base_dim 32, dim_mult 1 2 4 4; convolutions that copy their input take more."""

OF_TEXT_LAYERS = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.\d+\..*_proj\.weight")
TABULATED = re.compile(r"transformer_blocks\.\d+\.(?:img_mod|txt_mod)\.1")


def footprint(folder: Path) -> Footprint:
    """The facts of a local folder, or of the published model where it is not here yet."""
    layers, all_modules = linear_layers(folder), modules(folder)
    in_blocks = sum(inputs * outputs for inputs, outputs in layers.values())
    width = next(iter(layers.values()))[0]
    tabulated = {name: inputs * outputs for name, (inputs, outputs) in layers.items() if TABULATED.fullmatch(name)}
    sizes = _text_sizes(folder)
    vae_width = _json(folder / "vae" / "config.json").get("base_dim", PUBLISHED_VAE_WIDTH)
    return Footprint(
        width=width,
        blocks=len({name.split(".")[1] for name in layers}),
        linears=in_blocks,
        others=sum(all_modules.values()) - in_blocks,
        largest_layer=max(inputs * outputs for inputs, outputs in layers.values()),
        largest_of_tokens=max(i * o for name, (i, o) in layers.items() if name not in tabulated),
        tabulated=frozenset(tabulated),
        tabulated_weights=sum(tabulated.values()),
        table_inputs=frozenset(name for name in all_modules if name.startswith("time_text_embed.")),
        text=_text_encoder(folder),
        vae=_vae(folder),
        encode_numbers=ENCODE_TENSORS * vae_width,
        decode_numbers=DECODE_TENSORS * vae_width,
        text_token_numbers=3 * sizes["intermediate_size"] + 8 * sizes["hidden_size"],
        text_width=sizes["hidden_size"],
        latent_numbers=16 / 64,
        pixels_per_token=16 * 16,
        reference_pixels=REFERENCE_AREA,
        text_tokens=12,
        text_tokens_per_reference=CONDITION_AREA // 28**2 + 18,
        bytes_per_weight=BYTES_PER_WEIGHT,
    )


def _text_encoder(folder: Path) -> Encoder:
    shapes = dict(_stored_shapes(folder / "text_encoder"))
    if not shapes:
        return PUBLISHED_TEXT
    unused = sum(count for name, count in shapes.items() if name.startswith("lm_head"))
    linears = sum(count for name, count in shapes.items() if OF_TEXT_LAYERS.fullmatch(name))
    return Encoder(linears, sum(shapes.values()) - linears - unused, unused)


def _vae(folder: Path) -> Encoder:
    shapes = dict(_stored_shapes(folder / "vae"))
    return Encoder(linears=0, others=sum(shapes.values())) if shapes else PUBLISHED_VAE


def _text_sizes(folder: Path) -> dict[str, int]:
    config = _json(folder / "text_encoder" / "config.json")
    config |= config.get("text_config") or {}
    return {name: config.get(name, published) for name, published in PUBLISHED_TEXT_SIZES.items()}


def _stored_shapes(part: Path) -> Iterator[tuple[str, int]]:
    """Name and number of weights of each tensor in a part's safetensors files, read from their headers alone."""
    for path in sorted(part.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
                header = json.loads(file.read(length))
            yield from ((name, prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # what is wrong with the file is said when the part is loaded


def _json(path: Path) -> dict:
    """A config; an empty one where there is none, or none that can be read: that is said when the part is loaded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Krea 2 Raw, a model of text to image, and its Turbo, which is distilled for few steps.

This module has facts; `model` loads and runs the parts. The sizes of the published
models are from their classes in diffusers. Imports no torch.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.config.sections.model_files import INDEX, read_model_json
from toolkit.contracts.model import DynamicShift, LicenceTerms
from toolkit.models.families import EncoderSize, ModelSizeInfo
from toolkit.models.folder_family import (
    BANDED_VAE,
    DiffusersFamily,
    Qwen3Texts,
    part_config,
)
from toolkit.models.recipes import Recipe

RAW = "Krea-2-Raw"
TURBO = "Krea-2-Turbo"

TURBO_MU = 1.15
"""The logarithm of the Turbo's time shift, at every size. Source: diffusers,
pipeline_krea2.py, `__call__`."""

TAPS = tuple(range(2, 36, 3))
"""Source: diffusers, pipeline_krea2.py, `text_encoder_select_layers`."""

FUSING_KEEPS = 35
"""Tensors of its width that a block which fuses texts keeps for the backward pass, in
bfloat16 at the ratios of the published widths."""

ATTENTION = {
    "wq": "to_q",
    "wk": "to_k",
    "wv": "to_v",
    "wo": "to_out.0",
    "gate": "to_gate",
}

BLOCKS = {
    "blocks": "transformer_blocks",
    "txtfusion.layerwise_blocks": "text_fusion.layerwise_blocks",
    "txtfusion.refiner_blocks": "text_fusion.refiner_blocks",
}

LAYER_NAMES = (
    {
        "first": ["img_in"],
        "last.linear": ["final_layer.linear"],
        "tmlp.0": ["time_embed.linear_1"],
        "tmlp.2": ["time_embed.linear_2"],
        "tproj.1": ["time_mod_proj"],
        "txtmlp.1": ["txt_in.linear_1"],
        "txtmlp.3": ["txt_in.linear_2"],
        "txtfusion.projector": ["text_fusion.projector"],
    }
    | {
        f"{theirs}.*.attn.{name}": [f"{ours}.*.attn.{layer}"]
        for theirs, ours in BLOCKS.items()
        for name, layer in ATTENTION.items()
    }
    | {
        f"{theirs}.*.mlp.{name}": [f"{ours}.*.ff.{name}"]
        for theirs, ours in BLOCKS.items()
        for name in ("gate", "up", "down")
    }
)
"""See `ModelFacts`. Source: diffusers, lora_conversion_utils.py,
`_convert_non_diffusers_krea2_lora_to_diffusers`."""

COMMUNITY_LICENCE = LicenceTerms(
    name="krea-2-community-license",
    link="https://www.krea.ai/krea-2-licensing",
    notice="Krea 2 is licensed under the Krea 2 Community License Agreement. For more information, "
    "visit https://krea.ai/krea-2-licensing.",
    name_begins="Krea",
)
"""Source: Krea 2 Community License Agreement of 2026-06-22, as models derived from it
quote it."""


RECIPE = Recipe(
    lr=1e-4,
    lr_why="musubi-tuner and SimpleTuner write 1e-4, the script of diffusers 3e-4",
    resolution=1024,
    resolution_why="samples have 1024",
    timestep_type="qwen_shift",
    levels_why="musubi-tuner shifts the levels by the size, as sampling does, or by 2.5",
    rank=32,
)


class Krea2Family(Qwen3Texts, DiffusersFamily):
    """See `ModelFamily`.

    >>> FAMILY.of_title("Krea-2-Turbo").sample_steps
    8
    """

    arch = "krea2"
    model_class = f"{__package__}.model:Krea2Model"
    title = RAW
    pipelines = ("Krea2Pipeline",)
    published = {f"krea/{title}": title for title in (RAW, TURBO)}  # noqa: RUF012
    licence = "Krea 2 Community License: commercial use below 1M USD of revenue"
    terms = COMMUNITY_LICENCE
    modelspec = ("Krea-2", "https://github.com/krea-ai/krea-2")
    classes = {  # noqa: RUF012
        "transformer": "Krea2Transformer2DModel",
        "vae": "AutoencoderKLQwenImage",
        "text_encoder": "Qwen3VLModel",
    }
    settings = {"vae/input_channels": 3}  # noqa: RUF012
    # All but `text_fusion.projector`, of 12 weights.
    lora_outside = r"(?!text_fusion\.projector).*"
    layer_names = LAYER_NAMES
    lora_spelling = "diffusers"
    shapes_file = Path(__file__).with_name("shapes.json")
    size_multiple = 16
    latent_channels = 16
    latent_scale = 8
    patch = 2
    text_width_key = "text_hidden_dim"
    text_taps = TAPS
    text_tokens = 5
    # Qwen3-VL-4B has the same text encoder; its vision tower is not used.
    published_text = replace(Qwen3Texts.published_text, unused=415_347_712)
    published_vae = EncoderSize(0, 126_892_531)
    published_vae_width = 96
    vae_tensors = BANDED_VAE
    empty_negative = ""
    recipes = dict.fromkeys((RAW, TURBO), RECIPE)
    # Its pipeline's defaults: 4.5, of a scale that counts from 0, and 28 steps.
    guidance = 5.5
    sample_steps = 28

    def footprint(self, folder: Path) -> ModelSizeInfo:
        """The part that fuses the texts has blocks for all features of a token beside
        each other, and blocks for one feature made of them."""
        sizes = super().footprint(folder)
        config = part_config(folder / "transformer")
        wide = config.get("num_layerwise_text_blocks", 2) * sizes.text_width
        narrow = config.get("num_refiner_text_blocks", 2) * sizes.text_width
        fused = wide + narrow // len(self.text_taps)
        return replace(sizes, outside_numbers=FUSING_KEEPS * fused)

    def of_folder(self, folder: Path) -> Krea2Family:
        file = folder / INDEX
        index: dict[str, Any] = read_model_json(file) if file.is_file() else {}
        family = copy(self.of_title(TURBO) if index.get("is_distilled") else self)
        family.text_taps = tuple(index.get("text_encoder_select_layers") or TAPS)
        return family

    def of_title(self, title: str) -> Krea2Family:
        return TURBO_FAMILY if title == TURBO else self


class TurboFamily(Krea2Family):
    """Krea 2 Turbo, which is distilled for 8 steps without guidance.

    >>> TURBO_FAMILY.sample_sigmas[-1]
    0.125
    """

    title = TURBO
    guidance = 1.0
    sample_sigmas = tuple(1 - step / 8 for step in range(8))
    sample_steps = len(sample_sigmas)

    def shift(self, shift: DynamicShift, is_dynamic: bool) -> DynamicShift:
        return replace(shift, base_shift=TURBO_MU, max_shift=TURBO_MU)


FAMILY = Krea2Family()
TURBO_FAMILY = TurboFamily()

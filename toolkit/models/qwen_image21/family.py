"""Qwen-Image-2.1: one model for text to image and editing, and its Turbo, which is
distilled for few steps.

This module has facts and sizes; it loads no weights. The sizes of the published model
are from its config files, which are the defaults of diffusers 0.42.1.
`toolkit.registry.FAMILIES` lists the object at the end, and `families` finds it.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolkit.config.sections.model_files import INDEX, read_model_json
from toolkit.contracts.data import Size
from toolkit.contracts.model import LicenceTerms
from toolkit.contracts.network_kinds import KINDS, ActivationUnits
from toolkit.errors import UserError
from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    Shapes,
    VaeTensors,
    reference_size,
)
from toolkit.models.qwen_family import QwenFamily

POSITIONS = 8192
"""Positions of text and images. Source: diffusers, transformer_qwenimage21.py,
QwenImage21Rope."""

TURBO = "Qwen-Image-2.1-Turbo"
"""The member that is distilled for few steps. Its model_index.json has
`sample_sigmas`."""

TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)
"""Its noise levels, for the time before its folder exists. Source:
Qwen/Qwen-Image-2.1-Turbo, model_index.json."""


RESEARCH_LICENCE = LicenceTerms(
    name="qwen-research",
    link="https://huggingface.co/Qwen/Qwen-Image-2.1/blob/main/LICENSE",
    display="Built with Qwen",
    notice="Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
    "All Rights Reserved.",
)
"""Source: Qwen RESEARCH LICENSE AGREEMENT of 2024-09-19, sections 3 c and 4 b."""


class QwenImage21Family(QwenFamily):
    """See `ModelFamily`.

    >>> FAMILY.of_title("Qwen-Image-2.1-Turbo").sample_steps
    8
    >>> str(FAMILY.drawable(Size(1000, 1000)))
    '992x992'
    """

    arch = "qwen_image_2"
    model_class = "toolkit.models.qwen_image21.model:QwenImage21Model"
    network_maker = "toolkit.models.qwen_image21.new:new_transformer"
    title = "Qwen-Image-2.1"
    pipelines = ("QwenImage21Pipeline",)
    licence = "Qwen Research License: not for commercial use"
    terms = RESEARCH_LICENCE
    published: Mapping[str, str] = {
        "Qwen/Qwen-Image-2.1": "Qwen-Image-2.1",
        f"Qwen/{TURBO}": TURBO,
    }
    modelspec = ("Qwen-Image-2.1", "https://github.com/QwenLM/Qwen-Image")
    size_multiple = 32
    pixel_channels = 4
    latent_scale = 16
    own_sizes = tuple(
        Size(*sides)
        for sides in (
            (1024, 1024),
            (1344, 768),
            (768, 1344),
            (1184, 896),
            (896, 1184),
            (1248, 832),
            (832, 1248),
        )
    )
    max_references = 10
    text_at_reference_size = True
    lora_spelling = "bare"  # ComfyUI fuses layers of this model
    guidance = 1.0
    sample_steps = 40
    sure_prompt = 1000
    encoder_parts: Mapping[str, tuple[str, ...]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "processor"),
    }
    weight_parts = ("transformer", "vae", "text_encoder")
    classes: Mapping[str, str] = {
        "transformer": "QwenImage21Transformer2DModel",
        "vae": "AutoencoderKLQwenImage21",
        "text_encoder": "Qwen3VLForConditionalGeneration",
        "processor": "Qwen3VLProcessor",
    }
    # Text and control images are modulated at t = 0. Everything that the trainer shares
    # between noise levels depends on it.
    settings: Mapping[str, Any] = {"transformer/causal_condition": True}
    tiny_parts = "toolkit.models.qwen_image21.tiny:write_parts"
    parts: Mapping[str, str] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "processor": f"{PROCESSOR_FILES} {TOKENIZER_FILES}",
        "scheduler": "scheduler_config.json",
    }
    published_transformer: Mapping[str, int] = {
        "num_layers": 32,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "context_in_dim": 4096,
        "in_channels": 64,
        "out_channels": 64,
        "mlp_ratio": 3,
    }
    text_width_key = "context_in_dim"
    # Qwen3-VL-8B by its config: 36 layers; embedding, vision tower and norms; the head,
    # which is not used.
    published_text = EncoderSize(
        linear_params=6_945_767_424, other_params=1_199_026_416, unused=622_329_856
    )
    published_text_sizes = (4096, 12288)
    published_text_layers = 36
    published_vision: Mapping[str, Any] = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 16,
        "deepstack_visual_indexes": (8, 16, 24),
    }
    published_vae = EncoderSize(linear_params=0, other_params=337_740_404)
    published_vae_width = 96
    published_vae_config: Mapping[str, Any] = {
        "base_dim": 96,
        "decoder_base_dim": 144,
        "z_dim": 64,
        "dim_mult": [1, 2, 4, 8, 8],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True, True],
    }
    # the decoder is 1.5 times as wide
    vae_tensors = VaeTensors(0.36, 0.36, 5.8, 14)
    biases = False
    scales_references = True
    text_tokens = 10
    text_tokens_per_reference = 8
    encoder_token_pixels = 32**2
    # Counted like the units in `KINDS`, on blocks of width 256.
    activation_units: Mapping[str, ActivationUnits] = {
        "lora": ActivationUnits(
            (28.9, 26.3),
            (13.1, 13.1),
            (5.6, 5.5),
            (12.5, 12.2),
            casts=True,
            compiled=(21.3, 21.2),
            compiled_outputs=(12.1, 12.1),
            offloaded=(17.3, 17.2),
        ),
        "dora": ActivationUnits(
            (59.0, 35.3),
            (24.2, 24.1),
            (19.4, 10.2),
            (27.6, 19.3),
            (9, 5),
            (9, 5),
            compiled=(43.3, 24.2),
            compiled_outputs=(22.1, 22.1),
            offloaded=(33.3, 21.5),
        ),
        "loha": ActivationUnits(
            (28.9, 26.3),
            (24.1, 24.1),
            (5.6, 5.5),
            (16.6, 16.3),
            (19, 19),
            (17, 13),
            compiled=(21.2, 21.2),
            compiled_outputs=(12.1, 12.1),
            offloaded=(17.6, 17.5),
        ),
        "lokr": ActivationUnits(
            (38.9, 36.2),
            (13.1, 13.1),
            (3.4, 3.2),
            (18.6, 18.3),
            compiled=(31.1, 31.1),
            compiled_outputs=(12.1, 12.1),
            offloaded=(21.3, 21.1),
        ),
        "full": ActivationUnits(
            (33.3, 29.2),
            (13.1, 13.1),
            (5.6, 5.5),
            (12.5, 12.3),
            (6, 4),
            casts=True,
            compiled=(22.7, 22.7),
            compiled_outputs=(13.1, 13.1),
            offloaded=None,
        ),
        **{
            name: replace(
                kind.units,
                everything=(28.9, 26.3),
                matmul_outputs=(24.1, 24.1),
                backward=(5.6, 5.5),
                forward=(16.0, 16.0),
                compiled=(21.2, 21.2),
                compiled_outputs=(12.1, 12.1),
            )
            for name, kind in KINDS.items()
            if kind.library_class
        },
    }

    def __init__(
        self, latent_channels: int = 64, sample_sigmas: Sequence[float] = ()
    ) -> None:
        self.latent_channels = latent_channels
        self.sample_sigmas = tuple(map(float, sample_sigmas))
        if sample_sigmas:
            self.title = TURBO
            self.sample_steps = len(sample_sigmas)
        super().__init__()

    def of_folder(self, folder: Path) -> QwenImage21Family:
        return QwenImage21Family(
            self.transformer_config(folder)["in_channels"],
            sample_sigmas(folder / INDEX),
        )

    def of_title(self, title: str) -> QwenImage21Family:
        return QwenImage21Family(sample_sigmas=TURBO_SIGMAS) if title == TURBO else self

    def drawable(self, pixels: Size) -> Size:
        """See `ModelFacts`. The pipeline rounds to 32, though a token has 16 pixels per
        side."""
        return Size(
            *(side // self.size_multiple * self.size_multiple for side in pixels)
        )

    def prompt_fault(
        self,
        folder: Path,
        prompt: str,
        target: Size,
        references: Sequence[Size],
        area: int,
    ) -> str | None:
        """See `QwenFamily`. Each image takes one position for each token along its
        longer side."""
        seen = [reference_size(reference, target, area) for reference in references]
        most = POSITIONS - 1 - sum(max(size) // self.latent_scale for size in seen)
        bound = (
            len(prompt.encode("utf-8", "replace")) + self.text_tokens + 8 * len(seen)
        )
        if bound <= most or not (folder / "processor").is_dir():
            return None
        from toolkit.models.qwen_image21.prompts import count_text_tokens

        count = count_text_tokens(prompt, len(seen), folder / "processor")
        if count <= most:
            return None
        beside = (
            f" beside {len(seen)} control image{'s' * (len(seen) > 1)}" if seen else ""
        )
        return f"{count:,} text tokens; the model has room for {most:,}{beside}. Shorten the text."

    def block_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """Source: diffusers, transformer_qwenimage21.py,
        QwenImage21TransformerBlock."""
        inner = width * config.get("mlp_ratio", 3)
        attention = {
            f"attn.{name}": (width, width)
            for name in ("to_q", "to_k", "to_v", "to_out.0")
        }
        mlp = {
            "proj": (width, inner),
            "out": (inner, width),
            "gate_layer": (width, inner),
        }
        return attention | {f"img_mlp.{name}": shape for name, shape in mlp.items()}

    def outer_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """Source: diffusers, transformer_qwenimage21.py,
        QwenImage21Transformer2DModel."""
        return {
            "time_text_embed.timestep_embedder.linear_1": (256, width),
            "time_text_embed.timestep_embedder.linear_2": (width, width),
            "txt_in.in_layer": (config["context_in_dim"], width),
            "txt_in.out_layer": (width, width),
            "img_in": (config["in_channels"], width),
            "modulation.1": (width, 4 * width),
            "norm_out.linear": (width, width),
            "proj_out": (width, config["out_channels"]),
        }

    def norms(self, config: Mapping[str, int]) -> dict[str, int]:
        of_block = {
            f".attn.{name}": config["attention_head_dim"]
            for name in ("norm_q", "norm_k")
        }
        return {**of_block, "txt_in.text_norm": config["context_in_dim"]}


def sample_sigmas(index: Path) -> tuple[float, ...]:
    """The noise levels in a model_index.json; empty where it has none. Raises UserError
    where they are not falling numbers from at most 1 to above 0.

    >>> sample_sigmas(Path("not_here_yet"))
    ()
    """
    levels = (
        read_model_json(index).get("sample_sigmas") if index.is_file() else None
    ) or []
    if not isinstance(levels, list) or not all(
        type(level) in (int, float) for level in levels
    ):
        raise UserError(
            f"{index}: sample_sigmas: has to be a list of numbers. Copy the published file."
        )
    # NaN fails the comparison too
    if not all(below < level <= 1 for level, below in pairwise([*levels, 0])):
        raise UserError(
            f"{index}: sample_sigmas: have to fall, from at most 1 to above 0. Copy the published file."
        )
    return tuple(map(float, levels))


FAMILY = QwenImage21Family()

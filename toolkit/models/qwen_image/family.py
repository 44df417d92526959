"""The members of the family that share the 20 B transformer: Qwen-Image (2512),
Qwen-Image-Edit, Edit-2509 and 2511.

They differ in the text around a prompt and in their control images. 2511 also has
another noise level for control images, which its config says (`zero_cond_t`).

This module has facts and sizes; it loads no weights. Qwen-Image-Layered is in
`layered`. `toolkit.registry.FAMILIES` lists the objects at the end, and `families`
finds the right one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.contracts.data import Size
from toolkit.contracts.network_kinds import KINDS, ActivationUnits
from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    Shapes,
    part_config,
)
from toolkit.models.qwen_family import QwenFamily
from toolkit.models.qwen_image import sizes
from toolkit.models.template import EDIT, EDIT_PLUS, TEXT_TO_IMAGE, Template


class QwenImageFamily(QwenFamily):
    """See `ModelFamily`. Without changes it is Qwen-Image-Edit-2509.

    >>> FAMILY.of_title("Qwen-Image-Edit-2511").title
    'Qwen-Image-Edit-2511'
    >>> FAMILY.max_references, FAMILY.block_count(Path("not_here_yet"))
    (3, 60)
    """

    arch = "qwen_image_edit_plus"
    model_class = "toolkit.models.qwen_image.model:QwenImageModel"
    network_maker = "toolkit.models.qwen_image.new:new_transformer"
    title = "Qwen-Image-Edit-2509"
    licence = "Apache-2.0"
    pipelines = ("QwenImageEditPlusPipeline",)
    pipeline_without_images: tuple[str, Mapping[str, str | int]] | None = (
        "QwenImagePipeline",
        EDIT_PLUS.of_pipeline(),
    )
    published: Mapping[str, str] = {
        "Qwen/Qwen-Image-Edit-2509": "Qwen-Image-Edit-2509",
        "Qwen/Qwen-Image-Edit-2511": "Qwen-Image-Edit-2511",
    }
    template: Template = EDIT_PLUS
    # as musubi-tuner names it
    modelspec = (
        "Qwen-Image-Edit-Plus",
        "https://github.com/QwenLM/Qwen-Image",
    )
    size_multiple = 32
    latent_channels = sizes.LATENT_CHANNELS
    latent_scale = sizes.LATENT_SCALE
    patch = sizes.PATCH
    own_sizes = sizes.OWN_SIZES
    max_references = 3
    sure_prompt = sizes.SURE_PROMPT
    encoder_parts: Mapping[str, tuple[str, ...]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "tokenizer", "processor"),
    }
    weight_parts = ("transformer", "vae", "text_encoder")
    classes: Mapping[str, str] = {
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2Tokenizer",
        "processor": "Qwen2VLProcessor",
    }
    settings: Mapping[str, Any] = {
        # In Qwen-Image-Layered the first two are true, and its VAE has alpha.
        "transformer/use_additional_t_cond": False,
        "transformer/use_layer3d_rope": False,
        "transformer/guidance_embeds": False,
        "vae/input_channels": 3,
    }
    tiny_parts = "toolkit.models.qwen_image.tiny:write_parts"
    parts: Mapping[str, str] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": TOKENIZER_FILES,
        "processor": PROCESSOR_FILES,
        "scheduler": "scheduler_config.json",
    }
    published_transformer: Mapping[str, int] = {
        "num_layers": 60,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 3584,
        "in_channels": 64,
        "out_channels": 16,
    }
    text_width_key = "joint_attention_dim"
    # Qwen2.5-VL-7B by its config: 28 layers; embedding, vision tower and norms; the
    # head, which is not used.
    published_text = EncoderSize(
        linear_params=6_525_288_448, other_params=1_221_880_832, unused=544_997_376
    )
    published_text_sizes = (3584, 18944)
    published_text_layers = 28
    published_vision: Mapping[str, Any] = {
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "patch_size": 14,
        "deepstack_visual_indexes": (),
    }
    published_vae = EncoderSize(linear_params=0, other_params=126_892_531)
    published_vae_width = 96
    published_vae_config: Mapping[str, Any] = {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    }
    biases = True
    modulation_pattern = r"transformer_blocks\.\d+\.(?:img_mod|txt_mod)\.1"
    scales_references = True
    text_tokens = 12
    text_tokens_per_reference = EDIT_PLUS.condition_area // 28**2 + 18

    def of_folder(self, folder: Path) -> QwenImageFamily:
        if part_config(folder / "transformer").get("zero_cond_t") is True:
            return EDIT_2511
        return self

    def of_title(self, title: str) -> QwenImageFamily:
        return EDIT_2511 if title == EDIT_2511.title else self

    def prompt_fault(
        self,
        folder: Path,
        prompt: str,
        target: Size,
        references: Sequence[Size],
        area: int,
    ) -> str | None:
        return sizes.prompt_fault(
            folder, prompt, target, references, area, self.template
        )

    def prompt_note(self, folder: Path, prompt: str) -> str | None:
        return sizes.prompt_cut(folder, prompt, self.template)

    def block_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """Source: diffusers, transformer_qwenimage.py, QwenImageTransformerBlock."""
        attention = (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        )
        shapes = {f"attn.{name}": (width, width) for name in attention}
        for stream in ("img", "txt"):
            shapes[f"{stream}_mlp.net.0.proj"] = (width, 4 * width)
            shapes[f"{stream}_mlp.net.2"] = (4 * width, width)
        for stream in ("img", "txt"):
            shapes[f"{stream}_mod.1"] = (width, 6 * width)
        return shapes

    def outer_linears(self, width: int, config: Mapping[str, int]) -> Shapes:
        """Source: diffusers, transformer_qwenimage.py, QwenImageTransformer2DModel."""
        return {
            "time_text_embed.timestep_embedder.linear_1": (256, width),
            "time_text_embed.timestep_embedder.linear_2": (width, width),
            "img_in": (config["in_channels"], width),
            "txt_in": (config["joint_attention_dim"], width),
            "norm_out.linear": (width, 2 * width),
            "proj_out": (width, 4 * config["out_channels"]),
        }

    def norms(self, config: Mapping[str, int]) -> dict[str, int]:
        of_head = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        of_block = {f".attn.{name}": config["attention_head_dim"] for name in of_head}
        return {**of_block, "txt_norm": config["joint_attention_dim"]}


class TextToImageFamily(QwenImageFamily):
    """Qwen-Image and Qwen-Image-2512: no control images.

    >>> TEXT_TO_IMAGE_FAMILY.max_references
    0
    """

    arch = "qwen_image"
    title = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    pipeline_without_images = None
    published: Mapping[str, str] = {
        "Qwen/Qwen-Image": "Qwen-Image",
        "Qwen/Qwen-Image-2512": "Qwen-Image-2512",
    }
    template = TEXT_TO_IMAGE
    modelspec = ("Qwen-Image", QwenImageFamily.modelspec[1])
    max_references = 0
    scales_references = False
    text_tokens_per_reference = 0
    settings: Mapping[str, Any] = {
        **QwenImageFamily.settings,
        "transformer/zero_cond_t": False,
    }
    encoder_parts: Mapping[str, tuple[str, ...]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "tokenizer"),
    }
    parts: Mapping[str, str] = {
        part: file
        for part, file in QwenImageFamily.parts.items()
        if part != "processor"
    }
    classes: Mapping[str, str] = {
        part: name
        for part, name in QwenImageFamily.classes.items()
        if part != "processor"
    }


class EditFamily(QwenImageFamily):
    """The first Qwen-Image-Edit: one control image, which the text encoder sees at the
    same size as the transformer.

    >>> EDIT_FAMILY.min_references, EDIT_FAMILY.max_references
    (1, 1)
    """

    arch = "qwen_image_edit"
    title = "Qwen-Image-Edit"
    pipelines = ("QwenImageEditPipeline",)
    pipeline_without_images = None
    published: Mapping[str, str] = {"Qwen/Qwen-Image-Edit": "Qwen-Image-Edit"}
    template = EDIT
    modelspec = ("Qwen-Image-Edit", QwenImageFamily.modelspec[1])
    min_references = max_references = (
        1  # its template has an image; the template of 2509 may have none
    )
    text_tokens_per_reference = EDIT.condition_area // 28**2 + 2
    settings: Mapping[str, Any] = {
        **QwenImageFamily.settings,
        "transformer/zero_cond_t": False,
    }


class Edit2511Family(QwenImageFamily):
    """Qwen-Image-Edit-2511, whose control images are modulated at t = 0.

    >>> EDIT_2511.modelspec[0]
    'Qwen-Image-Edit-2511'
    """

    title = "Qwen-Image-Edit-2511"
    modelspec = ("Qwen-Image-Edit-2511", QwenImageFamily.modelspec[1])
    # Scale and gate of attention and MLP are tensors of every token. The units are
    # counted on tensors, like the units in `KINDS`.
    activation_units: Mapping[str, ActivationUnits] = {
        name: replace(
            units,
            everything=(units.everything[0] + 4, units.everything[1] + 4),
            forward=(units.forward[0] + 2, units.forward[1] + 2),
            compiled=(units.compiled[0] + 1.4, units.compiled[1] + 1.4),
            offloaded=units.offloaded
            and (units.offloaded[0] + 2, units.offloaded[1] + 2),
        )
        for name, kind in KINDS.items()
        for units in [kind.units]
    }


EDIT_2511 = Edit2511Family()
FAMILY = QwenImageFamily()
TEXT_TO_IMAGE_FAMILY = TextToImageFamily()
EDIT_FAMILY = EditFamily()

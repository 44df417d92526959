"""Qwen-Image-Edit-2509, and 2511, which differs only in its config files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.config.model_files import local_index
from toolkit.data.types import Size
from toolkit.errors import UserError
from toolkit.models.families import ModelFamily, ModelSizeInfo
from toolkit.models.interface import ModelSection
from toolkit.models.qwen_image import sizes
from toolkit.models.qwen_image.prompt_length import SURE_PROMPT, prompt_fault
from toolkit.models.qwen_image.sizes import footprint


class QwenImageFamily(ModelFamily):
    """See `ModelFamily`."""

    arch = "qwen_image_edit_plus"
    model_class = "toolkit.models.qwen_image.model:QwenImageModel"
    network_maker = "toolkit.models.qwen_image.new:new_transformer"
    title = "Qwen-Image-Edit-2509"
    pipelines = ("QwenImageEditPlusPipeline",)
    published = ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511")
    modelspec = ("Qwen-Image-Edit-Plus", "https://github.com/QwenLM/Qwen-Image")  # as musubi-tuner names it
    size_multiple = 32
    latent_channels = sizes.LATENT_CHANNELS
    latent_scale = sizes.LATENT_SCALE
    patch = sizes.PATCH
    own_sizes = sizes.OWN_SIZES
    max_references = 3
    sure_prompt = SURE_PROMPT
    encoder_parts: Mapping[str, tuple[str, ...]] = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "tokenizer", "processor"),
    }
    weight_parts = ("transformer", "vae", "text_encoder")
    parts: Mapping[str, str] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": "*.json",
        "processor": "*.json",
        "scheduler": "scheduler_config.json",
    }

    def config_error(self, folder: Path) -> str:
        try:
            sizes.block_count(folder)
            sizes.dynamic_shift(folder)
        except UserError as error:
            return str(error)
        return ""

    def prompt_error(self, model: ModelSection, prompt: str, target: Size, references: Sequence[Size]) -> str | None:
        index = local_index(model.name_or_path, model.revision)
        if index is None:
            return None
        return prompt_fault(index.parent, prompt, target, references, model.model_kwargs.match_target_res)

    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        return sizes.linear_layers(folder)

    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        return sizes.every_linear_layer(folder)

    def modules(self, folder: Path) -> dict[str, int]:
        return sizes.modules(folder)

    def block_count(self, folder: Path) -> int:
        return sizes.block_count(folder)

    def footprint(self, folder: Path) -> ModelSizeInfo:
        return footprint(folder)


FAMILY = QwenImageFamily()

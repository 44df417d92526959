"""Qwen-Image-Layered, which takes a picture apart into layers with opacity.

Its target is several images of one size: first the picture itself, then its layers from
back to front. Its only control image is that picture. This module has facts and sizes;
`model` and `forward` run it like the other members. `toolkit.registry.FAMILIES` lists
the object at the end. Imports no torch.

Source: diffusers 0.42.1, pipeline_qwenimage_layered.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.contracts.data import Size
from toolkit.contracts.model import DynamicShift
from toolkit.models.folder_family import part_config, size_of_area
from toolkit.models.qwen_family import width_of
from toolkit.models.qwen_image.family import QwenImageFamily, TextToImageFamily

AREA = 640 * 640
"""Pixels of an image. Source: `resolution` of the pipeline."""

OWN_SETTINGS = ("use_additional_t_cond", "use_layer3d_rope")
"""Keys of the transformer's config that are true. In diffusers an absent key means
false."""

_EMBEDDING = "time_text_embed.addition_t_embedding"
"""A table with two rows. The first stands for images with opacity (`is_rgb` of the
pipeline is 0)."""


class LayeredFamily(TextToImageFamily):
    """See `ModelFamily`.

    >>> str(FAMILY.default_size(Size(1600, 900)))
    '864x480'
    """

    arch = "qwen_image_layered"
    title = "Qwen-Image-Layered"
    pipelines = ("QwenImageLayeredPipeline",)
    published: Mapping[str, str] = {"Qwen/Qwen-Image-Layered": "Qwen-Image-Layered"}
    modelspec = ("Qwen-Image-Layered", "https://github.com/QwenLM/Qwen-Image-Layered")
    stacks_layers = True
    pixel_channels = 4
    min_references = max_references = 1
    text_sees_references = False
    sample_steps = 50
    own_sizes = ()
    keeps_length = False
    # Its pipeline needs a processor: it writes prompts with it where none is given.
    encoder_parts: Mapping[str, tuple[str, ...]] = QwenImageFamily.encoder_parts
    parts: Mapping[str, str] = QwenImageFamily.parts
    classes: Mapping[str, str] = QwenImageFamily.classes
    settings: Mapping[str, Any] = {
        **TextToImageFamily.settings,
        **{f"transformer/{key}": True for key in OWN_SETTINGS},
        "vae/input_channels": 4,
    }
    published_vae_config: Mapping[str, Any] = {
        **QwenImageFamily.published_vae_config,
        "input_channels": 4,
    }

    def of_folder(self, folder: Path) -> LayeredFamily:
        return self

    def of_title(self, title: str) -> LayeredFamily:
        return self

    def sample_size(self, pixels: Size, reference: Size | None) -> Size:
        if reference is None:
            return super().sample_size(pixels, reference)
        return size_of_area(
            pixels.width * pixels.height, reference.width / reference.height
        )

    def default_size(
        self, reference: Size | None = None, learned: Sequence[Size] = ()
    ) -> Size:
        if learned:
            return super().default_size(reference, learned)
        return size_of_area(
            AREA, reference.width / reference.height if reference else 1.0
        )

    def config_error(self, folder: Path) -> str:
        places = {"transformer": OWN_SETTINGS, "vae": ("input_channels",)}
        for part, keys in places.items():
            config = part_config(folder / part)
            for key in keys if config else ():
                if key not in config:
                    path = folder / part / "config.json"
                    return f"{path}: has no {key}, so is of another model; a {self.title} has it. Copy the model again."
        return super().config_error(folder)

    def prompt_fault(
        self,
        folder: Path,
        prompt: str,
        target: Size,
        references: Sequence[Size],
        area: int,
    ) -> str | None:
        # the text encoder sees no image
        return super().prompt_fault(folder, prompt, target, (), area)

    def shift(self, shift: DynamicShift, is_dynamic: bool) -> DynamicShift:
        return SquareRootShift(**vars(shift)) if is_dynamic else shift

    def weight_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        shape = 2, width_of(self.transformer_config(folder))
        return {**super().weight_shapes(folder), f"{_EMBEDDING}.weight": shape}


class SquareRootShift(DynamicShift):
    """The shift exponent grows with the side of one image, whatever the number of
    layers.

    Source: diffusers, pipeline_qwenimage_layered.py, `__call__` (`base_seqlen`, `mu`).

    >>> SquareRootShift().mu(tokens=1024, steps=50)
    2.0
    """

    def mu(self, tokens: int, steps: int) -> float:
        mu: float = (tokens / 256) ** 0.5
        return mu


FAMILY = LayeredFamily()

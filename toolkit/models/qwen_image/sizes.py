"""How large references are and where they go, by arithmetic on their sizes. Imports no torch.

Source: diffusers, pipelines/qwenimage/pipeline_qwenimage_edit_plus.py, `calculate_dimensions`, CONDITION_IMAGE_SIZE and
VAE_IMAGE_SIZE; "target area": ai-toolkit, `match_target_res`."""

from __future__ import annotations

from toolkit.data.types import Size
from toolkit.models.folder_family import size_of_area
from toolkit.models.template import EDIT_PLUS

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


def condition_size(image: Size, area: int = EDIT_PLUS.condition_area) -> Size:
    """The size in which the text encoder sees a reference."""
    return size_of_area(area, image.width / image.height)


def reference_size(image: Size, target: Size, area: int) -> Size:
    """The size in which the VAE and the transformer see a reference; its own aspect ratio is kept.

    area: pixels; 0: as many as the target has.
    """
    return size_of_area(area or target.width * target.height, image.width / image.height)

"""Which pixel size a reference image takes on its two ways into the model. Imports no torch.

Source: diffusers, pipelines/qwenimage/pipeline_qwenimage_edit_plus.py, `calculate_dimensions`,
CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE; "target area": ai-toolkit, `match_target_res`.
"""

from __future__ import annotations

import math

from toolkit.interfaces import Size

CONDITION_AREA = 384 * 384
"""Pixels of a reference as the text encoder sees it."""

REFERENCE_AREA = 1024 * 1024
"""Pixels of a reference as the transformer sees it, unless it follows the target's size."""

SIDE_MULTIPLE = 32

LATENT_CHANNELS = 16
LATENT_SCALE = 8
"""Pixels along one side of a latent pixel. Source: diffusers, AutoencoderKLQwenImage, `spatial_compression_ratio`."""

PATCH = 2
"""Latent pixels along one side of a token. Source: diffusers, pipeline_qwenimage_edit_plus.py, `_pack_latents`."""


def size_of_area(area: int, aspect: float) -> Size:
    """The size of about `area` pixels with aspect ratio width / height, sides rounded to multiples of 32."""
    width = math.sqrt(area * aspect)
    height = width / aspect
    return Size(*(max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in (width, height)))


def condition_size(image: Size) -> Size:
    """The size in which the text encoder sees a reference."""
    return size_of_area(CONDITION_AREA, image.width / image.height)


def reference_size(image: Size, target: Size, match_target: bool) -> Size:
    """The size in which the VAE and the transformer see a reference; its own aspect ratio is kept."""
    area = target.width * target.height if match_target else REFERENCE_AREA
    return size_of_area(area, image.width / image.height)

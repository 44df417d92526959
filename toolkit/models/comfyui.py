"""How ComfyUI runs the published models: its files and nodes.

This is a table: the trainer's writer of ComfyUI workflows reads it, and fills in the
job's own files. It opens no file. Imports no torch.

Source: ComfyUI 0.29.0, comfy_extras/nodes_qwen.py (for Qwen-Image-2.1 the same file of
0.38.0), and the templates of comfyui-workflow-templates 0.11.97, whose file names are
the names in Comfy-Org's repositories.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComfyModel:
    """One model as ComfyUI has it.

    >>> MODELS["Qwen-Image-Edit-2511"].images
    ('image1', 'image2', 'image3')
    """

    diffusion_model: str
    """Name of its file."""

    text_encoder: str = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    vae: str = "qwen_image_vae.safetensors"
    encoder: str = "CLIPTextEncode"
    """Node that encodes a prompt. The node of 2509 and 2511 puts the words around it
    that these models were trained with, also without an image."""

    images: tuple[str, ...] = ()
    """Inputs of that node for control images."""

    reference_method: str = ""
    """How control images are modulated, where ComfyUI's default is not right."""

    encodes_both: bool = False
    """Whether the encoding node takes both prompts, and the side that control images
    are scaled to."""

    is_shifted: bool = True
    """Whether one node sets the shift of the noise levels, and another the norm of
    guided predictions."""

    empty_latent: str = "EmptySD3LatentImage"


CLIP_TYPE = "qwen_image"

_THREE_IMAGES = ("image1", "image2", "image3")
_EDIT_PLUS = "TextEncodeQwenImageEditPlus"

MODELS = {
    "Qwen-Image": ComfyModel("qwen_image_fp8_e4m3fn.safetensors"),
    "Qwen-Image-2512": ComfyModel("qwen_image_2512_fp8_e4m3fn.safetensors"),
    "Qwen-Image-Edit": ComfyModel(
        "qwen_image_edit_fp8_e4m3fn.safetensors",
        encoder="TextEncodeQwenImageEdit",
        images=("image",),
    ),
    "Qwen-Image-Edit-2509": ComfyModel(
        "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        encoder=_EDIT_PLUS,
        images=_THREE_IMAGES,
    ),
    "Qwen-Image-Edit-2511": ComfyModel(
        "qwen_image_edit_2511_fp8mixed.safetensors",
        encoder=_EDIT_PLUS,
        images=_THREE_IMAGES,
        reference_method="index_timestep_zero",
    ),
    "Qwen-Image-2.1": ComfyModel(
        "qwen_image_2.1_int8_convrot.safetensors",
        "qwen3vl_8b_int8_convrot.safetensors",
        "qwen_image_2.1_vae_bf16.safetensors",
        encoder="TextEncodeQwenImage21",
        images=tuple(f"images.image_{number}" for number in range(1, 11)),
        encodes_both=True,
        is_shifted=False,
        empty_latent="EmptyLatentImage",
    ),
}
"""Title of a model -> how ComfyUI runs it."""

WITHOUT = {
    "Qwen-Image-Layered": "open ComfyUI's template for Qwen-Image-Layered",
    "Qwen-Image-2.1-Turbo": "open ComfyUI's template for Qwen-Image-2.1-Turbo, which has its noise levels",
}
"""Title of a model for which no workflow is written -> what to do instead."""

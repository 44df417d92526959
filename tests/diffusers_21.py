"""diffusers' own Qwen-Image-2.1 pipeline over a model folder, and our adapter over the
same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from torch import Tensor
from transformers import (
    Qwen2Tokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from tests.diffusers_reference import CPU
from toolkit.contracts.data import Size
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image21.family import FAMILY
from toolkit.models.qwen_image21.model import QwenImage21Model
from toolkit.train.sampling import SamplePrompt


class ImageProcessor(Qwen3VLProcessor):
    """Without the processor of videos, which needs torchvision."""

    def __init__(
        self, image_processor=None, tokenizer=None, chat_template=None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    def check_argument_for_proper_class(
        self, argument_name: str, argument: object
    ) -> object:
        return type(argument)

    @classmethod
    def of_folder(cls, folder: Path) -> ImageProcessor:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        return cls(
            Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, template
        )


def load_pipeline(folder: Path) -> QwenImage21Pipeline:
    """The pipeline in float32 on the CPU, every part read by the libraries
    themselves."""
    pipeline = QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage21.from_pretrained(folder / "vae"),
        text_encoder=Qwen3VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ),
        processor=ImageProcessor.of_folder(folder / "processor"),
        transformer=QwenImage21Transformer2DModel.from_pretrained(
            folder / "transformer"
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_21(
    folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> QwenImage21Model:
    return FAMILY.open(
        ModelLoadOptions(folder=folder, device=CPU, dtype=dtype, **options)
    )


def side_of(size: Size) -> float:
    """The pipeline's `output_resolution` that gives references the area of this
    target."""
    return math.sqrt(size.width * size.height)


def pack(latents_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] to the pipeline's tokens [B, H W, C]."""
    return latents_BCHW.flatten(2).transpose(1, 2)


def drawn_by_pipeline(
    pipeline: QwenImage21Pipeline, prompt: SamplePrompt, **options: Any
) -> Any:
    """What the pipeline gives for a sample with references at the target's area; by
    default PIL images."""
    from PIL import Image

    return pipeline(
        image=[Image.open(path) for path in prompt.references] or None,
        prompt=prompt.prompt,
        negative_prompt=(prompt.negative or " ") if prompt.guided else None,
        true_cfg_scale=prompt.guidance_scale,
        width=prompt.size.width,
        height=prompt.size.height,
        output_resolution=side_of(prompt.size),
        num_inference_steps=prompt.steps,
        generator=torch.Generator("cpu").manual_seed(prompt.seed),
        **options,
    ).images

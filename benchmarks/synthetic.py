"""A model folder of a given size with random weights, and a batch for it: what the
benches train on.

The transformer is diffusers' own class in the published layout; the encoders are left
out, because their results are drawn instead of computed. Speed and memory do not depend
on what weights have learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor

from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.memory.quantization import quantizer
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.system.seeding import generator, global_generator

diffusers_logging.set_verbosity_error()  # it remarks on every cast

SEED = 42
RANK = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LATENT_CHANNELS = 16


@dataclass(frozen=True)
class ModelSize:
    """A transformer and the sequence it works on: a target and a reference of one size,
    and a text."""

    heads: int
    head_dim: int
    layers: int
    rope_axes: tuple[int, int, int]
    text_width: int
    latent_side: int
    """Of target and reference; a token covers 2 x 2 latents."""

    text_tokens: int

    @property
    def tokens(self) -> int:
        """Of one image."""
        return (self.latent_side // 2) ** 2

    def __str__(self) -> str:
        return (
            f"hidden {self.heads * self.head_dim}, {self.layers} blocks, {self.tokens} + {self.tokens} image tokens, "
            f"{self.text_tokens} text tokens"
        )


PUBLISHED = {
    "head_dim": 128,
    "rope_axes": (16, 56, 56),
    "text_width": 3584,
    "latent_side": 32,
    "text_tokens": 64,
}
SIZES = {
    "XS": ModelSize(
        heads=2,
        head_dim=32,
        layers=1,
        rope_axes=(8, 12, 12),
        text_width=64,
        latent_side=8,
        text_tokens=8,
    ),
    "S": ModelSize(heads=4, layers=4, **PUBLISHED),
    "M": ModelSize(heads=6, layers=6, **PUBLISHED),
    # As S, on what a job at 512x512 with one reference sees.
    "L": ModelSize(
        heads=4, layers=4, **(PUBLISHED | {"latent_side": 64, "text_tokens": 280})
    ),
}


def write_model(folder: Path, size: ModelSize) -> None:
    """`folder`/transformer in bfloat16 and `folder`/scheduler, as the published model
    folder has them."""
    with global_generator(SEED, "benchmark_model"):
        transformer = make_transformer(size)
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    write_scheduler(folder)


def make_transformer(size: ModelSize) -> QwenImageTransformer2DModel:
    """Of this size, with diffusers' own random weights."""
    return QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=size.text_width,
        axes_dims_rope=size.rope_axes,
    )


def write_scheduler(folder: Path) -> None:
    """`folder`/scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02
    )
    scheduler.save_pretrained(folder / "scheduler")


class EncoderlessModel(QwenImageModel):
    """The adapter of the program; latents and embeddings are drawn, so that a folder
    needs no encoders."""

    def __init__(self, options: ModelLoadOptions, size: ModelSize) -> None:
        super().__init__(options, FAMILY)
        self.size = size

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        batch, _, height, width = pixels_BCHW.shape
        return torch.randn(
            (batch, LATENT_CHANNELS, height // 8, width // 8),
            generator=generator(SEED, "latents"),
        )

    def layerwise_encoder(self) -> None:
        """There is no file to read layers from."""

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        return torch.randn(
            (self.size.text_tokens, self.size.text_width),
            generator=generator(SEED, "text", prompt),
        )

    def reference_size(self, image: Size, target: Size) -> Size:
        return target


def load_model(
    folder: Path, size: ModelSize, dtype: torch.dtype, qtype: str | None = None
) -> EncoderlessModel:
    """The adapter over a folder of `write_model`, on the CPU; qtype: a key of
    `toolkit.number_types.QTYPES`."""
    options = ModelLoadOptions(
        folder=folder,
        device=torch.device("cpu"),
        dtype=dtype,
        transform_block=quantizer(qtype) if qtype else None,
    )
    return EncoderlessModel(options, size)


def make_batch(size: ModelSize, spec: BatchSpec, dtype: torch.dtype) -> LatentBatch:
    """One sample with one reference of the target's size, as the cache would give
    it."""
    side = size.latent_side
    target_CHW, reference_CHW = torch.randn(
        (2, LATENT_CHANNELS, side, side), generator=generator(SEED, "pictures")
    )
    text_LD = torch.randn(
        (size.text_tokens, size.text_width), generator=generator(SEED, "caption")
    )
    return LatentBatch(
        latents_BCHW=target_CHW[None].to(dtype),
        prompts=PromptEmbeds(text_LD[None].to(dtype), (size.text_tokens,)),
        control_latents=((reference_CHW.to(dtype),),),
        spec=spec,
        names=("drawn.png",),
        loss_weight_B=torch.ones(1),
    )

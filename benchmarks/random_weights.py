"""The published model without its files: its weights are drawn where they are used,
while the program loads it.

A folder of `write_folder` holds config files, and files of weights without a tensor.
The program's own loader fills, quantizes and places block after block; only what it
would read from disk is drawn instead, one tensor at a time. So neither 41 GB of files
nor as much host memory is needed. Speed and memory do not depend on what weights have
learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest import mock

import diffusers
import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor

from benchmarks.synthetic import (
    SEED,
    SIZES,
    EncoderlessModel,
    ModelSize,
    make_transformer,
    write_scheduler,
)
from toolkit.contracts.data import EMBEDS, Size
from toolkit.files.safetensors_io import framed
from toolkit.models import loading
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_family import QwenFamily
from toolkit.models.qwen_image.family import FAMILY, QwenImageFamily
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21
from toolkit.models.qwen_image21.family import QwenImage21Family
from toolkit.models.qwen_image21.model import QwenImage21Model
from toolkit.models.qwen_image21.prompts import SLOTS
from toolkit.system.seeding import generator, key

DEVIATION = 0.02
"""Of the drawn weights: small enough that streams stay finite through all blocks."""

TEXT_TOKENS = (80, 280, 490, 700)
"""Usual length of a caption's embedding with 0 to 3 references, which the text encoder
sees too."""

DRAWN_SIZES = {
    **SIZES,
    "published": ModelSize(
        heads=FAMILY.published_transformer["num_attention_heads"],
        head_dim=FAMILY.published_transformer["attention_head_dim"],
        layers=FAMILY.published_transformer["num_layers"],
        rope_axes=(16, 56, 56),
        text_width=FAMILY.published_transformer["joint_attention_dim"],
        latent_side=128,
        text_tokens=TEXT_TOKENS[1],
    ),
}
"""Those of the other benches, and the model as it is published, on 1024x1024 pixels."""

_SIZE = "drawn_size.json"


def write_folder(folder: Path, size: ModelSize, family: QwenFamily = FAMILY) -> None:
    """A model folder of config files, whose files of weights are empty."""
    with init_empty_weights():
        make = make_single_stream if family is FAMILY_21 else make_transformer
        make(size).save_config(folder / "transformer")
    write_scheduler(folder)
    index = {"_class_name": family.pipelines[0]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    # nothing is read of the parts that are not trained
    for (
        part,
        files,
    ) in family.parts.items():
        for file in files.split():
            path = folder / part / file.split("|")[0]
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text("{}", encoding="utf-8")
    for part in family.weight_parts:
        (folder / part / "model.safetensors").write_bytes(framed("{}"))
    (folder / _SIZE).write_text(json.dumps(asdict(size)), encoding="utf-8")


def drawn_text(size: ModelSize, width: int, prompt: str) -> Tensor:
    """Features [L, width] of a prompt; one that ends with "+N" has N tokens more than
    usual."""
    more = int(prompt.rpartition(" +")[2]) if " +" in prompt else 0
    return torch.randn(
        (size.text_tokens + more, width), generator=generator(SEED, "text", prompt)
    )


def drawn(options: ModelLoadOptions) -> AbstractContextManager[object]:
    """Inside the block weights are drawn instead of read."""
    device = torch.device("cpu") if options.low_vram else options.device
    reader = partial(DrawnWeights, device=device)
    return mock.patch.object(loading, "ShardReader", reader)


class RandomWeightsModel(EncoderlessModel):
    """The program's adapter over a folder of `write_folder`."""

    def __init__(self, options: ModelLoadOptions) -> None:
        fields = json.loads((options.folder / _SIZE).read_text(encoding="utf-8"))
        super().__init__(options, ModelSize(**fields))

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        return drawn_text(self.size, self.size.text_width, prompt)

    def load_part(self, name: str) -> object:
        with drawn(self.options):
            return super().load_part(name)


def make_single_stream(size: ModelSize) -> diffusers.QwenImage21Transformer2DModel:
    """A transformer of Qwen-Image-2.1 of this size: at the published one as wide and
    deep as that is published."""
    published = FAMILY_21.published_transformer
    if size.layers == FAMILY.published_transformer["num_layers"]:
        heads, layers = published["num_attention_heads"], published["num_layers"]
        size = replace(
            size, heads=heads, layers=layers, text_width=published["context_in_dim"]
        )
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=published["in_channels"],
        out_channels=published["out_channels"],
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        context_in_dim=size.text_width,
        axes_dims_rope=size.rope_axes,
    )


class RandomSingleStreamModel(QwenImage21Model):
    """The adapter of Qwen-Image-2.1 over a folder of `write_folder`; latents and
    embeddings are drawn."""

    def __init__(self, options: ModelLoadOptions) -> None:
        fields = json.loads((options.folder / _SIZE).read_text(encoding="utf-8"))
        super().__init__(options, FAMILY_21.of_folder(options.folder))
        self.size = ModelSize(**fields)

    def encode_images(self, pixels_BPHW: Tensor) -> Tensor:
        batch, _, height, width = pixels_BPHW.shape
        scale, channels = self.family.latent_scale, self.family.latent_channels
        drawn_BCHW = torch.randn(
            (batch, channels, height // scale, width // scale),
            generator=generator(SEED, "latents"),
        )
        return drawn_BCHW

    def layerwise_encoder(self) -> None:
        """There is no file to read layers from."""

    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> dict[str, Tensor]:
        """The references are in front of the text."""
        width = self.network_module.config.context_in_dim
        text_LD = drawn_text(self.size, width, prompt)
        slots_R = torch.full((self.family.max_references,), -1)
        slots_R[: len(references)] = 0
        return {EMBEDS: text_LD, SLOTS: slots_R}

    def reference_size(self, image: Size, target: Size) -> Size:
        return target

    def load_part(self, name: str) -> object:
        with drawn(self.options):
            return super().load_part(name)


@contextmanager
def drawn_models() -> Iterator[None]:
    """Inside the block every model the program opens is drawn."""
    with (
        mock.patch.object(
            QwenImageFamily, "open", lambda family, options: RandomWeightsModel(options)
        ),
        mock.patch.object(
            QwenImage21Family,
            "open",
            lambda family, options: RandomSingleStreamModel(options),
        ),
    ):
        yield


class DrawnWeights:
    """In the place of the reader of weight files: each tensor has a key of its own, so
    the order is of no matter."""

    def __init__(self, part: Path, *_: object, device: torch.device) -> None:
        self.folder = part
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        kind = getattr(diffusers, config["_class_name"])
        with init_empty_weights():
            empty = kind.from_config(config)
        self._shapes = {
            name: tensor.shape for name, tensor in empty.state_dict().items()
        }
        self.names = set(self._shapes)
        self._device = device

    def take(self, name: str) -> torch.Tensor:
        self.names.discard(name)
        random = torch.Generator(self._device).manual_seed(
            key(SEED, "drawn_weights", name)
        )
        drawn = torch.empty(
            self._shapes[name], dtype=torch.bfloat16, device=self._device
        )
        drawn.normal_(0, DEVIATION, generator=random)
        is_scale = drawn.dim() == 1 and name.endswith(".weight")  # of a norm
        return drawn.add_(1) if is_scale else drawn

    def stored_codes(self, name: str, kind: str) -> None:
        """No weight is drawn in codes."""

    def release(self) -> None:
        """There is no file."""

    def in_codes(self) -> bool:
        """No weight is drawn in codes."""
        return False

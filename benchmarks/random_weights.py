"""The published model without its files: its weights are drawn where they are used, while the program loads it.

A folder of `write_folder` holds config files, and files of weights without a tensor. The program's own loader fills,
quantizes and places block after block; only what it would read from disk is drawn instead, one tensor at a time. So
neither 41 GB of files nor as much host memory is needed. Speed and memory do not depend on what weights have learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate import init_empty_weights
from diffusers import QwenImageTransformer2DModel

from benchmarks.synthetic import SEED, SIZES, EncoderlessModel, ModelSize, make_transformer, write_scheduler
from toolkit.files.safetensors_io import framed
from toolkit.models import loading
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY, QwenImageFamily
from toolkit.system.seeding import key

DEVIATION = 0.02
"""Of the drawn weights: small enough that streams stay finite through all blocks."""

TEXT_TOKENS = (80, 280, 490, 700)
"""Usual length of a caption's embedding with 0 to 3 references, which the text encoder sees too."""

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


def write_folder(folder: Path, size: ModelSize) -> None:
    """A model folder of config files, whose files of weights are empty."""
    with init_empty_weights():
        make_transformer(size).save_config(folder / "transformer")
    write_scheduler(folder)
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}', encoding="utf-8")
    for part, files in QwenImageFamily.parts.items():  # nothing is read of the parts that are not trained
        for file in files.split():
            path = folder / part / file.split("|")[0]
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text("{}", encoding="utf-8")
    for part in QwenImageFamily.weight_parts:
        (folder / part / "model.safetensors").write_bytes(framed("{}"))
    (folder / _SIZE).write_text(json.dumps(asdict(size)), encoding="utf-8")


class RandomWeightsModel(EncoderlessModel):
    """The program's adapter over a folder of `write_folder`."""

    def __init__(self, options: ModelLoadOptions) -> None:
        fields = json.loads((options.folder / _SIZE).read_text(encoding="utf-8"))
        super().__init__(options, ModelSize(**fields))

    def load_part(self, name: str) -> object:
        device = torch.device("cpu") if self.options.low_vram else self.options.device
        with mock.patch.object(loading, "ShardReader", partial(DrawnWeights, device=device)):
            return super().load_part(name)


@contextmanager
def drawn_models() -> Iterator[None]:
    """Inside the block every model the program opens is a RandomWeightsModel."""
    with mock.patch.object(QwenImageFamily, "open", lambda family, options: RandomWeightsModel(options)):
        yield


class DrawnWeights:
    """In the place of the reader of weight files: each tensor has a key of its own, so the order is of no matter."""

    def __init__(self, part: Path, *_: object, device: torch.device) -> None:
        self.folder = part
        with init_empty_weights():
            empty = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(part))
        self._shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
        self.names = set(self._shapes)
        self._device = device

    def take(self, name: str) -> torch.Tensor:
        self.names.discard(name)
        random = torch.Generator(self._device).manual_seed(key(SEED, "drawn_weights", name))
        drawn = torch.empty(self._shapes[name], dtype=torch.bfloat16, device=self._device)
        drawn.normal_(0, DEVIATION, generator=random)
        is_scale = drawn.dim() == 1 and name.endswith(".weight")  # of a norm
        return drawn.add_(1) if is_scale else drawn

    def stored_fp8(self, name: str) -> None:
        """No weight is drawn in E4M3."""

    def in_fp8(self) -> bool:
        """No weight is drawn in E4M3."""
        return False

"""How fast images and captions become the entries of the cache, with encoders of the
published size.

The way is the program's own: files are decoded, encoded one by one and written to disk.
Of the encoders only the weights are drawn, and the tokenizer knows fewer words: a
caption is as many tokens as with the published one or more.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from benchmarks.device_timer import forget_peaks, peaks
from benchmarks.random_weights import DEVIATION
from benchmarks.synthetic import SEED
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.data.batches.latent_cache import CachePair, encode_items
from toolkit.files.tensor_cache import TensorCache
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.models.tiny import write_tiny_model
from toolkit.system.seeding import global_generator, key

CAPTION = "a photo of a person, portrait, smiling, studio light, a cup of coffee"

PUBLISHED_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
PUBLISHED_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
"""Of Qwen2.5-VL-7B. The published VAE has the values its class has by itself."""

SPECIAL_TOKENS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)
"""Of the tokenizer in use."""


def measure(
    folder: Path,
    side: int,
    published: bool,
    device: torch.device,
    dtype: torch.dtype,
    samples: int,
) -> dict[str, Any]:
    """Samples per second of building the cache: each a target and a reference of side x
    side pixels, and a caption."""
    write_tiny_model(folder / "model")
    model = DrawnEncoders(ModelLoadOptions(folder / "model", device, dtype), published)
    items = [_item(folder / "pictures", index, side) for index in range(2 + samples)]
    _build(items[:2], model, folder / "warm_up", dtype)  # loads the encoders
    forget_peaks(device)
    seconds = _build(items[2:], model, folder / "cache", dtype)
    total = sum(seconds.values())
    return {
        "samples": samples,
        "samples_per_s": samples / total,
        "seconds": seconds,
        "peak_gb": peaks(device)["allocated_gb"],
    }


def _build(
    items: list[BucketedSample], model: QwenImageModel, folder: Path, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of each of the two passes over the items."""
    stores = CachePair(TensorCache(folder / "latents"), TensorCache(folder / "text"))
    done: dict[str, float] = {}
    begin = time.perf_counter()
    encode_items(
        items,
        model,
        lambda _: stores,
        dtype,
        lambda what, *_: done.update({what: time.perf_counter()}),
    )
    ends = [begin, *done.values()]
    return {
        what: end - start
        for what, start, end in zip(done, ends, ends[1:], strict=False)
    }


def _item(folder: Path, index: int, side: int) -> BucketedSample:
    """Two smooth images of their own; as large as JPEGs of photographs."""
    folder.mkdir(exist_ok=True)
    target, reference = paths = [
        folder / f"{index}_{kind}.jpg" for kind in ("target", "reference")
    ]
    for path in paths:
        coarse = Image.effect_noise((side // 4, side // 4), 64).convert("RGB")
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    size = Size(side, side)
    sample = Sample(
        str(target), f"{CAPTION}, {index}", 1, size, str(folder), (str(reference),)
    )
    return BucketedSample(sample, ResizeCrop(size, 0, 0, size))


class DrawnEncoders(QwenImageModel):
    """The program's adapter over a tiny model, with encoders of that size or of the
    published one."""

    def __init__(self, options: ModelLoadOptions, published: bool) -> None:
        super().__init__(options, FAMILY)
        self._published = published

    def reference_size(self, image: Size, target: Size) -> Size:
        return target

    def layerwise_encoder(self) -> None:
        """There is no file to read layers from: what is measured is the whole text
        encoder, once it is loaded."""

    def load_part(self, name: str) -> object:
        if name == "vae":
            return self._vae()
        if name == "text_encoder":
            return self._text_encoder()
        return super().load_part(name)

    def _vae(self) -> AutoencoderKLQwenImage:
        own = (
            {}
            if self._published
            else AutoencoderKLQwenImage.load_config(self.options.folder / "vae")
        )
        with global_generator(SEED, "drawn_vae"):
            vae = AutoencoderKLQwenImage.from_config(own)
        return (
            vae.to(self.options.device, self.options.dtype).requires_grad_(False).eval()
        )

    def _text_encoder(self) -> Qwen2_5_VLModel:
        config = Qwen2_5_VLConfig.from_pretrained(self.options.folder / "text_encoder")
        if self._published:
            markers = {name: getattr(config, name) for name in SPECIAL_TOKENS}
            config = Qwen2_5_VLConfig(
                text_config=PUBLISHED_TEXT, vision_config=PUBLISHED_VISION, **markers
            )
        with init_empty_weights(include_buffers=False):
            model = Qwen2_5_VLModel(config)
        _draw(model, self.options.device, self.options.dtype)
        return model.to(self.options.device).eval()


@torch.no_grad()
def _draw(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives an empty model its weights, each where it is used."""
    for name, empty in list(model.named_parameters()):
        random = torch.Generator(device).manual_seed(
            key(SEED, "drawn_text_encoder", name)
        )
        drawn = torch.empty(empty.shape, dtype=dtype, device=device).normal_(
            0, DEVIATION, generator=random
        )
        if drawn.dim() == 1 and name.endswith("weight"):  # of a norm
            drawn.add_(1)
        place, _, own = name.rpartition(".")
        model.get_submodule(place).register_parameter(
            own, nn.Parameter(drawn, requires_grad=False)
        )

"""Writes a complete folder of a model of the Qwen-Image family in a few megabytes, with
random weights.

The layout is the published one (sharded transformer, vocab.json + merges.txt tokenizer,
processor folder, model_index.json). Every part is the real class at a small size, so a
job that runs on it runs on the real model after a change of one path. It paints noise:
nothing has been learned.

The families write their parts in their own `tiny` (`ModelFamily.tiny_parts`), with the
tokenizer and scheduler from this module. Called by the process that makes new models,
by benchmarks and by tests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from toolkit.config.sections.model_files import family_named
from toolkit.files.run_files import TINY_MODEL
from toolkit.models import vl_prompts  # noqa: F401 - switches the libraries' progress bars off
from toolkit.models.imports import without_bitsandbytes
from toolkit.models.template import IMAGE_PAD
from toolkit.registry import load_object
from toolkit.system.seeding import global_generator

with without_bitsandbytes():
    from diffusers import FlowMatchEulerDiscreteScheduler

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)

WORDS = (
    "Picture 1: Picture 2: Picture 3: a photo of a person, portrait, smiling, full body, standing, a cup of coffee, "
    "a cat, a rocket before launch, studio light, natural light, high quality, low quality, blurry, detailed"
)
"""Text whose words are tokens of the tiny tokenizer, in addition to the template. Other
text becomes bytes."""

MOST_TOKENS = 1000
"""The largest number of tokens of the tokenizer, without special ones. Places that
words leave free become syllables, which invented names are made of."""

VISION_PIXELS = 56 * 56
"""Pixels of a control image for the text encoder with captions: one or two tokens. Its
weights are random, so more tokens would cost time and add no information."""

HEAD_DIM = 32
ROPE_AXES = (8, 12, 12)
TEXT_WIDTH = 64


@dataclass(frozen=True)
class TinySpec:
    """The settings that decide every byte of a tiny model.

    >>> TinySpec(layers=4).recipe()
    {'seed': 0, 'layers': 4, 'heads': 2}
    """

    seed: int = 0
    layers: int = 2
    """Transformer blocks."""

    heads: int = 2
    """Attention heads of 32 channels each."""

    captions: tuple[str, ...] = ()
    """Text whose words become separate tokens. With it, the text encoder is made for a
    transformer that learns from it while it stays frozen: few layers, words far apart,
    one or two tokens per control image, float16."""

    arch: str = "qwen_image_edit_plus"
    """Its family."""

    zero_cond_t: bool = False
    """Control images are modulated at t = 0, as in Qwen-Image-Edit-2511."""

    def recipe(self) -> dict[str, object]:
        """The values that are written to `tiny_model.json`: settings, and a hash of the
        captions where there are some."""
        defaults = {
            field.name: field.default
            for field in fields(self)
            if field.name in ("arch", "zero_cond_t")
        }
        settings = {
            key: value
            for key, value in asdict(self).items()
            if key not in defaults or value != defaults[key]
        }
        captions = settings.pop("captions")
        if captions:
            settings["captions"] = hashlib.sha256(
                "\n".join(captions).encode()
            ).hexdigest()
        return settings


def write_tiny_model(folder: Path, spec: TinySpec = TinySpec()) -> None:
    """Writes the model folder. Files of the same names are replaced.

    The spec is in `tiny_model.json`, which is written last: a folder that has it is
    complete.
    """
    family: Any = family_named(spec.arch)
    with global_generator(spec.seed, Path(TINY_MODEL).stem):
        make_scheduler().save_pretrained(folder / "scheduler")
        transformer = load_object(family.tiny_parts)(folder, family, spec)
        shard_bytes = (
            sum(p.numel() * p.element_size() for p in transformer.parameters()) // 2
        )
        shutil.rmtree(folder / "transformer", ignore_errors=True)
        transformer.save_pretrained(folder / "transformer", max_shard_size=shard_bytes)
    parts = {"scheduler": "FlowMatchEulerDiscreteScheduler", **family.classes}
    libraries = {
        part: "transformers"
        if part in family.encoder_parts["text_encoder"]
        else "diffusers"
        for part in parts
    }
    index = {part: [libraries[part], parts[part]] for part in sorted(parts)}
    write_model_json(
        folder / "model_index.json",
        {"_class_name": family.pipelines[0], "_diffusers_version": "0.42.1", **index},
    )
    write_model_json(folder / TINY_MODEL, spec.recipe())


def is_written(folder: Path, spec: TinySpec) -> bool:
    """Whether the folder holds the complete tiny model of this spec."""
    marker = folder / TINY_MODEL
    return (
        marker.is_file()
        and json.loads(marker.read_text(encoding="utf-8")) == spec.recipe()
    )


def scale_latents(vae: Any, images_BPHW: torch.Tensor) -> Any:
    """The VAE with latents_mean and latents_std that make the latents of these images
    about unit normal."""
    with torch.no_grad():
        latents_BCFHW = vae.encode(images_BPHW.unsqueeze(2)).latent_dist.mode()
    std, mean = torch.std_mean(latents_BCFHW, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


def smooth_images(channels: int = 3) -> torch.Tensor:
    """Eight smooth random images [8, channels, 64, 64] in [-1, 1], which the scale of
    the latents is measured on.

    >>> smooth_images(channels=4).shape
    torch.Size([8, 4, 64, 64])
    """
    coarse = torch.rand(8, channels, 8, 8) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(
        -1, 1
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The published scheduler settings (tests/golden/sigmas.json,
    `scheduler_config`)."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=8192,
        max_shift=0.9,
        num_train_timesteps=1000,
        shift=1.0,
        shift_terminal=0.02,
        time_shift_type="exponential",
        use_dynamic_shifting=True,
    )


def make_tokenizer(template: str, captions: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer. The template and WORDS count as often as all captions
    together, so their words come before syllables."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    plain = [*[template, WORDS] * max(1, len(captions)), *captions]
    for token in SPECIAL_TOKENS:
        plain = [text.replace(token, "") for text in plain]
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes vocab.json, merges.txt, added_tokens.json and tokenizer_config.json, as in
    the published folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.to_str())["model"]
    added = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    write_model_json(folder / "vocab.json", model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    write_model_json(folder / "added_tokens.json", added)
    decoder = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, i in added.items()
    }
    write_model_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": decoder,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 4096,
            "add_prefix_space": False,
        },
    )


def save_processor(tokenizer: Tokenizer, folder: Path, pixels: int | None) -> None:
    """Writes the processor folder. Like the published one it has a tokenizer as well,
    which `Qwen2VLProcessor` reads.

    pixels: of an image for the text encoder. None: as published.
    """
    save_tokenizer(tokenizer, folder)
    Qwen2VLImageProcessorPil(
        **{"min_pixels": pixels, "max_pixels": pixels} if pixels else {}
    ).save_pretrained(folder)


def write_model_json(path: Path, data: object) -> None:
    path.write_text(
        json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )

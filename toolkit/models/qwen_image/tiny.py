"""A complete Qwen-Image-Edit-2509 folder of a few megabytes, with random weights.

The layout is the published one (sharded transformer, vocab.json + merges.txt tokenizer, processor folder,
model_index.json), every part is the real class at a small size, so that whatever runs on it runs on the
real model by changing one path. It paints noise: nothing has been learned.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from toolkit.files.run_files import TINY_MODEL
from toolkit.models.loading import ASKED_BY, block_import
from toolkit.models.qwen_image import loading  # noqa: F401 - switches the libraries' progress bars off
from toolkit.models.qwen_image.prompts import PREFIX, SUFFIX
from toolkit.models.vl_prompts import IMAGE_PAD
from toolkit.system.seeding import global_generator

with block_import("bitsandbytes", ASKED_BY):
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

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

CORPUS = [
    PREFIX + SUFFIX,
    "Picture 1: Picture 2: Picture 3: a photo of a person, portrait, smiling, full body, standing, a cup of coffee, "
    "a cat, a rocket before launch, studio light, natural light, high quality, low quality, blurry, detailed",
]
"""Text the tiny tokenizer has whole words for; everything else falls back to bytes."""

MOST_TOKENS = 1000
"""Of the tokenizer, without special ones. What words leave free becomes syllables, as invented names have them."""

VISION_PIXELS = 56 * 56
"""Of a reference for the text encoder that knows captions: one or two tokens. Its weights are random, so that more
would say no more and make each step dearer."""

HEAD_DIM = 32
ROPE_AXES = (8, 12, 12)
TEXT_WIDTH = 64


@dataclass(frozen=True)
class TinySpec:
    """What decides every byte of a tiny model."""

    seed: int = 0
    layers: int = 2
    """Transformer blocks."""

    heads: int = 2
    """Attention heads of 32 channels each."""

    captions: tuple[str, ...] = ()
    """Text whose words are tokens of their own. With it, the text encoder is made to be kept as it is while a
    transformer learns from it: few layers, words far apart, one or two tokens per reference, float16."""

    def recipe(self) -> dict[str, object]:
        """What is written down: settings, and a hash of the captions where there are some."""
        settings = asdict(self)
        if captions := settings.pop("captions"):
            settings["captions"] = hashlib.sha256("\n".join(captions).encode()).hexdigest()
        return settings


def write_tiny_model(folder: Path, spec: TinySpec = TinySpec()) -> None:
    """Writes the model folder; whatever stood there under the same file names is replaced.

    The spec is kept in `tiny_model.json`, written last: a folder that holds it is complete.
    """
    with global_generator(spec.seed, "tiny_model"):
        tokenizer = _tokenizer(spec.captions)
        _save_tokenizer(tokenizer, folder / "tokenizer")
        _save_processor(tokenizer, folder / "processor", VISION_PIXELS if spec.captions else None)
        _scheduler().save_pretrained(folder / "scheduler")
        make_encoder = _frozen_text_encoder if spec.captions else _text_encoder
        make_encoder(tokenizer).save_pretrained(folder / "text_encoder")
        _vae().save_pretrained(folder / "vae")
        transformer = _transformer(spec)
        shard_bytes = sum(p.numel() * p.element_size() for p in transformer.parameters()) // 2
        shutil.rmtree(folder / "transformer", ignore_errors=True)
        transformer.save_pretrained(folder / "transformer", max_shard_size=shard_bytes)
    _write_json(folder / "model_index.json", MODEL_INDEX)
    _write_json(folder / TINY_MODEL, spec.recipe())


def is_written(folder: Path, spec: TinySpec) -> bool:
    """Whether the folder holds the complete tiny model of this spec."""
    marker = folder / TINY_MODEL
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == spec.recipe()


MODEL_INDEX = {
    "_class_name": "QwenImageEditPlusPipeline",
    "_diffusers_version": "0.42.1",
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}


def _transformer(spec: TinySpec) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=spec.layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=spec.heads,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=ROPE_AXES,
    )


def _vae() -> AutoencoderKLQwenImage:
    """A random VAE whose latents_mean and latents_std make the latents of images about unit normal."""
    shape = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    vae = AutoencoderKLQwenImage(**shape, latents_mean=[0.0] * 16, latents_std=[1.0] * 16).eval()
    with torch.no_grad():
        pictures_BCFHW = _pictures().unsqueeze(2)
        latents_BCFHW = vae.encode(pictures_BCFHW).latent_dist.mode()
    std, mean = torch.std_mean(latents_BCFHW, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


def _pictures() -> torch.Tensor:
    """Eight smooth random images [8, 3, 64, 64] in [-1, 1]: what the latents' scale is measured on."""
    coarse = torch.rand(8, 3, 8, 8) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)


def _text_encoder(tokenizer: Tokenizer, layers: int = 2, tied: bool = False) -> Qwen2_5_VLForConditionalGeneration:
    vocab = tokenizer.get_vocab()
    ids = {token: vocab[token] for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": layers,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@torch.no_grad()
def _frozen_text_encoder(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Words are far apart: with the usual deviation of 0.02 they drown in the mean of their context."""
    encoder = _text_encoder(tokenizer, layers=1, tied=True)
    encoder.get_input_embeddings().weight.normal_(0, 0.5)
    return encoder.half()


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The published scheduler settings (tests/golden/sigmas.json, `scheduler_config`)."""
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


def _tokenizer(captions: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE. Our own text counts as often as all captions together: its words come before syllables."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    plain = [*CORPUS * max(1, len(captions)), *captions]
    for token in SPECIAL_TOKENS:
        plain = [text.replace(token, "") for text in plain]
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """vocab.json, merges.txt, added_tokens.json and tokenizer_config.json, as the published folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.to_str())["model"]
    added = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    _write_json(folder / "vocab.json", model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    _write_json(folder / "added_tokens.json", added)
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
    _write_json(
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


def _save_processor(tokenizer: Tokenizer, folder: Path, pixels: int | None) -> None:
    """The published processor folder holds a tokenizer as well, from which `Qwen2VLProcessor` is read.

    pixels: of an image for the text encoder. None: as published.
    """
    _save_tokenizer(tokenizer, folder)
    Qwen2VLImageProcessorPil(**{"min_pixels": pixels, "max_pixels": pixels} if pixels else {}).save_pretrained(folder)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

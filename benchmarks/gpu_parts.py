"""Items of `verify_gpu` that are no training: autoencoders in bands, the text encoder
layer by layer, samples beside diffusers, and the tests of CUDA.

Each part is a function that takes the options and its own folder. It returns its
figures and `judged`: pairs of a figure with its target, and whether the target holds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImagePipeline,
)
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.device_timer import GB, finish, forget_peaks, peaks
from benchmarks.gpu_rows import batch_of
from benchmarks.random_weights import (
    DEVIATION,
    DRAWN_SIZES,
    RandomSingleStreamModel,
    RandomWeightsModel,
    write_folder,
)
from benchmarks.synthetic import DTYPES, RANK, SEED
from toolkit.contracts.data import PromptEmbeds
from toolkit.data.batches.latent_cache import encoded_by_name
from toolkit.errors import UserError
from toolkit.flow.sampler import euler_sample, sigmas
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.quantization import quantizer
from toolkit.memory.quantized_products import check_products
from toolkit.models import vae_bands
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.loading import expect_one_frame
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21
from toolkit.models.qwen_image21.model import pack
from toolkit.models.tiny import write_tiny_model
from toolkit.networks.lora import LoraNetwork
from toolkit.number_types import TYPES_OF_PRODUCTS
from toolkit.system.seeding import generator, global_generator, key

ROOT = Path(__file__).resolve().parent.parent
DTYPE = DTYPES["bf16"]

SMALL_VAE = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1} | {
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
VAES: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "Qwen-Image": (AutoencoderKLQwenImage, {"dim_mult": [1, 2, 4, 4]}, 8, 3),
    "2.1": (
        AutoencoderKLQwenImage21,
        {"dim_mult": [1, 2, 4, 8, 8], "decoder_base_dim": 12},
        16,
        4,
    ),
}
"""Class, config of a small one, pixels of a latent, channels of images."""

OF_RANGE = 0.02
"""Largest RMS difference of bands from whole images, as a share of the RMS: bf16 sums
in another order."""

LEAST_DB = 30.0
"""Of a sample beside diffusers, whose latents are rounded to bf16 after each step."""

SAMPLE_STEPS, GUIDANCE = 8, 4.0

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

Judged = list[tuple[str, bool]]


def timed(
    work: Callable[[], Any], device: torch.device, calls: int = 2
) -> tuple[Any, dict[str, float | None]]:
    """The result of the last call, its seconds, and the GB that it took in addition
    (None where nothing counts them)."""
    for _ in range(calls):
        finish(device)
        forget_peaks(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        begin = time.perf_counter()
        found = work()
        finish(device)
        seconds = time.perf_counter() - begin
    peak = peaks(device)["allocated_gb"]
    return found, {
        "s": seconds,
        "peak_gb": None if peak is None else peak - before / GB,
    }


def apart(one: Tensor, other: Tensor) -> float:
    """RMS of the difference as a share of the RMS of `other`."""
    one, other = one.float().cpu(), other.float().cpu()
    return ((one - other).square().mean().sqrt() / other.square().mean().sqrt()).item()


@torch.no_grad()
def vae(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both autoencoders with drawn weights, an image of the job's side in bands and
    whole."""
    device, size = torch.device(asked.device), DRAWN_SIZES[asked.size]
    side = 8 * size.latent_side
    published = asked.size == "published"
    # four bands of a small image
    band = vae_bands.BAND_PIXELS if published else side * side // 4
    found: dict[str, Any] = {}
    judged: Judged = []
    for title, (kind, small, scale, channels) in VAES.items():
        with global_generator(SEED, "drawn_vae"):
            drawn = kind(**({} if published else SMALL_VAE | small))
        drawn = expect_one_frame(drawn.to(device, DTYPE).eval().requires_grad_(False))
        random = generator(SEED, "pixels")
        pixels = torch.rand(1, channels, 1, side, side, generator=random) * 2 - 1
        latents = torch.randn(
            1, drawn.config.z_dim, 1, *2 * (side // scale,), generator=random
        )
        with mock.patch.object(vae_bands, "BAND_PIXELS", band):
            for what, given in (("encode", pixels), ("decode", latents)):
                given = given.to(device, DTYPE)
                (ours, bands), (theirs, whole) = (
                    timed(partial(getattr(way(drawn), what), given), device)
                    for way in (vae_bands.BandedVae, vae_bands.WholeVae)
                )
                differ = apart(ours, theirs)
                found[f"{title}, {what}"] = {
                    "bands": bands,
                    "whole": whole,
                    "difference": differ,
                }
                said = (
                    f"{title} {what} in bands {differ:.1e} apart, at most {OF_RANGE:g}"
                )
                said += f" ({spent(bands)}, whole {spent(whole)})"
                judged.append((said, differ <= OF_RANGE))
    return {"vae": found, "judged": judged}


def spent(one: dict[str, float | None]) -> str:
    peak = "" if one["peak_gb"] is None else f" and {one['peak_gb']:.2f} GB"
    return f"{one['s']:.2f} s{peak}"


def encoder(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Four layers of the published width, or a tiny encoder: two captions with an image
    and one without, layer by layer from the file and whole."""
    device = torch.device(asked.device)
    write_tiny_model(folder / "model")
    if asked.size == "published":
        write_encoder(folder / "model" / "text_encoder", device)
    model = FAMILY.open(ModelLoadOptions(folder / "model", device, DTYPE))
    image = Image.effect_noise((256, 384), 64).convert("RGB")
    prompts = [(CAPTION, [image]), ("a cup", [image]), ("a photo", [])]
    encodings = [lambda one=one: model.encode_prompt(*one) for one in prompts]

    def embeds(encode: Callable[[], Any]) -> dict[str, Tensor]:
        return encoded_by_name(encode())

    layers, layerwise = timed(
        lambda: [
            *map(embeds, model.encode_together(encodings, folder=folder / "waits"))
        ],
        device,
        calls=1,
    )
    whole, loaded = timed(lambda: [*map(embeds, encodings)], device, calls=1)
    differ = max(
        (ours[name].float() - theirs[name].float()).abs().max().item()
        for ours, theirs in zip(layers, whole, strict=True)
        for name in theirs
    )
    said = f"layer by layer {differ:.1e} from whole, at most 0 ({spent(layerwise)}, whole with loading {spent(loaded)})"
    return {
        "layerwise": layerwise,
        "whole": loaded,
        "difference": differ,
        "judged": [(said, differ == 0)],
    }


def write_encoder(folder: Path, device: torch.device) -> None:
    """In the place of a tiny text encoder four layers as wide as the published one: 2
    GB."""
    tiny = Qwen2_5_VLConfig.from_pretrained(folder)
    marks = {name: getattr(tiny, name) for name in SPECIAL_TOKENS}
    own = {"num_hidden_layers": 4, "vocab_size": tiny.text_config.vocab_size}
    config = Qwen2_5_VLConfig(
        text_config=PUBLISHED_TEXT | own,
        vision_config=PUBLISHED_VISION | {"depth": 4, "fullatt_block_indexes": [3]},
        **marks,
    )
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with init_empty_weights(include_buffers=False):
        model = Qwen2_5_VLForConditionalGeneration(config)
    _draw(model, device)
    model.save_pretrained(folder)


@torch.no_grad()
def _draw(model: nn.Module, device: torch.device) -> None:
    """Gives an empty model its weights, each where it is used."""
    for name, empty in list(model.named_parameters()):
        random = torch.Generator(device).manual_seed(
            key(SEED, "drawn_text_encoder", name)
        )
        drawn = torch.empty(empty.shape, dtype=DTYPE, device=device).normal_(
            0, DEVIATION, generator=random
        )
        if drawn.dim() == 1 and name.endswith("weight"):  # of a norm
            drawn.add_(1)
        place, _, own = name.rpartition(".")
        model.get_submodule(place).register_parameter(
            own, nn.Parameter(drawn, requires_grad=False)
        )


class _NoProcessor:
    """What the pipeline of 2.1 asks of a processor when it is made."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *_: object, **__: object) -> list[list[int]]:
        return [[0]]


def samples(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Eight guided steps without a control image from the same noise and embeddings."""
    return _samples(asked, folder, RandomWeightsModel)


def samples_21(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """As `samples`, of Qwen-Image-2.1."""
    return _samples(asked, folder, RandomSingleStreamModel)


@torch.no_grad()
def _samples(asked: argparse.Namespace, folder: Path, kind: Any) -> dict[str, Any]:
    device, size = torch.device(asked.device), DRAWN_SIZES[asked.size]
    single = kind is RandomSingleStreamModel
    write_folder(folder / "model", size, FAMILY_21 if single else FAMILY)
    model = kind(ModelLoadOptions(folder / "model", device, DTYPE))
    family, side = model.family, 8 * size.latent_side
    latent = side // family.latent_scale
    noise_BCHW = torch.randn(
        1, family.latent_channels, latent, latent, generator=generator(SEED, "noise")
    )
    texts = [
        PromptEmbeds.stack([encoded_by_name(model.encode_prompt(text, ()))])
        for text in ("a drawn picture", "")
    ]

    def packed(latents_BCHW: Tensor) -> Tensor:
        if single:
            return pack(latents_BCHW)
        return QwenImagePipeline._pack_latents(latents_BCHW, *latents_BCHW.shape)

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
        folder / "model" / "scheduler"
    )
    parts = {"scheduler": scheduler, "vae": None, "text_encoder": None}
    parts["transformer"] = model.network_module
    pipeline = (
        QwenImage21Pipeline(**parts, processor=_NoProcessor())
        if single
        else QwenImagePipeline(**parts, tokenizer=None)
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds = [text.embeds_BLD.to(device, DTYPE) for text in texts]

    def theirs() -> Tensor:
        drawn: Tensor = pipeline(
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            true_cfg_scale=GUIDANCE,
            num_inference_steps=SAMPLE_STEPS,
            latents=packed(noise_BCHW),
            width=side,
            height=side,
            output_type="latent",
        ).images
        return drawn

    shift = model.dynamic_shift
    levels = sigmas(
        SAMPLE_STEPS,
        shift.mu(latent**2 if single else size.tokens, SAMPLE_STEPS),
        shift.shift_terminal,
    )

    def ours() -> Tensor:
        with_prompt, without = (model.sampling_steps(text, [()]) for text in texts)

        def velocity(x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
            t_B = model.sampling_level(t_B)
            both = with_prompt(x_t_BCHW, t_B), without(x_t_BCHW, t_B)
            guided: Tensor = model.apply_cfg(*both, GUIDANCE)
            return guided

        return packed(euler_sample(velocity, noise_BCHW, levels))

    # diffusers first: ours replaces the blocks' forward methods
    expected, plain = timed(theirs, device, calls=1)
    found, own = timed(ours, device, calls=1)
    if not bool(expected.isfinite().all() and found.isfinite().all()):
        return {"judged": [("the sample is not finite", False)]}
    differ = apart(found, expected)
    decibels = -20 * math.log10(max(differ, 1e-12))
    said = f"{decibels:.1f} dB beside diffusers, at least {LEAST_DB:g} ({spent(own)}, diffusers {spent(plain)})"
    return {
        "db": decibels,
        "ours": own,
        "diffusers": plain,
        "judged": [(said, decibels >= LEAST_DB)],
    }


def products(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A pass forward and backward through the widest frozen layer, multiplied in bf16
    and in 8 bits (`model.quantized_products`). Nothing is promised: it says which is
    faster here."""
    device, size = torch.device(asked.device), DRAWN_SIZES[asked.size]
    width = size.heads * size.head_dim
    x_MI = torch.randn(2 * size.latent_side**2 // 4, width, device=device, dtype=DTYPE)
    found: dict[str, Any] = {}
    said = []
    for kind, qtype in TYPES_OF_PRODUCTS.items():
        try:
            check_products(kind, device)
        except UserError as error:
            said.append(str(error))
            continue
        seconds = []
        for way in (None, kind):
            layer = nn.Linear(width, 4 * width, device=device, dtype=DTYPE)
            block = nn.Sequential(layer)
            quantizer(qtype, products=way)(block, "block")
            run = torch.compile(block) if device.type == "cuda" else block

            def work(run: nn.Module = run) -> None:
                y_MO = run(x_MI.detach().requires_grad_())
                y_MO.backward(y_MO.detach())

            seconds.append(timed(work, device, calls=10)[1]["s"])
        found[kind] = {"bf16_s": seconds[0], "s": seconds[1]}
        share = seconds[1] / seconds[0]
        verdict = "faster" if share < 1 else "slower"
        said.append(f"{kind} products take {share:.2f} of bf16's time: {verdict}")
    return {"products": found, "reason": "; ".join(said)}


def offload_attention(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Passes forward and backward through eight uncompiled blocks with a LoRA and a
    control image, with `full` and with `offload_attention`. No time is promised: it says
    which is faster here."""
    device = torch.device(asked.device)
    drawn = DRAWN_SIZES[asked.size]
    size = replace(drawn, layers=min(8, drawn.layers))
    write_folder(folder / "model", size)
    model = RandomWeightsModel(ModelLoadOptions(folder / "model", device, DTYPE))
    network = LoraNetwork(model.lora_targets(), RANK, float(RANK), 0.0, SEED)
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    batch = batch_of(model, size, 1, CAPTION)
    t_B = torch.full((1,), 0.5)
    found: dict[str, Any] = {}
    velocities = []
    for level in ("full", "offload_attention"):
        BlockRunner(model, device, DTYPE, level)

        def work() -> Tensor:
            velocity = model.predict_velocity(
                batch.latents_BCHW.to(device),
                t_B.to(device),
                batch.prompts,
                batch.control_latents,
            )
            velocity.float().square().mean().backward()
            return velocity.detach()

        velocity, found[level] = timed(work, device, calls=3)
        velocities.append(velocity)
    share = found["offload_attention"]["s"] / found["full"]["s"]
    verdict = "faster" if share < 1 else "slower"
    differ = apart(*velocities)
    return {
        **found,
        "reason": f"offload_attention takes {share:.2f} of full's time: {verdict}",
        "judged": [(f"velocities {differ:.1e} apart, at most 0", differ == 0)],
    }


def tests(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`pytest -m cuda` without whole jobs; its report is written after each test."""
    report = Path(asked.partial)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]  # fmt: skip
    command += [f"--cuda-report={report}", f"--cuda-minutes={asked.seconds / 60 - 0.2:.2f}"]  # fmt: skip
    ended = subprocess.run(
        [*command, "tests", "--ignore=tests/faults/test_cuda.py"], cwd=ROOT
    )
    document = json.loads(report.read_text(encoding="utf-8"))
    wrong = {
        one["name"]: one.get("message", "")[:300]
        for one in document["tests"]
        if one["outcome"] in ("failed", "error")
    }
    counts = ", ".join(f"{count} {what}" for what, count in document["outcomes"].items())  # fmt: skip
    said = f"{counts}, none may fail {' '.join(wrong)}".strip()
    return {"wrong": wrong, "judged": [(said, not (wrong or ended.returncode))]}

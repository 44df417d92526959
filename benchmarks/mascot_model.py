"""The small model of mascots: loaded from its folder, with an adapter, and sampled.
Tests of the quickstart judge by it whether a training has learned.

Shape suffixes: B batch, H/W height and width in pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.mascot_classifier import pixels_of
from benchmarks.mascots import Casting, Characters, Lots, draw, random_mascot
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import Size
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.latent_cache import CachePair, ItemEncoder
from toolkit.files.tensor_cache import TensorCache
from toolkit.models.families import family_for
from toolkit.models.loading import model_folder
from toolkit.networks.applied import AppliedAdapters
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.train.base_model import load_base_model
from toolkit.train.sampling import SamplePrompt, Sampler

SEED = 77
"""Of drawings and samples; pretraining has others."""

SIDE = 128
"""Pixels along a side of a sample."""

STEPS = 8


def load(folder: Path, lora: Path | None = None) -> DiffusionModel:
    """The model of a folder in float32, with an adapter file."""
    section = ModelConfig(
        name_or_path=str(folder), model_kwargs={"match_target_res": True}
    )
    model = load_base_model(section, torch.device("cpu"), torch.float32)
    if lora:
        layers = family_for(section).every_linear_layer(model_folder(section))
        changes = load_adapter_file(lora, layers)
        adapters = AppliedAdapters(model.network_module, [changes], torch.device("cpu"))
        adapters.use([(changes, 1.0)])
    return model


def samples(
    model: DiffusionModel,
    prompts: Sequence[str],
    references: Sequence[Sequence[Image.Image]] = (),
    guidance: float = 2.0,
) -> list[Image.Image]:
    """A sample of 128 x 128 pixels for each prompt, with its references."""
    with tempfile.TemporaryDirectory() as folder:
        asked = []
        for index, prompt in enumerate(prompts):
            files = []
            for number, picture in enumerate(references[index] if references else ()):
                files.append(Path(folder, f"{index}_{number}.png"))
                picture.save(files[-1])
            size, seed = Size(SIDE, SIDE), SEED + index
            asked.append(
                SamplePrompt(prompt, "", size, seed, guidance, STEPS, tuple(files))
            )
        stores = CachePair(TensorCache(None), TensorCache(None))
        sampler = Sampler(model, asked, ItemEncoder(model, torch.float32), stores)
        return [sampler.generate(index) for index in range(len(asked))]


def reconstruction_psnr(
    model: DiffusionModel, characters: Characters, count: int
) -> float:
    """Mean PSNR in dB of drawn pictures of such characters through the autoencoder."""
    found = []
    for index in range(count):
        mascot = random_mascot(Lots(SEED, "vae", index), Casting(characters))
        pixels_BCHW = pixels_of([draw([mascot], SIDE, SIDE)])
        with torch.no_grad():
            again_BCHW = model.decode_latents(model.encode_images(pixels_BCHW))
        error = (again_BCHW.clamp(-1, 1) - pixels_BCHW).square().mean()
        found.append(float(10 * torch.log10(4 / error)))
    return sum(found) / len(found)

"""FLUX.2 [klein], by the contract of all families."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from extensions.flux2_klein.family import LAYER_NAMES
from tests.conftest import ROOT
from tests.extensions.family_contract import *  # noqa: F403 - its tests and its fixtures
from tests.extensions.family_contract import Row
from tests.extensions.flux2_klein.small import write_klein
from tests.running import run_tool
from toolkit.config.sections.model_files import family_named
from toolkit.train.sampling import SamplePrompt

PAIRS = ROOT / "config" / "examples" / "pairs" / "before"

SIZES = {"4B": (5, 20, 24, 7680), "9B": (8, 24, 32, 12288)}


def predict(
    pipeline: Flux2KleinPipeline,
    x_t_BCHW: Tensor,
    t_B: Tensor,
    prompts: Sequence[str],
    references: Sequence[Tensor],
) -> Tensor:
    with torch.no_grad():
        texts, text_ids = pipeline.encode_prompt(list(prompts))
    tokens = [pipeline._pack_latents(x_t_BCHW)]
    ids = [pipeline._prepare_latent_ids(x_t_BCHW)]
    if references:
        tokens += map(pipeline._pack_latents, references)
        ids.append(pipeline._prepare_image_ids([one[:1] for one in references]))
    found = pipeline.transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=texts,
        timestep=t_B,
        img_ids=torch.cat([one[:1] for one in ids], dim=1),
        txt_ids=text_ids,
    ).sample
    return pipeline._unpack_latents_with_ids(found[:, : tokens[0].shape[1]], ids[0])


def encode(pipeline: Flux2KleinPipeline, pixels_BPHW: Tensor) -> Tensor:
    return pipeline._encode_vae_image(pixels_BPHW, None)


def draw(pipeline: Flux2KleinPipeline, prompt: SamplePrompt) -> Image.Image:
    """Its negative prompt is always empty."""
    with torch.no_grad():
        negative, _ = pipeline.encode_prompt(prompt.negative)
    return pipeline(
        [Image.open(file).convert("RGB") for file in prompt.references] or None,
        prompt.prompt,
        negative_prompt_embeds=negative,
        guidance_scale=prompt.guidance_scale,
        width=prompt.size.width,
        height=prompt.size.height,
        num_inference_steps=prompt.steps,
        generator=torch.Generator().manual_seed(prompt.seed),
    ).images[0]


def of_authors(layer: str) -> str:
    """The name of a layer in the code of the model's authors."""
    number = next(iter(re.findall(r"\d+", layer)), "")
    return next(
        name.replace("*", number)
        for name, parts in LAYER_NAMES.items()
        if layer in [part.replace("*", number) for part in parts]
    )


@pytest.fixture(scope="module")
def row() -> Row:
    return Row(
        "flux2_klein",
        write_klein,
        Flux2KleinPipeline,
        predict,
        encode,
        draw,
        {
            size: {
                "num_layers": double,
                "num_single_layers": single,
                "num_attention_heads": heads,
                "joint_attention_dim": text,
                "guidance_embeds": False,
            }
            for size, (double, single, heads, text) in SIZES.items()
        },
        wide={"blocks": (1, 4), "heads": 6, "head": (32, 32, 32, 32)},
        programs=2,  # double and single blocks
        other_names={
            "ai-toolkit": lambda layer: f"diffusion_model.{of_authors(layer)}",
            "diffusers": lambda layer: f"transformer.{layer}",
            "musubi-tuner": lambda layer: (
                f"lora_unet_{of_authors(layer).replace('.', '_')}"
            ),
        },
        references=[PAIRS / "astronaut.jpg", PAIRS / "coffee.jpg"],
    )


# ------------------------------------------------------------ members


@pytest.mark.parametrize("name", ["FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B"])
def test_a_lora_of_each_size_is_known_without_its_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = family_named("flux2_klein").of_title(name)
    tensors = {}
    for layer, (inputs, outputs) in family.linear_layers(tmp_path).items():
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.full((1, inputs), 0.01)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.full((outputs, 1), 0.01)
    ours = {"ss_base_model_version": "flux2_klein"}
    for metadata in (None, ours):
        save_file(tensors, tmp_path / "lora.safetensors", metadata)
        run_tool("doctor", [tmp_path / "lora.safetensors"])
        assert f"a LoRA of {name}" in capsys.readouterr().out
    flags = [tmp_path / "lora.safetensors", tmp_path / "musubi.safetensors"]
    run_tool("convert", [*flags, "--to", "musubi"])


@pytest.mark.parametrize("distilled", [False, True])
def test_a_folder_says_which_member_it_is(distilled: bool, tmp_path: Path) -> None:
    write_klein(tmp_path / "model", distilled, heads=32, head=(2, 2, 2, 2))
    family = family_named("flux2_klein").of_folder(tmp_path / "model")
    base = "" if distilled else "base-"
    assert family.title == f"FLUX.2-klein-{base}9B"
    assert family.licence == "FLUX Non-Commercial License"
    assert len(family.sample_sigmas) == (4 if distilled else 0)

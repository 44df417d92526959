"""The transformers of the table: what is computed is what diffusers' own classes
compute."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from extensions.from_scratch.latent_flow.family import TRANSFORMERS
from extensions.from_scratch.latent_flow.transformers import (
    Sd3Transformer,
    TransformerAdapter,
)
from toolkit.errors import UserError
from toolkit.models.from_config import build

SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS, WIDTH = 4, 12


def module_of(adapter: TransformerAdapter, **arguments: object) -> nn.Module:
    arguments = {**SMALL, **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(
            adapter.model_class,
            {**adapter.fitting(arguments, CHANNELS, WIDTH), **arguments},
            "model",
        )


def inputs(
    height: int = 4, width: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(2, CHANNELS, height, width, generator=random)
    return x_BCHW, torch.tensor([0.25, 0.8]), torch.randn(2, 5, WIDTH, generator=random)


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
def test_sd3_is_that_of_diffusers_with_the_mean_token_as_pooled_text(
    patch: int,
) -> None:
    module, (x_BCHW, t_B, embeds_BLE) = (
        module_of(Sd3Transformer, patch_size=patch, qk_norm="rms_norm"),
        inputs(),
    )
    ours = Sd3Transformer.forward(
        module, Sd3Transformer.compose(()), x_BCHW, t_B, embeds_BLE
    )
    theirs = module(x_BCHW, embeds_BLE, embeds_BLE.mean(1), 1000 * t_B).sample
    assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("references", [(), ((2, 4),), ((6, 2), (4, 6), (2, 2))])
def test_qwen_image_is_that_of_diffusers(
    references: tuple[tuple[int, int], ...],
) -> None:
    """References follow the target, each with the next frame as its position, as in
    diffusers' editing pipeline."""
    adapter = TRANSFORMERS.load("QwenImageTransformer2DModel")
    module, (x_BCHW, t_B, embeds_BLE) = module_of(adapter), inputs()
    random = torch.Generator().manual_seed(2)
    given = [
        torch.randn(2, CHANNELS, height, width, generator=random)
        for height, width in references
    ]
    ours = adapter.forward(module, adapter.compose(()), x_BCHW, t_B, embeds_BLE, given)
    # Tokens of 2 x 2 latent pixels, channel first, as diffusers' pipeline packs them.
    images = [x_BCHW, *given]
    packed = [
        image.unfold(2, 2, 2)
        .unfold(3, 2, 2)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(1, 2)
        for image in images
    ]
    shapes = [(1, image.shape[2] // 2, image.shape[3] // 2) for image in images]
    theirs = module(
        torch.cat(packed, 1), embeds_BLE, timestep=t_B, img_shapes=[shapes] * 2
    ).sample[:, :6]
    theirs = (
        theirs.view(2, 2, 3, CHANNELS, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(x_BCHW.shape)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("references", [(), ((4, 8),), ((8, 4), (4, 8), (4, 4))])
def test_qwen_image_21_is_that_of_diffusers(
    patch: int, references: tuple[tuple[int, int], ...]
) -> None:
    """References are in front of the text, in slots of 2 x 2 tokens."""
    adapter = TRANSFORMERS.load("QwenImage21Transformer2DModel")
    module, (x_BCHW, t_B, embeds_BLE) = (
        module_of(adapter, patch_size=patch),
        inputs(8, 4),
    )
    random = torch.Generator().manual_seed(2)
    given = [
        torch.randn(2, CHANNELS, height, width, generator=random)
        for height, width in references
    ]
    tokens = [nn.functional.pixel_unshuffle(image, patch) for image in (*given, x_BCHW)]
    packed = [image.flatten(2).transpose(1, 2) for image in tokens]
    shapes = [(1, *image.shape[2:]) for image in tokens]
    slots = [image.shape[1] // 4 for image in packed]
    text = torch.cat([torch.zeros(2, sum(slots[:-1]), WIDTH), embeds_BLE], dim=1)
    is_image = torch.ones(2, sum(slots) + embeds_BLE.shape[1], dtype=torch.bool)
    is_image[:, sum(slots[:-1]) : text.shape[1]] = False
    theirs = module(torch.cat(packed, 1), text, t_B, [shapes] * 2, is_image).sample[
        :, -packed[-1].shape[1] :
    ]
    theirs = nn.functional.pixel_shuffle(
        theirs.transpose(1, 2).unflatten(2, shapes[-1][1:]), patch
    )
    ours = adapter.forward(module, adapter.compose(()), x_BCHW, t_B, embeds_BLE, given)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_noise_level_is_a_number_that_counts(name: str) -> None:
    """t = 0.001 and 0.999 give unlike results, and so do neighbours of one level in a
    thousand."""
    adapter = TRANSFORMERS.load(name)
    module, (x_BCHW, _, embeds_BLE) = module_of(adapter), inputs()
    levels = [torch.full((2,), level) for level in (0.001, 0.5, 0.501, 0.999)]
    found = [
        adapter.forward(module, adapter.compose(()), x_BCHW, t_B, embeds_BLE)
        for t_B in levels
    ]
    assert all(not torch.equal(one, other) for one, other in pairwise(found))
    assert (found[0] - found[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_fits_follows_from_latents_and_text_and_can_be_made(name: str) -> None:
    adapter = TRANSFORMERS.load(name)
    module = module_of(adapter)
    assert (
        adapter.forward(module, adapter.compose(()), *inputs()).shape
        == inputs()[0].shape
    )


def test_what_a_class_cannot_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"transformer\.config\.patch_size: 1: this class has 2 only"
    ):
        TRANSFORMERS.load("QwenImageTransformer2DModel").fitting(
            {"patch_size": 1}, 4, 8
        )

"""Samples of a family with another path between noise and image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions.from_scratch.latent_flow.model import LatentFlowModel
from tests.diffusers_reference import memory_stores
from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.measured import at_most
from tests.toolkit.train.test_sampling import sample_prompt
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.flow.loss import INTERPOLANTS
from toolkit.models.families import ModelLoadOptions
from toolkit.train.sampling import Sampler


@pytest.mark.parametrize("prediction", INTERPOLANTS)
def test_what_predicts_one_image_on_its_path_draws_it(
    tmp_path: Path, prediction: str
) -> None:
    model = LatentFlowModel(
        ModelLoadOptions(
            folder=write_flow_model(tmp_path / "model", prediction=prediction),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    )
    prompt = sample_prompt(0, Size(32, 16), steps=400, guidance_scale=3.0, negative="")
    image_BCHW = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(7))
    noise_BCHW = torch.randn(
        (1, 4, 8, 16), generator=torch.Generator().manual_seed(prompt.seed)
    )

    def predict(
        x_t_BCHW: torch.Tensor, t_B: torch.Tensor, prompts: object, references: object
    ) -> torch.Tensor:
        return INTERPOLANTS[prediction].mix(image_BCHW, noise_BCHW, t_B)[1]

    drawn = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores(), predict
    ).latents(0)
    at_most("distance to the image", (drawn - image_BCHW).abs().max().item(), 0.02)


def test_the_negative_prompt_of_such_a_family_is_the_dropped_caption(
    tmp_path: Path,
) -> None:
    folder = write_flow_model(tmp_path / "model")
    model = LatentFlowModel(
        ModelLoadOptions(folder=folder, device=torch.device("cpu"), dtype=torch.float32)
    )
    asked: list[torch.Tensor] = []

    def predict(
        x_t_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        prompts: PromptEmbeds,
        references: object,
    ) -> torch.Tensor:
        asked.append(prompts.embeds_BLD)
        return torch.zeros_like(x_t_BCHW)

    prompt = sample_prompt(0, Size(32, 16), steps=1, negative="")
    Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores(), predict
    ).latents(0)
    with torch.no_grad():
        assert torch.equal(asked[1][0], model.encode_prompt("", ()))

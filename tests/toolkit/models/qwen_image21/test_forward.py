"""One prefix that serves several noise levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.contracts.data import PromptEmbeds
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image21.family import FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model


@pytest.mark.parametrize("references", [0, 2])
def test_noise_levels_that_share_a_prefix_are_predicted_as_each_alone(
    tmp_path: Path, references: int
) -> None:
    write_tiny_model(tmp_path, TinySpec(arch="qwen_image_2"))
    model = FAMILY.open(
        ModelLoadOptions(
            folder=tmp_path, device=torch.device("cpu"), dtype=torch.float32
        )
    )
    prompts = PromptEmbeds.stack(
        [
            model.encode_prompt(text, ())
            for text in ("a cat", "a very long caption", "a dog")
        ]
    )
    for number in range(references):
        prompts.extra["slots"][:, number] = number
    random = torch.Generator().manual_seed(1)
    of_items = [
        [torch.randn(16, 4, 6, generator=random) for _ in range(references)]
        for _ in range(3)
    ]
    x_BCHW, t_B = (
        torch.randn(6, 16, 4, 4, generator=random),
        torch.rand(6, generator=random),
    )
    with torch.no_grad():
        together = model.predict_velocity(x_BCHW, t_B, prompts, of_items)
        alone = [
            model.predict_velocity(
                x_BCHW[[i]], t_B[[i]], prompts.select([i // 2]), [of_items[i // 2]]
            )[0]
            for i in range(6)
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)

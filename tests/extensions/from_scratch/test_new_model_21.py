"""`type: new_model` from a Qwen-Image-2.1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.diffusers_21 import open_21
from tests.toolkit.models.qwen_image21.conftest import tiny_21 as tiny_21
from toolkit.contracts.data import PromptEmbeds

SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


@pytest.mark.slow
def test_new_model_makes_one_that_is_trained(
    run_py, write_job, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    section = {
        "type": "new_model",
        "path": "new",
        "base": str(request.getfixturevalue("tiny_21")),
        "transformer": SMALL,
    }
    result = run_py(write_job(section))
    assert result.returncode == 0, result.stderr
    model = open_21(tmp_path / "new", torch.float32)
    config = model.network_module.config
    assert (config.num_layers, config.in_channels, tuple(config.axes_dims_rope)) == (
        2,
        16,
        (4, 6, 6),
    )
    x_BCHW, prompts = (
        torch.randn(1, 16, 4, 4),
        PromptEmbeds.stack([model.encode_prompt("a cat", ())]),
    )
    assert not model.predict_velocity(x_BCHW, torch.tensor([0.5]), prompts, [[]]).any()

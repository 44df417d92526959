"""A Qwen-Image-2.1 whose transformer has random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.diffusers_21 import open_21
from toolkit.contracts.data import PromptEmbeds
from toolkit.errors import UserError
from toolkit.models.qwen_image21.family import FAMILY

SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


def test_new_model_makes_one_that_is_trained(run_py, write_job, tiny_21: Path, tmp_path: Path) -> None:
    section = {"type": "new_model", "path": "new", "base": str(tiny_21), "transformer": SMALL}
    result = run_py(write_job(section))
    assert result.returncode == 0, result.stderr
    model = open_21(tmp_path / "new", torch.float32)
    config = model.network_module.config
    assert (config.num_layers, config.in_channels, tuple(config.axes_dims_rope)) == (2, 16, (4, 6, 6))
    x_BCHW, prompts = torch.randn(1, 16, 4, 4), PromptEmbeds.stack([model.encode_prompt("a cat", ())])
    assert not model.predict_velocity(x_BCHW, torch.tensor([0.5]), prompts, [[]]).any()


def test_an_autoencoder_of_another_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLQwenImage"}))
    with pytest.raises(UserError, match="'AutoencoderKLQwenImage' is not of this family"):
        FAMILY.new_network(tmp_path, SMALL)

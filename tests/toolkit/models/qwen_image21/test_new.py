"""A Qwen-Image-2.1 whose transformer has random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.models.qwen_image21.family import FAMILY

SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


def test_an_autoencoder_of_another_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKLQwenImage"})
    )
    with pytest.raises(
        UserError, match="'AutoencoderKLQwenImage' is not of this family"
    ):
        FAMILY.new_network(tmp_path, SMALL)

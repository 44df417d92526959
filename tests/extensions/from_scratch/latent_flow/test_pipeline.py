"""The pipeline in a model folder, as diffusers runs it: the image that this program
makes with the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.extensions.from_scratch.conftest import (
    TEXT,
    flow_job,  # noqa: F401
    pictures,  # noqa: F401
    start,  # noqa: F401
    vae,  # noqa: F401
    write_qwen3,
    write_vae,
)

PROJECTED = {"config": TEXT, "projection_dim": 24}
QWEN3 = {"name_or_path": "text_encoder"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "autoencoder", "changes"),
    [
        ("SD3Transformer2DModel", "AutoencoderKL", {"prediction": "flow"}),
        (
            "QwenImageTransformer2DModel",
            "AutoencoderKLQwenImage",
            {"prediction": "v", "text_encoder": PROJECTED},
        ),
        ("QwenImage21Transformer2DModel", "AutoencoderKL", {"text_encoder": QWEN3}),
        ("SD3Transformer2DModel", "AutoencoderTiny", {}),
    ],
)
def test_diffusers_makes_the_same_image(
    kind: str,
    autoencoder: str,
    changes: dict[str, Any],
    start,  # noqa: F811
    flow_job,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE",
        str(tmp_path / "modules"),
    )
    if changes.get("text_encoder") == QWEN3:
        write_qwen3(tmp_path / "text_encoder")
        monkeypatch.chdir(tmp_path)
    folder = start(
        flow_job(
            pictures,
            kind,
            model={"vae": str(write_vae(tmp_path / "vae", autoencoder)), **changes},
            save={"save_every": 0, "dtype": "float32"},
            sample={
                "sample_every": 4, "width": 64, "height": 64, "sample_steps": 4, "guidance_scale": 3, "seed": 5,
                "format": "png", "samples": [{"prompt": "a red square"}],
            },
        )
    )  # fmt: skip
    model = folder / "job"
    pipeline = DiffusionPipeline.from_pretrained(
        str(model), custom_pipeline=str(model), trust_remote_code=True
    )
    seeded = torch.Generator().manual_seed(5)
    found = pipeline(
        "a red square",
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=3,
        generator=seeded,
    )
    ours = np.asarray(
        Image.open(folder / "samples" / "000000004_0.png").convert("RGB")
    ).astype(int)
    difference = np.abs(np.asarray(found.images[0]).astype(int) - ours)
    assert ours.std() > 5 and difference.max() <= 1, difference.max()

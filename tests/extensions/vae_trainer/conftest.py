"""A small job of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import ExtensionJob
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.files.log import shown

SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKLQwenImage": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "AutoencoderKL": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1],
    },
}
"""Arguments of each class for a small one with 2 x 2 pixels per latent pixel."""


@pytest.fixture
def vae_job() -> Callable[..., dict]:
    """A short section on a folder of images; `train` and `losses` are merged, other keys are replaced."""

    def section(folder: Path, kind: str = "AutoencoderKL", **changes: Any) -> dict:
        train = {"steps": 4, "batch_size": 2, "lr": 1e-3, "dtype": "fp32", **changes.pop("train", {})}
        losses = {"kl_warmup_steps": 2, **({"kl": 0} if kind == "AutoencoderTiny" else {}), **changes.pop("losses", {})}
        return {
            "type": "vae_trainer",
            "training_folder": "output",
            "device": "cpu",
            "training_seed": 3,
            "model": {"class_name": kind, "config": SMALL[kind]},
            "losses": losses,
            "train": train,
            "save": {"save_every": 0},
            "datasets": [{"folder_path": str(folder), "resolution": 32}],
            **changes,
        }

    return section


@pytest.fixture
def start(write_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a job of these sections in this process, in the test's folder; returns the folder of its run."""
    monkeypatch.chdir(tmp_path)
    table = discover()

    def run(*sections: dict, name: str = "job") -> Path:
        with shown():
            ExtensionJob(load_job(write_job(*sections, name=name), table.find_config), table).run()
        return tmp_path / "output" / name

    return run

"""Small jobs of both trainers, and what they start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Qwen3Config, Qwen3Model

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoders import (
    make_autoencoder,
    measure_latents,
    write_autoencoder,
)
from extensions.from_scratch.latent_flow.text import make_tokenizer
from tests.extensions.from_scratch.unmeasured import MEASURE, UNMEASURED
from tests.running import run_job
from tests.toolkit.data.conftest import make_stream as make_stream
from toolkit.data.pixels.images import to_tensor
from toolkit.files.log import shown
from toolkit.system.seeding import global_generator

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


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SD3Transformer2DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "pos_embed_max_size": 16,
    },
    "QwenImageTransformer2DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
    },
    "QwenImage21Transformer2DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 2,
    },
}
"""Arguments of each class for a small one."""

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def write_vae(folder: Path, kind: str = "AutoencoderKL") -> Path:
    """An autoencoder of random weights with 2 x 2 pixels per latent pixel."""
    made = make_autoencoder(
        AutoencoderConfig(class_name=kind, config=SMALL[kind]), 0, torch.device("cpu")
    )
    made.module.save_pretrained(folder)
    return folder


def write_qwen3(folder: Path) -> Path:
    """A Qwen3 of random weights with a tokenizer; its final norm is as uneven as a
    trained one."""
    tokenizer = make_tokenizer(["a red square", "a blue circle"], 32)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    with global_generator(0, "text"):
        encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **sizes
            )
        )
        torch.nn.init.uniform_(encoder.norm.weight, 0.1, 2)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_measured_vae(folder: Path, images: Sequence[Path]) -> Path:
    """A Qwen autoencoder of random weights, normalised by the latents of these
    images."""
    kind = "AutoencoderKLQwenImage"
    made = make_autoencoder(
        AutoencoderConfig(class_name=kind, config=SMALL[kind]), 0, torch.device("cpu")
    )
    statistics = measure_latents(made.encode, map(load_pixels_of, images))
    folder.mkdir()
    weights = {
        name: tensor.clone() for name, tensor in made.module.state_dict().items()
    }
    write_autoencoder(folder, weights, made.config() | made.normalisation(*statistics))
    return folder


def load_pixels_of(file: Path) -> torch.Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    return to_tensor(Image.open(file).convert("RGB"))[None]


@pytest.fixture
def vae_job() -> Callable[..., dict]:
    """A short section on a folder of images; `train` and `losses` are merged, other
    keys are replaced."""

    def section(folder: Path, kind: str = "AutoencoderKL", **changes: Any) -> dict:
        train = {
            "steps": 4,
            "batch_size": 2,
            "lr": 1e-3,
            "dtype": "fp32",
            **changes.pop("train", {}),
        }
        losses = {
            "kl_warmup_steps": 2,
            **({"kl": 0} if kind == "AutoencoderTiny" else {}),
            **changes.pop("losses", {}),
        }
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


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data", "a", "b", "c", "d", "e", size=(40, 32))


@pytest.fixture
def flow_job(vae: Path) -> Callable[..., dict]:
    """A short section on a folder of images; `train` and `model` are merged, other keys
    are replaced."""

    def section(
        folder: Path, kind: str = "SD3Transformer2DModel", **changes: Any
    ) -> dict:
        train = {
            "steps": 4,
            "batch_size": 2,
            "lr": 1e-3,
            "dtype": "fp32",
            **changes.pop("train", {}),
        }
        model = {
            "vae": str(vae),
            "transformer": {"class_name": kind, "config": TRANSFORMERS[kind]},
            "text_encoder": {"config": TEXT},
            **changes.pop("model", {}),
        }
        return {
            "type": "flow_trainer",
            "training_folder": "output",
            "device": "cpu",
            "training_seed": 3,
            "model": model,
            "train": train,
            "save": {"save_every": 0},
            "datasets": [{"folder_path": str(folder), "resolution": 32}],
            **changes,
        }

    return section


@pytest.fixture
def start(
    write_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs a job of these sections in this process, in the test's folder, its memory
    unmeasured; returns the folder of its run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MEASURE, UNMEASURED)

    def run(*sections: dict, name: str = "job") -> Path:
        with shown():
            run_job(write_job(*sections, name=name))
        return tmp_path / "output" / name

    return run

"""Small jobs of both trainers, and what they start from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from tests.conftest import ROOT, child_environment
from tests.extensions.from_scratch.unmeasured import MEASURE, UNMEASURED
from tests.processes import output_of
from tests.running import run_job
from tests.toolkit.data.conftest import make_stream as make_stream
from tests.toolkit.data.shard_server import write_shard
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


def write_shards(folder: Path) -> Path:
    """Three shards of five images, by two sizes."""
    for number in range(3):
        size = ((40, 32), (32, 40))[number % 2]
        write_shard(folder / f"{number}.tar", 5, size=size)
    return folder


def load_pixels_of(file: Path) -> torch.Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    return to_tensor(Image.open(file).convert("RGB"))[None]


def vae_section(folder: Path, kind: str = "AutoencoderKL", **changes: Any) -> dict:
    """A short section on a folder of images; `train` and `losses` are merged, other
    keys are replaced."""
    no_kl = {"kl": 0} if kind == "AutoencoderTiny" else {}
    losses = {"kl_warmup_steps": 2, **no_kl, **changes.pop("losses", {})}
    model = {"class_name": kind, "config": SMALL[kind]}
    return {
        **short_section("vae_trainer", folder, changes.pop("train", {})),
        "model": model,
        "losses": losses,
        **changes,
    }


def short_section(kind: str, folder: Path, train: dict[str, Any]) -> dict[str, Any]:
    """Four steps on a folder of images."""
    short = {"steps": 4, "batch_size": 2, "lr": 1e-3, "dtype": "fp32"}
    return {
        "type": kind,
        "training_folder": "output",
        "device": "cpu",
        "training_seed": 3,
        "train": {**short, **train},
        "save": {"save_every": 0},
        "datasets": [{"folder_path": str(folder), "resolution": 32}],
    }


@pytest.fixture(scope="session")
def vae_job() -> Callable[..., dict]:
    return vae_section


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def pictures(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data", "a", "b", "c", "d", "e", size=(40, 32))


@pytest.fixture(scope="session")
def flow_job(vae: Path) -> Callable[..., dict]:
    """A short section on a folder of images; `train` and `model` are merged, other keys
    are replaced."""

    def section(
        folder: Path, kind: str = "SD3Transformer2DModel", **changes: Any
    ) -> dict:
        model = {
            "vae": str(vae),
            "transformer": {"class_name": kind, "config": TRANSFORMERS[kind]},
            "text_encoder": {"config": TEXT},
            **changes.pop("model", {}),
        }
        return {
            **short_section("flow_trainer", folder, changes.pop("train", {})),
            "model": model,
            **changes,
        }

    return section


@dataclass(frozen=True)
class Planned:
    """Where a dry run was made, and what it printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def planned(
    flow_job: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory
) -> Planned:
    """One dry run, without torch, of a job of each trainer and of one on a stream. The
    second process of the first two starts from the first's folder."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
    data = folder / "data"
    data.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 32), (40 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"red {number}")
    stream = {
        "url": f"{write_shards(folder / 'shards')}/*.tar",
        "resolution": 32,
        "webdataset": {"samples": 15},
    }
    gan = {"channels": 4, "layers": 1}
    jobs: dict[str, list[dict]] = {
        "vae": [
            vae_section(data, discriminator=gan),
            vae_section(data, model={"name_or_path": "output/vae/one/one"}),
        ],
        "flow": [
            flow_job(data, train={"optimizer": "lion"}),
            flow_job(data) | {"model": {"name_or_path": "output/flow/one/one"}},
        ],
        "stream": [vae_section(data, datasets=[stream], train={"epochs": 2})],
    }
    for name, sections in jobs.items():
        named = zip(("one", "two"), sections, strict=False)
        process = [section | {"name": part} for part, section in named]
        job = {"job": "extension", "config": {"name": name, "process": process}}
        (folder / f"{name}.yaml").write_text(json.dumps(job))
    said = output_of(
        sys.executable,
        ROOT / "run.py",
        *(f"{name}.yaml" for name in jobs),
        "--dry-run",
        "-v",
        cwd=folder,
        env=child_environment({"PYTHONPATH": str(folder)}),
    )
    assert not (folder / "output").exists(), said
    return Planned(folder, said)


@pytest.fixture
def start(
    write_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs a job of these sections in this process, in the test's folder, its memory
    unmeasured and its whole plan printed; returns the folder of its run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MEASURE, UNMEASURED)
    monkeypatch.setattr("toolkit.files.log.is_verbose", True)

    def run(*sections: dict, name: str = "job") -> Path:
        with shown():
            run_job(write_job(*sections, name=name))
        return tmp_path / "output" / name

    return run

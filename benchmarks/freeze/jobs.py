"""The jobs that are trained: on a tiny model, on autoencoders of some thousand weights,
by FluxFlow's guide.

All paths in them are relative to the folder in which they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS = 6
HALF = 3
"""Steps after which all jobs save, sample and validate."""

LONG = 30
"""Steps of the runs that are killed after HALF steps."""

Section = dict[str, Any]
"""An entry of `process`, or a whole file of FluxFlow's guide."""

EMA = {"ema_config": {"use_ema": True, "ema_decay": 0.9}}
REFERENCES = {
    "control_path": ["images/control_1", "images/control_2"],
    "control_optional": True,
}
VALIDATION = {"every": HALF, "fraction": 0.25, "timesteps": 2}
INT8 = {"quantize": True, "qtype": "int8"}


def lora(**parts: Any) -> Section:
    """A section of `sd_trainer`: a LoRA in float32; what is given is merged into its
    parts."""
    dataset = {
        "folder_path": "images/targets",
        "resolution": 64,
        **parts.pop("datasets", {}),
    }
    pictures = [
        {"prompt": "a red cup"},
        {"prompt": "a blue cup", "ctrl_img": "images/control_1/2.png"},
    ]
    sample = {
        "sample_every": HALF,
        "width": 64,
        "height": 64,
        "sample_steps": 2,
        "format": "png",
    }
    return _merged(
        {
            "type": "sd_trainer",
            "device": "cpu",
            "training_seed": 7,
            "trigger_word": "qkst",
            "network": {"type": "lora", "linear": 4},
            "save": {"save_every": HALF, "max_states_to_keep": 0, "dtype": "float32"},
            "datasets": [dataset],
            "train": {
                "steps": STEPS,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "lr": 1e-3,
                "dtype": "fp32",
            },
            "model": {
                "name_or_path": "model",
                "model_kwargs": {"match_target_res": True},
            },
            "sample": {
                **sample,
                "samples": pictures if "control_path" in dataset else pictures[:1],
            },
        },
        parts,
    )


def from_scratch(kind: str, **parts: Any) -> Section:
    """A section of `vae_trainer` or `flow_trainer`; what is given is merged into its
    parts."""
    return _merged(
        {
            "type": kind,
            "device": "cpu",
            "training_seed": 3,
            "train": {
                "steps": STEPS,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "lr": 1e-3,
                "dtype": "fp32",
                **EMA,
            },
            "save": {"save_every": HALF, "max_states_to_keep": 0, "dtype": "float32"},
            "datasets": [{"folder_path": "images/targets", "resolution": 32}],
        },
        parts,
    )


def _merged(section: Section, parts: Section) -> Section:
    for key, value in parts.items():
        both = isinstance(value, dict) and isinstance(section.get(key), dict)
        section[key] = {**section[key], **value} if both else value
    return section


AUTOENCODER = {
    "class_name": "AutoencoderKL",
    "config": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
}
"""2 x 2 pixels per latent pixel."""

DISCRIMINATOR = {"channels": 4, "layers": 1, "r1_interval": 2}

VAE_GAN = from_scratch(
    "vae_trainer",
    model={**AUTOENCODER, "spade": True},
    losses={"kl_warmup_steps": 4},
    discriminator={**DISCRIMINATOR, "start_step": 1},
    optimizers={"discriminator": {"every": 2}},
    sample={"sample_every": HALF, "count": 1, "format": "png"},
    validation={"every": HALF, "fraction": 0.25},
)

FLOW = from_scratch(
    "flow_trainer",
    model={
        "vae": "output/vae_gan/vae_gan",
        "transformer": {
            "class_name": "SD3Transformer2DModel",
            "config": {
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "pos_embed_max_size": 16,
            },
        },
        "text_encoder": {
            "config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            }
        },
    },
    sample={
        "sample_every": HALF,
        "width": 64,
        "height": 64,
        "sample_steps": 2,
        "format": "png",
        "samples": [{"prompt": "a red cup"}],
    },
)

JOINT = {
    **FLOW,
    "autoencoder": {
        "losses": {"kl": 1e-4, "kl_warmup_steps": 0},
        "discriminator": DISCRIMINATOR,
    },
}

GUIDE: Section = {
    "data": {"data_path": "images/targets", "img_size": 32},
    "model": {
        "vae_dim": 16,
        "feature_maps_dim": 8,
        "feature_maps_dim_disc": 2,
        "text_embedding_dim": 32,
    },
    "training": {
        "seed": 3,
        "batch_size": 4,
        "checkpoint_save_interval": 2,
        "pipeline": {
            "steps": [
                {
                    "name": "vae_warmup",
                    "n_epochs": 10,
                    "max_steps": 3,
                    "train_vae": True,
                    "train_spade": True,
                    "lr": 1e-5,
                    "stop_condition": {"loss_name": "loss_recon", "threshold": 0.01},
                },
                {
                    "name": "vae_gan",
                    "n_epochs": 40,
                    "max_steps": 2,
                    "train_vae": True,
                    "gan_training": True,
                    "lambda_adv": 0.9,
                    "optimizers": {
                        "vae": {
                            "optimizer_type": "Lion",
                            "lr": 1e-5,
                            "weight_decay": 0.01,
                        },
                        "discriminator": {
                            "optimizer_type": "AdamW",
                            "lr": 1e-5,
                            "amsgrad": True,
                        },
                    },
                    "schedulers": {
                        "vae": {
                            "scheduler_type": "CosineAnnealingLR",
                            "eta_min_factor": 0.1,
                        }
                    },
                },
                {
                    "name": "flow_training",
                    "n_epochs": 10,
                    "max_steps": 3,
                    "train_diff_full": True,
                    "freeze_vae": True,
                    "lr": 5e-5,
                    "sample_captions": ["a photo of a cup"],
                },
            ]
        },
    },
    "output": {"output_path": "output/guide"},
}
"""A file of FluxFlow's training guide, with small sizes."""

GUIDE_FLAGS = (
    "--data_path images/targets --output_path output/guide_flags --img_size 32 --train_vae --gan_training "
    "--max_steps 3 --batch_size 2 --lr 1e-5 --lr_min 0.1 --vae_dim 16 --feature_maps_dim 8 --feature_maps_dim_disc 2 "
    "--seed 3"
)
"""A command of the guide."""

JOBS: dict[str, Section] = {
    "lora_int8_fp32": lora(
        network={"linear_alpha": 4, "rank_dropout": 0.1},
        datasets={**REFERENCES, "caption_dropout_rate": 0.3, "flip_x": True},
        train={"lr_scheduler": "cosine", "lr_warmup_steps": 2, **EMA},
        model=INT8,
        save={"also": ["raw"]},
        validation=VALIDATION,
    ),
    "lora_int8_bf16": lora(
        datasets={**REFERENCES, "caption_dropout_rate": 0.3},
        train={"dtype": "bf16", "gradient_checkpointing": "full", **EMA},
        model=INT8,
        validation=VALIDATION,
    ),
    "full_fp32": lora(network={"type": "full"}, train={"lr": 1e-4, **EMA}),
    "full_bf16_fused": lora(
        network={"type": "full"},
        train={
            "dtype": "bf16",
            "lr": 1e-4,
            "full_bf16": True,
            "fused_backward_pass": True,
        },
    ),
    "dora": lora(network={"type": "dora"}),
    "lokr": lora(
        network={"type": "lokr", "factor": 4},
        train={"dtype": "bf16", "optimizer": "adafactor"},
    ),
    "loha_preserving": lora(
        network={"type": "loha", "module_dropout": 0.2},
        train={
            "optimizer": "schedulefree_adamw",
            "blank_prompt_preservation": True,
            "timestep_type": "logsnr",
            "min_timestep": 0.1,
        },
        model={"quantize": True, "qtype": "uint4"},
        logging={"logging_dir": "output/curves", "log_with": "tensorboard"},
    ),
    "lora_plus": lora(
        network={"loraplus_lr_ratio": 4, "scale_weight_norms": 1.0},
        datasets={"num_repeats": 2, "caption_ext": "txt"},
        train={
            "timestep_type": "sigmoid",
            "loss_type": "huber",
            "max_grad_norm": 0.5,
            "lr_scheduler": "constant",
        },
    ),
    "vae_gan": VAE_GAN,
    "flow": FLOW,
    "flow_joint": JOINT,
    "guide": GUIDE,
}
"""Everything that is trained; a job may read what one above it has written."""

KILLED: dict[str, Section] = {
    name: {**section, "train": {**section["train"], "steps": LONG}}
    for name, section in {
        "lora": lora(
            datasets={"caption_dropout_rate": 0.3}, train=EMA, validation=VALIDATION
        ),
        "full": lora(network={"type": "full"}, train={"lr": 1e-4, **EMA}),
        "vae_gan": VAE_GAN,
        "flow": {**FLOW, "model": {**FLOW["model"], "vae": "vae"}},
    }.items()
}
"""Runs that BEFORE begins, which are killed and which AFTER resumes."""


def document(name: str, *sections: Section) -> dict[str, Any]:
    """The job of these processes; a file of the guide is one already."""
    if "training" in sections[0]:
        return sections[0]
    return {
        "job": "extension",
        "config": {"name": name, "process": list(sections)},
        "meta": {"title": "[name]"},
    }


def write_images(folder: Path, count: int = 8) -> None:
    """Noise of a fixed seed with captions: targets of two shapes, and two folders of
    control images, one with gaps."""
    drawn = np.random.default_rng(7)
    for name, numbers, size in (
        ("targets", range(count), (64, 64)),
        ("control_1", range(count), (96, 64)),
        ("control_2", range(0, count, 3), (48, 80)),
    ):
        (folder / name).mkdir(parents=True)
        for number in numbers:
            width, height = size if number % 4 else (80, 48)
            coarse = drawn.integers(
                0, 256, (height // 8, width // 8, 3), dtype=np.uint8
            )
            Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(
                folder / name / f"{number}.png"
            )
    for number in range(count):
        (folder / "targets" / f"{number}.txt").write_text(
            f"picture number {number}", encoding="utf-8"
        )

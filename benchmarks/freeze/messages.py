"""Jobs with mistakes: valid ones and what is changed in them, and command lines that
are refused."""

from __future__ import annotations

import copy
from typing import Any

from benchmarks.freeze.jobs import (
    GUIDE,
    INT8,
    JOINT,
    REFERENCES,
    VAE_GAN,
    VALIDATION,
    Section,
    from_scratch,
    lora,
)
from benchmarks.freeze.tools import LORA, LORA_FILE, PROCESSES

LEFT_OUT = object()
"""In place of a value: the key is deleted."""

VALID: dict[str, Section] = {
    "lora": lora(datasets=REFERENCES, validation=VALIDATION, model=INT8),
    "full": lora(network={"type": "full"}, train={"lr": 1e-4}),
    "vae": VAE_GAN,
    "flow": {**JOINT, "model": {**JOINT["model"], "vae": "vae"}},
    "guide": GUIDE,
    "stream": from_scratch(
        "vae_trainer",
        model=VAE_GAN["model"],
        datasets=[{"url": "nowhere/*.tar", "resolution": 32}],
    ),
    **{
        name: PROCESSES[name]
        for name in (
            "new_model",
            "tiny_model",
            "example",
            "cache job",
            "convert job",
        )
    },
    "report job": {"type": "report", "run": LORA},
    "merge": {
        "type": "merge",
        "lora": [LORA_FILE],
        "output": "x.safetensors",
        "model": "model",
    },
    "caption": {"type": "caption", "folder": "images/targets", "model": "model"},
    "generate": {
        "type": "generate",
        "model": "model",
        "prompt": "a cup",
        "output": "x",
        "width": 64,
        "height": 64,
    },
}

STEPS_OF_GUIDE = "training.pipeline.steps"

BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    # ---------------------------------------- the document
    "no type": ("lora", {"type": LEFT_OUT}),
    "unknown type": ("lora", {"type": "sd_trainr"}),
    "slider": ("lora", {"type": "concept_slider_trainer"}),
    # ---------------------------------------- unknown keys, kinds of values, ranges
    "unknown keys": (
        "lora",
        {
            "trian": {},
            "network.lnear": 4,
            "train.stepz": 1,
            "model.x": 1,
            "save.every": 3,
            "datasets.0.folder": "x",
        },
    ),
    "wrong kinds": (
        "lora",
        {
            "train.steps": "many",
            "network": [],
            "datasets": {},
            "sample.samples": 3,
            "save.save_every": "x",
        },
    ),
    "ranges": (
        "lora",
        {
            "train.steps": 0,
            "train.lr": -1,
            "train.batch_size": 0,
            "network.linear": 0,
            "network.dropout": 2,
            "train.ema_config": {"use_ema": True, "ema_decay": 1.5},
            "save.max_states_to_keep": -1,
            "datasets.0.caption_dropout_rate": 1.5,
            "sample.width": 10,
            "validation.fraction": 2,
            "train.max_grad_norm": -1,
            "training_seed": -5,
        },
    ),
    "nan and bool": (
        "lora",
        {"train.lr": float("inf"), "train.steps": True, "network.linear": 4.5},
    ),
    "unknown names": (
        "lora",
        {
            "train.optimizer": "adamx",
            "train.lr_scheduler": "cosin",
            "train.dtype": "fp12",
            "network.type": "lorra",
            "model.qtype": "int9",
            "train.timestep_type": "sigmoidal",
            "train.loss_type": "l3",
            "sample.format": "gif",
            "device": "gpu",
            "model.arch": "sdxl",
        },
    ),
    "optimizer options": (
        "lora",
        {"train.optimizer_params": {"betas": [0.9], "weight_decya": 0.1}},
    ),
    "schedule options": (
        "lora",
        {"train.lr_scheduler": "cosine", "train.lr_scheduler_params": {"T_mx": 3}},
    ),
    "null sections": (
        "lora",
        {"train": None, "model": None, "network": None, "datasets": None},
    ),
    "empty names": (
        "lora",
        {"model.name_or_path": "", "datasets.0.folder_path": "", "training_folder": ""},
    ),
    # ---------------------------------------- missing folders and files
    "missing folders": (
        "lora",
        {
            "datasets.0.folder_path": "nowhere",
            "datasets.0.control_path": ["nowhere/1"],
            "model.name_or_path": "./nowhere",
            "network.pretrained_lora_path": "nowhere.safetensors",
            "sample.samples.0.ctrl_img": "nowhere.png",
        },
    ),
    "no image": ("lora", {"datasets.0.folder_path": "jobs"}),
    "missing references": ("lora", {"datasets.0.control_optional": False}),
    "missing captions file": ("lora", {"datasets.0.captions_file": "nowhere.tsv"}),
    "missing masks": ("lora", {"datasets.0.mask_path": "nowhere"}),
    "missing base": (
        "lora",
        {"model.base_loras": [{"path": "nowhere.safetensors", "multiplier": 2}]},
    ),
    "broken captions": ("lora", {"datasets.0.caption_ext": "json", "trigger_word": ""}),
    "two few images": ("lora", {"validation.fraction": 0.99}),
    # ---------------------------------------- foreign names: read, renamed, idle,
    # refused
    "renamed by others": (
        "lora",
        {
            "train.gradient_accumulation": LEFT_OUT,
            "train.gradient_accumulation_steps": 2,
            "train.optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
            "train.lr": LEFT_OUT,
            "save.save_every": LEFT_OUT,
            "save.save_every_n_steps": 3,
            "save.save_last_n_steps": 500,
            "sample.samples": LEFT_OUT,
            "sample.prompts": ["a cup --w 64 --h 64 --s 2 --g 3 --zz 4"],
            "logging": {"use_wandb": False, "verbose": True},
        },
    ),
    "idle by others": (
        "lora",
        {
            "train.xformers": True,
            "train.sdpa": True,
            "datasets.0.buckets": True,
            "datasets.0.fps": 16,
            "network.conv": 4,
            "network.transformer_only": True,
            "sample.network_multiplier": 1,
            "save.save_format": "diffusers",
            "train.train_unet": True,
            "train.noise_scheduler": "flowmatch",
            "performance_log_every": 10,
        },
    ),
    "refused of others": (
        "lora",
        {
            "train.huggingface_path_in_repo": "x",
            "train.full_fp16": True,
            "network.dim_from_weights": True,
            "train.lr_scheduler_type": "x.Y",
            "model.quantize_kwargs": {"exclude": ["x"]},
            "model.layer_offloading": True,
            "train.train_text_encoder": True,
            "train.min_denoising_steps": 10,
            "datasets.0.multiple_target": True,
            "sample.guidance_rescale": 0.5,
            "slider": {"targets": []},
        },
    ),
    "placed elsewhere": (
        "lora",
        {
            "train.blocks_to_swap": 2,
            "network.learning_rate": 1,
            "save.output_dir": "x",
            "train.max_train_epochs": 2,
        },
    ),
    "commands elsewhere": (
        "lora",
        {
            "interactive": True,
            "save_merged_model": "x",
            "latent_path": "y",
            "bell": True,
        },
    ),
    "musubi": (
        "lora",
        {
            "network": {
                "network_module": "networks.lora_qwen_image",
                "network_dim": 4,
                "network_args": ["conv_dim=2"],
            },
            "train.fp8_scaled": True,
            "train.discrete_flow_shift": 2.2,
            "train.weighting_scheme": "none",
            "train.optimizer_args": ["weight_decay=0.1", "x"],
        },
    ),
    "both names": (
        "lora",
        {
            "train.gradient_accumulation_steps": 3,
            "sample.prompts": ["a"],
            "sample.sample_every_n_steps": 2,
        },
    ),
    # ---------------------------------------- keys without effect, contradictions
    "without effect": (
        "lora",
        {
            "train.sigmoid_scale": 2.0,
            "train.mode_scale": 1.0,
            "train.lr_scheduler_power": 2,
            "network.factor": 4,
            "model.qtype_te": "int4",
            "train.ema_config": {"use_ema": False, "ema_decay": 0.5},
            "network.linear_alpha": 0,
        },
    ),
    "doubtful": (
        "lora",
        {
            "train.lr": 0.5,
            "train.steps": 1,
            "save.save_every": 100,
            "sample.sample_every": 100,
        },
    ),
    "nothing learned": ("lora", {"train.lr": 0}),
    "adapter of no adapter": (
        "full",
        {
            "network.linear": 4,
            "network.dropout": 0.1,
            "network.pretrained_lora_path": "x",
            "model.quantize": True,
            "model.blocks_to_swap": 1,
            "train.blank_prompt_preservation": True,
        },
    ),
    "full types": (
        "full",
        {
            "train.full_bf16": True,
            "train.fused_backward_pass": True,
            "train.optimizer": "muon",
        },
    ),
    "bf16 of an adapter": (
        "lora",
        {
            "train.full_bf16": True,
            "network.loraplus_lr_ratio": 4,
            "network.type": "lokr",
        },
    ),
    "one rate": (
        "lora",
        {
            "train.optimizer": "prodigy",
            "network.loraplus_lr_ratio": 4,
            "network.scale_weight_norms": 1,
        },
    ),
    "schedule free": (
        "lora",
        {
            "train.optimizer": "schedulefree_adamw",
            "train.lr_scheduler": "cosine",
            "network.scale_weight_norms": 1,
            "train.fused_backward_pass": True,
        },
    ),
    "noise": (
        "lora",
        {
            "train.timestep_type": "shift",
            "train.discrete_flow_shift": 0,
            "train.min_timestep": 900,
            "train.max_timestep": 1,
        },
    ),
    "mixture": (
        "lora",
        {"train.timestep_type": "qinglong_flux", "train.content_or_style": "style"},
    ),
    "first samples": (
        "lora",
        {
            "sample.sample_at_first": True,
            "train.skip_first_sample": True,
        },
    ),
    "preserving without a word": (
        "lora",
        {"trigger_word": LEFT_OUT, "train.diff_output_preservation": True},
    ),
    "no such layers": (
        "lora",
        {
            "network.include_patterns": ["nothing"],
        },
    ),
    "swapped blocks": ("lora", {"model.blocks_to_swap": 60, "train.compile": True}),
    "stop": (
        "lora",
        {"stop_when": {"metric": "los", "below": 0.1}, "validation": LEFT_OUT},
    ),
    "stop at what is not measured": (
        "lora",
        {"stop_when": {"metric": "validation/loss", "below": 0.1}, "validation": None},
    ),
    "publish": ("lora", {"save.push_to_hub": True, "save.hf_repo_id": "no name/x"}),
    "states": (
        "lora",
        {
            "save.states": "at_end",
            "resume": "never",
            "save.save_every": 0,
            "save.also": ["raw", "rawer"],
        },
    ),
    # ---------------------------------------- from scratch
    "vae keys": (
        "vae",
        {
            "losses.mse": 2,
            "losses.kl": -1,
            "discriminator.channels": 0,
            "model.spde": True,
            "optimizers.flow": {},
        },
    ),
    "vae class": ("vae", {"model.class_name": "AutoencoderXL"}),
    "vae arguments": (
        "vae",
        {"model.config.block_out_channels": [8, 15], "model.config.latent": 4},
    ),
    "vae without what it starts from": (
        "vae",
        {"model": {"name_or_path": "nowhere", "train": "decoder"}},
    ),
    "vae schedule": (
        "vae",
        {
            "train.lr": 3,
            "train.optimizer": "schedulefree_adamw",
            "optimizers.vae": {"lr": -1},
        },
    ),
    "vae of a lora": (
        "vae",
        {
            "network": {"type": "lora"},
            "trigger_word": "x",
            "train.timestep_type": "sigmoid",
        },
    ),
    "vae sizes": (
        "vae",
        {"datasets.0.resolution": 7, "sample.count": 0, "validation.fraction": 1},
    ),
    "flow keys": (
        "flow",
        {
            "model.transformer.class_name": "UNet",
            "model.text_encoder.config.hidden_size": 15,
        },
    ),
    "flow arguments": (
        "flow",
        {"model.transformer.config": {"num_layers": 0, "layers": 2}},
    ),
    "flow without an autoencoder": ("flow", {"model.vae": "nowhere"}),
    "flow roles": (
        "flow",
        {
            "optimizers": {"flow": {"lr": -1}, "unet": {}},
            "autoencoder.train": "encoder",
        },
    ),
    "flow prediction": (
        "flow",
        {"train.prediction": "epsilon", "train.noise_offset": 0.1, "train.cfg": 2},
    ),
    "stream": ("stream", {}),
    "stream with more": (
        "stream",
        {
            "train.epochs": 2,
            "datasets.0.num_repeats": 3,
            "validation": {"fraction": 0.5},
        },
    ),
    "guide keys": (
        "guide",
        {
            "modle": {},
            "training.batch": 4,
            "training.use_gradient_checkpointing": True,
            f"{STEPS_OF_GUIDE}.0.n_epoch": 1,
            f"{STEPS_OF_GUIDE}.1.lambda_adv": -1,
            f"{STEPS_OF_GUIDE}.2.lr": "fast",
            "data.use_tt2m": False,
        },
    ),
    "guide steps": (
        "guide",
        {
            f"{STEPS_OF_GUIDE}.0.train_vae": False,
            f"{STEPS_OF_GUIDE}.1.name": "vae_warmup",
        },
    ),
    "guide folders": (
        "guide",
        {"data.data_path": "nowhere", "model.model_checkpoint": "nowhere.safetensors"},
    ),
    "guide optimizers": (
        "guide",
        {
            f"{STEPS_OF_GUIDE}.1.optimizers": {
                "vae": {"optimizer_type": "AdamX", "lr": 1},
                "flwo": {},
            },
            f"{STEPS_OF_GUIDE}.1.schedulers": {"vae": {"scheduler_type": "Cosine"}},
            f"{STEPS_OF_GUIDE}.2.optim_sched_config": "nowhere.json",
        },
    ),
    "guide stop": (
        "guide",
        {
            f"{STEPS_OF_GUIDE}.0.stop_condition": {
                "loss_name": "loss_x",
                "threshold": -1,
            }
        },
    ),
    # ---------------------------------------- other processes
    "new model": (
        "new_model",
        {
            "base": "nowhere",
            "transformer": {"num_layers": 0, "layers": 2},
            "seed": -1,
            "x": 1,
        },
    ),
    "tiny model": ("tiny_model", {"path": "images", "size": 3}),
    "example": ("example", {"folder_path": "nowhere", "suffixes": []}),
    "cache": (
        "cache job",
        {"workers": 0, "train.lr": 1, "datasets.0.folder_path": "nowhere"},
    ),
    "convert": ("convert job", {"input": "nowhere.safetensors", "to": "a1111"}),
    "report": ("report job", {"run": "nowhere", "shre": True}),
    "merge": ("merge", {"lora": ["nowhere.safetensors:0.5"], "rank": -1}),
    "caption": (
        "caption",
        {"folder": "nowhere", "format": "xml", "model": "./nowhere", "max_tokens": 0},
    ),
    "generate": (
        "generate",
        {
            "prompt": LEFT_OUT,
            "lora": ["nowhere.safetensors"],
            "width": 3,
            "reference": ["no.png"],
        },
    ),
}
"""Name -> a valid job and what is changed in it, by dotted path."""

COMMANDS: dict[str, str] = {
    "no file": "nowhere.yaml",
    "json without a dry run": "--json jobs/lora.json",
    "unknown flag": "--dry-rnu jobs/lora.json",
    "no arguments": "",
    "name of several": "--name x jobs/a.json jobs/b.json",
    "restart from nothing": "--dry-run --restart-from nothing jobs/valid_lora.json",
    "tool without a file": "inspect",
    "tool with a missing file": "inspect nowhere.safetensors",
    "tool with an unknown flag": f"inspect {LORA_FILE} --jsn",
    "tool with a bad value": f"resize {LORA_FILE} x.safetensors --rank many --share 3",
    "tool over a file": f"convert {LORA_FILE} images/targets/1.txt --to kohya --model model",
    "merge of nothing": "merge --output x.safetensors",
    "report of nothing": "report images",
    "lint of nothing": "lint nowhere",
    "best of nothing": "best images --steps 0",
    "publish of nothing": "publish images --repo x/y/z",
    "guide flag": "--data_path images/targets --train_vae --lr fast --batch 2",
    "guide without data": "--train_vae --lr 1e-5",
}
"""Name -> arguments of run.py that are refused."""


def broken(name: str) -> Section:
    """The section with its mistakes."""
    base, edits = BROKEN[name]
    section = copy.deepcopy(VALID[base])
    for path, value in edits.items():
        *parents, key = path.split(".")
        at: Any = section
        for parent in parents:
            at = at[int(parent)] if isinstance(at, list) else at.setdefault(parent, {})
        if value is LEFT_OUT:
            del at[key]
        else:
            at[key] = value
    return section

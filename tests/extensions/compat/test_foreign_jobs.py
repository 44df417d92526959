"""Published jobs and examples of the documentation of programs that are not run beside: what they say is what is done.

Paths and sizes are those of the test. Sources: SimpleTuner bc8e6ab7 (documentation/quickstart, simpletuner/examples),
OneTrainer 23df3832 (training_presets/QwenImage), diffusion-pipe 8f83dbf2 (examples, docs/supported_models.md),
sd-scripts 48d368fa (docs/config_README-en.md, docs/flux_train_network.md).
"""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from extensions.compat import kohya
from jobs.dry_run import plan_job
from tests.extensions.compat.test_diffusion_pipe import DATA, MAIN
from tests.extensions.compat.test_kohya import EXAMPLE
from tests.extensions.compat.test_onetrainer import FULL, LORA, LORA_24
from tests.faults.nursery import Child
from toolkit.config import load_job
from toolkit.errors import EXIT_SIGTERM
from toolkit.extension import discover
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.optim.schedules import ScheduleArgs, build_schedule
from toolkit.train.run_reader import list_checkpoints

IMAGES = 8
"""In each folder: `a` and `b`, and as references `refs_a`, `refs_b`, `refs_c`."""

# ------------------------------------------------------------ SimpleTuner

GUIDE = {
    "model_type": "lora", "model_family": "qwen_image", "model_flavour": "v1.0", "lora_type": "standard",
    "lora_rank": 8, "lora_alpha": 8, "output_dir": "out/st", "train_batch_size": 1, "gradient_accumulation_steps": 4,
    "validation_resolution": "64x64", "validation_guidance": 4.0, "validation_num_inference_steps": 30,
    "validation_seed": 42, "validation_prompt": "A photo-realistic image of a cat", "validation_step_interval": 100,
    "vae_batch_size": 1, "seed": 42, "resume_from_checkpoint": "latest", "resolution": 64,
    "resolution_type": "pixel_area", "report_to": "tensorboard", "optimizer": "optimi-lion", "num_train_epochs": 0,
    "num_eval_images": 1, "mixed_precision": "bf16", "minimum_image_size": 0, "max_train_steps": 1000,
    "max_grad_norm": 0.01, "lr_warmup_steps": 100, "lr_scheduler": "constant_with_warmup", "learning_rate": "1e-4",
    "gradient_checkpointing": "true", "base_model_precision": "int2-quanto", "quantize_via": "cpu",
    "quantize_activations": False, "flow_schedule_shift": 1.73, "disable_benchmark": False,
    "data_backend_config": "data.json", "checkpoints_total_limit": 5, "checkpoint_step_interval": 500,
    "caption_dropout_probability": 0.0, "aspect_bucket_rounding": 2, "pretrained_model_name_or_path": "model",
}  # fmt: skip
"""documentation/quickstart/QWEN_IMAGE.md."""

EXAMPLE_OF_SIMPLETUNER = {
    key: value for key, value in GUIDE.items() if key not in ("gradient_accumulation_steps", "aspect_bucket_rounding")
} | {
    "checkpoint_step_interval": 50, "compress_disk_cache": False, "disable_benchmark": True,
    "disable_bucket_pruning": True, "hub_model_id": "simpletuner-example-qwen_image-peft-lora",
    "strict_epoch_limit": False, "lr_warmup_steps": 10, "max_train_steps": 100, "num_eval_images": 25,
    "push_checkpoints_to_hub": False, "push_to_hub": False, "report_to": "none", "skip_file_discovery": False,
    "tracker_project_name": "lora-training", "tracker_run_name": "example-training-run", "use_ema": False,
    "validation_guidance_rescale": 0.0, "validation_lycoris_strength": 1.0, "validation_prompt_library": False,
    "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
    "validation_steps": 50,
}  # fmt: skip
"""simpletuner/examples/qwen_image.peft-lora/config.json."""

EDIT_GUIDE = {
    "model_type": "lora", "model_family": "qwen_image", "model_flavour": "edit-v1", "train_batch_size": 1,
    "gradient_accumulation_steps": 4, "validation_resolution": "64x64", "validation_guidance": 4.0,
    "validation_num_inference_steps": 30, "mixed_precision": "bf16", "gradient_checkpointing": True,
    "base_model_precision": "int8-quanto", "quantize_via": "cpu", "quantize_activations": False,
    "flow_schedule_shift": 1.73, "data_backend_config": "data.json", "pretrained_model_name_or_path": "model",
    "output_dir": "out/st",
}  # fmt: skip
"""documentation/quickstart/QWEN_EDIT.md."""

TEXT = {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
SUBJECT = {
    "id": "dreambooth-subject", "type": "local", "crop": False, "resolution": 64, "minimum_image_size": 32,
    "maximum_image_size": 64, "target_downsample_size": 64, "resolution_type": "pixel_area",
    "cache_dir_vae": "cache/vae", "instance_data_dir": "b", "caption_strategy": "instanceprompt",
    "instance_prompt": "the name of your subject goes here", "metadata_backend": "discovery", "repeats": 1000,
}  # fmt: skip
CLASS = SUBJECT | {
    "id": "pseudo-camera-10k-qwen", "crop": True, "crop_aspect": "square", "crop_style": "center", "disabled": False,
    "skip_file_discovery": "", "instance_data_dir": "a", "caption_strategy": "filename", "repeats": 0,
    "is_regularisation_data": True,
}  # fmt: skip
DOMOKUN = {
    "id": "dreambooth", "type": "local", "instance_data_dir": "a", "crop": True, "crop_style": "random",
    "crop_aspect": "square", "minimum_image_size": 32, "maximum_image_size": 64, "target_downsample_size": 64,
    "resolution": 64, "resolution_type": "pixel_area", "caption_strategy": "instanceprompt", "instance_prompt": "x",
    "cache_dir_vae": "cache/vae/{model_family}/dreambooth-1024",
}  # fmt: skip
"""simpletuner/examples/multidatabackend-small-dreambooth-1024px.json: there a dataset of the hub."""


def edits(*references: str) -> list[dict[str, Any]]:
    edited = {
        "id": "my-edited-images", "type": "local", "instance_data_dir": "a", "caption_strategy": "textfile",
        "resolution": 64, "conditioning_data": list(references), "cache_dir_vae": "cache/vae/edited-images",
    }  # fmt: skip
    return [edited] + [
        {
            "id": name, "type": "local", "dataset_type": "conditioning", "instance_data_dir": name, "resolution": 64,
            "conditioning_type": "reference_strict", "cache_dir_vae": f"cache/vae/{name}",
        }
        for name in references
    ]  # fmt: skip


def simpletuner(job: Mapping[str, Any], *datasets: Mapping[str, Any]) -> dict[str, str]:
    return {"config.json": json.dumps(job), "data.json": json.dumps(datasets)}


# ------------------------------------------------------------ the others


def onetrainer(preset: Mapping[str, Any]) -> dict[str, str]:
    concepts = [{"name": "a", "path": "a"}, {"name": "b", "path": "b", "balancing": 2.0}]
    job = {**preset, "resolution": "64"}
    return {"job.json": json.dumps(job), "training_concepts/concepts.json": json.dumps(concepts)}


PIPE = MAIN.replace("'runs/dogs'", "'out/dp'").replace("swap = 8", "swap = 1").replace("'Qwen/Qwen-Image'", "'model'")
PIPE_DATA = DATA.replace("512", "64").replace("'pairs/after'", "'a'").replace("repeats = 3", "repeats = 1")
KONTEXT = """\
resolutions = [64]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 9
num_repeats = 1
[[directory]]
path = 'a'
control_path = 'refs_a'
"""


def sd_scripts(text: str) -> dict[str, str]:
    for old, new in (("hoge'", "a'"), ("fuga'", "b'"), ("'reg'", "'refs_a'"), ("'piyo'", "'refs_b'")):
        text = text.replace(old, new)
    return {"data.toml": text, "piyo_md.json": json.dumps({f"refs_b/{i}.png": {"caption": "x"} for i in range(IMAGES)})}


TWICE = """\
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = 'hoge'
[[datasets]]
resolution = 96
  [[datasets.subsets]]
  image_dir = 'hoge'
"""
AREAS = """\
[general]
# Common settings
flip_aug = true
color_aug = false
keep_tokens_separator= "|||"
shuffle_caption = false
caption_tag_dropout_rate = 0
caption_extension = ".txt"

[[datasets]]
# First resolution settings
batch_size = 2
enable_bucket = true
resolution = [96, 96]

  [[datasets.subsets]]
  image_dir = 'hoge'
  num_repeats = 1

[[datasets]]
# Second resolution settings
batch_size = 2
enable_bucket = true
resolution = [64, 64]

  [[datasets.subsets]]
  image_dir = 'hoge'
  num_repeats = 1
"""
"""Of docs/flux_train_network.md, with one batch size."""

MUSUBI = """\
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision fp16 src/musubi_tuner/qwen_image_train_network.py \\
--max_train_epochs 200 --save_every_n_epochs 10 --seed 42 --output_dir out/m --output_name test_V3 \\
--dataset_config data.toml --dit model/transformer --model_version edit-2509 --text_encoder model/text_encoder \\
--vae model/vae --mixed_precision bf16 --fp8_base --fp8_scaled --gradient_checkpointing --sdpa \\
--timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2.2 \\
--max_data_loader_n_workers 0 --persistent_data_loader_workers --network_dim 16 \\
--network_module networks.lora_qwen_image --optimizer_type schedulefree.RAdamScheduleFree --learning_rate 2e-5
"""
"""kohya-ss/musubi-tuner, issue 840."""

MUSUBI_DATA = """\
[general]
resolution = [64, 64]
caption_extension = ".txt"
enable_bucket = true
bucket_no_upscale = false
[[datasets]]
image_directory = "a"
cache_directory = "cache"
control_directory = "refs_a"
qwen_image_edit_no_resize_control = false
qwen_image_edit_control_resolution = [1024, 1024]
"""
SHELL = """\
./Scripts/accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16  qwen_image_train_network.py `
--mixed_precision bf16 --dit "model" --text_encoder "model" --vae "model"  --network_module networks.lora_qwen_image `
--dataset_config "data.toml" --xformers --split_attn --fp8_base --fp8_scaled --fp8_vl --optimizer_type adamw8bit `
--learning_rate 1e-4 --gradient_checkpointing     --max_data_loader_n_workers 0 --persistent_data_loader_workers `
--network_dim 32 --timestep_sampling qwen_shift --weighting_scheme none --max_train_epochs 16 `
--save_every_n_epochs 1 --seed 42 --output_dir "out" --output_name zz_MF_qwen --blocks_to_swap 1 `
--save_last_n_epochs_state 3 --save_state
"""
"""The same, issue 435, in PowerShell."""

PRESET = """\
dataset_config = "data.toml"
dit = "model/transformer"
mixed_precision = "bf16"
network_module = "networks.lora_qwen_image"
network_dim = 32
network_alpha = 16
timestep_sampling = "qwen_shift"
discrete_flow_shift = 3.0
learning_rate = "2e-4"
lr_scheduler = "cosine_with_min_lr"
lr_warmup_steps = 0
lr_decay_steps = 0.2
lr_scheduler_min_lr_ratio = 0.1
max_train_epochs = 40
save_every_n_epochs = "2"
save_last_n_epochs = ""
output_name = "qinglong"
compile = false
compile_dynamic = "auto"
"""
"""Options of sdbds/musubi-tuner-scripts, gui/presets/train/qwen_image.toml."""

CMD = r"""
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 ^
src\musubi_tuner\qwen_image_train_network.py ^
--dit "model\transformer" ^
--vae "model\vae" ^
--text_encoder "model\text_encoder" ^
--dataset_config "trainings\data.toml" ^
--edit_plus --sdpa --mixed_precision bf16 ^
--timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2.2 ^
--optimizer_type AdamW --learning_rate 1e-5 --gradient_checkpointing ^
--max_data_loader_n_workers 0 --persistent_data_loader_workers ^
--network_module networks.lora_qwen_image --network_dim 16 ^
--max_train_epochs 10 --save_every_n_epochs 1 --seed 42 ^
--output_dir "trainings\output" ^
--output_name "borsa_iblues_rossa_lora"
--use_pinned_memory_for_block_swap
"""
"""The same, issue 713, for cmd; its last line belongs to no command."""

VARIABLES = """\
#!/bin/bash
set -e
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
cd AesFormer_ICML2026/musubi-tuner

DIT="${DIT:-model/transformer}"
VAE="model/vae"
TEXT_ENCODER="model/text_encoder"
DATASET_CONFIG="${DATASET_CONFIG:-data.toml}"
OUTPUT="out"
NAME="edit2511_lora"

accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 \\
  src/musubi_tuner/qwen_image_train_network.py \\
  --dit $DIT \\
  --vae $VAE \\
  --text_encoder $TEXT_ENCODER \\
  \\
  --dataset_config $DATASET_CONFIG \\
  \\
  --model_version edit-2511 \\
  --network_module networks.lora_qwen_image --network_dim 16 \\
  --timestep_sampling qwen_shift \\
  --sdpa --mixed_precision bf16 --gradient_checkpointing --gradient_checkpointing_cpu_offload \\  # saves memory
  --optimizer_type adamw8bit --learning_rate 1e-5 \\
  --max_train_epochs 2 --save_every_n_epochs 1 --seed 42 \\
  --max_data_loader_n_workers 0 --persistent_data_loader_workers \\
  --output_dir $OUTPUT --output_name $NAME ${EXTRA_TRAIN_ARGS:-}
"""
"""PKU-ICST-MIPL/AesFormer_ICML2026, stage 2, with the defaults and the comment of other published scripts."""

SECOURSES = """\
training_mode = "LoRA Training"
dit = "model/transformer"
vae = "model/vae"
text_encoder = "model/text_encoder"
dataset_config = "data.toml"
dataset_config_mode = "Generate from Folder Structure"
parent_folder_path = ""
dataset_resolution_width = 1328
create_missing_captions = true
caption_strategy = "folder_name"
dit_dtype = "bfloat16"
dit_in_channels = 16
text_encoder_dtype = "bfloat16"
vae_chunk_size = 0
fp8_base = true
fp8_scaled = true
blocks_to_swap = 0
guidance_scale = 1.0
model_version = "original"
faster_model_loading = false
block_swap_ring_size = 2
timestep_sampling = "qwen_shift"
discrete_flow_shift = 2.2
flow_shift = 7.0
weighting_scheme = "none"
min_timestep = 0
max_timestep = 1000
sdpa = true
max_train_steps = 90000
max_train_epochs = 200
max_data_loader_n_workers = 0
seed = 99
gradient_checkpointing = true
optimizer_type = "AdaFactor"
optimizer_args = [ "scale_parameter=False", "relative_step=False", "warmup_init=False", "weight_decay=0.01",]
learning_rate = 0.00015
max_grad_norm = 0
fused_backward_pass = true
lr_scheduler = "constant"
lr_warmup_steps = 0
network_module = "networks.lora_qwen_image"
network_dim = 128
network_alpha = 64.0
network_args = []
output_dir = "out"
output_name = "my-qwen-lora"
save_precision = "bf16"
save_every_n_epochs = 10
save_every_n_steps = 0
save_last_n_epochs = 0
caching_latent_skip_existing = true
compile = false
compile_resident_blocks_only = true
gpu_ids = "0"
logging_dir = ""
sample_every_n_epochs = 0
sample_prompts = ""
sample_width = 1328
sample_cfg_scale = 4.0
"""
"""FurkanGozukara/SECourses_Musubi_Trainer, qwen_image_defaults.toml and training.toml of its benchmark."""

AI_TOOLKIT = """\
job: "extension"
config:
  name: "remove_animal_qwen_v2"
  process:
    - type: "diffusion_trainer"
      training_folder: "out"
      sqlite_db_path: "./aitk_db.db"
      device: "cpu"
      trigger_word: "remove the animal from this image."
      performance_log_every: 10
      network: {type: lora, linear: 32, linear_alpha: 32, conv: 16, conv_alpha: 16, lokr_full_rank: true,
        lokr_factor: -1, network_kwargs: {ignore_if_contains: []}}
      save: {dtype: bf16, save_every: 250, max_step_saves_to_keep: 20, save_format: diffusers, push_to_hub: false}
      datasets:
        - {folder_path: a, mask_path: null, mask_min_value: 0.1, default_caption: "", caption_ext: txt,
          caption_dropout_rate: 0.1, cache_latents_to_disk: false, is_reg: false, network_weight: 1,
          resolution: [32, 64, 96], controls: [], shrink_video_to_frames: true, num_frames: 1, do_i2v: true,
          flip_x: false, flip_y: false, control_path_1: refs_a, control_path_2: null, control_path_3: null}
      train: {batch_size: 1, bypass_guidance_embedding: false, steps: 3000, gradient_accumulation: 1, train_unet: true,
        train_text_encoder: false, gradient_checkpointing: true, noise_scheduler: flowmatch, optimizer: adamw8bit,
        timestep_type: weighted, content_or_style: balanced, optimizer_params: {weight_decay: 0.0001},
        unload_text_encoder: false, cache_text_embeddings: true, lr: 0.0001,
        ema_config: {use_ema: false, ema_decay: 0.99}, dtype: bf16, diff_output_preservation: false,
        diff_output_preservation_class: person, loss_type: mse}
      model: {name_or_path: model, quantize: true, qtype: qfloat8, quantize_te: true, qtype_te: qfloat8, low_vram: true,
        arch: qwen_image_edit_plus, model_kwargs: {match_target_res: false}, layer_offloading: false}
      sample: {sampler: flowmatch, sample_every: 250, samples: [{prompt: remove, ctrl_img_1: refs_a/0.png}], neg: ""}
meta: {name: "[name]", version: "1.0"}
"""
"""ostris/ai-toolkit, issue 609, as its page wrote it."""

EDIT_V3 = {
    "model_type": "lora", "model_family": "qwen_image", "model_flavour": "edit-v3", "mixed_precision": "bf16",
    "base_model_precision": "int8-quanto", "quantize_via": "cpu", "quantize_activations": False,
    "gradient_checkpointing": True, "flow_schedule_shift": 1.73, "lora_type": "standard", "lora_rank": 64,
    "lora_alpha": 64, "optimizer": "optimi-adamw", "learning_rate": 0.00015, "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 100, "num_train_epochs": 0, "max_train_steps": 10000, "repeats": 4, "train_batch_size": 1,
    "gradient_accumulation_steps": 1, "caption_dropout_probability": 0.0, "validation_steps": 250,
    "validation_prompt": "change the posture", "validation_guidance": 4.0, "validation_guidance_rescale": 0.0,
    "validation_lycoris_strength": 1.0, "validation_resolution": "64x64", "validation_prompt_library": False,
    "checkpoint_step_interval": 250, "checkpoints_total_limit": 8, "data_backend_config": "data.json",
    "output_dir": "out/st", "--hub_model_id": "krigeta-lora_2", "--push_to_hub": "false",
    "pretrained_model_name_or_path": "model",
}  # fmt: skip
"""bghira/SimpleTuner, issue 2255; its references as in issue 1711, by their conditioning_type alone."""

OLD_DIFFSYNTH = """\
accelerate launch examples/qwen_image/model_training/train.py \\
  --dataset_base_path a --dataset_metadata_path a/metadata.json --max_pixels 4096 --dataset_repeat 5 \\
  --model_paths '[
    [
        "model/transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "model/transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
    ],
    "model/text_encoder/model.safetensors",
    "model/vae/diffusion_pytorch_model.safetensors"
]' \\
  --learning_rate 1e-4 --num_epochs 2 --remove_prefix_in_ckpt "pipe.dit." --output_path "./models/train/old" \\
  --lora_base_model "dit" --lora_target_modules "to_q,to_k,to_v" --lora_rank 32 --use_gradient_checkpointing
"""
"""An earlier form of DiffSynth's examples."""

# ------------------------------------------------------------ what they say

Expected = tuple[float, int, tuple[float, float], tuple[str, int, float], str]
"""Uses of images in an epoch; optimizer steps; learning rates of the first and the last one; network, rank and alpha;
base."""

ONE_OF_1280 = 2e-4 * (0.1 + 0.45 * (1 + math.cos(math.pi * 1279 / 1280)))

CASES: dict[str, tuple[dict[str, str], Expected]] = {
    "musubi-tuner, issue 840": (
        {"train.sh": MUSUBI, "data.toml": MUSUBI_DATA},
        (8, 1600, (2e-5, 2e-5), ("lora", 16, 1), "fp8_scaled"),
    ),
    "musubi-tuner, PowerShell": (
        {"train.ps1": SHELL, "data.toml": MUSUBI_DATA.partition("control_d")[0]},
        (8, 128, (1e-4, 1e-4), ("lora", 32, 1), "fp8_scaled"),
    ),
    "musubi-tuner, issue 713": (
        {"train.bat": CMD, "trainings/data.toml": MUSUBI_DATA},
        (8, 80, (1e-5, 1e-5), ("lora", 16, 1), ""),
    ),
    "musubi-tuner, AesFormer": (
        {"train.sh": VARIABLES, "data.toml": MUSUBI_DATA},
        (8, 16, (1e-5, 1e-5), ("lora", 16, 1), ""),
    ),
    "musubi-tuner, SECourses": (
        {"job.toml": SECOURSES, "data.toml": MUSUBI_DATA.partition("control_d")[0]},
        (8, 1600, (1.5e-4, 1.5e-4), ("lora", 128, 64), "fp8_scaled"),
    ),
    # Its lr_decay_steps count for another schedule.
    "musubi-tuner, preset": (
        {"job.toml": PRESET, "data.toml": MUSUBI_DATA.replace("[general]", "[general]\nnum_repeats = 4")},
        (32, 1280, (2e-4, ONE_OF_1280), ("lora", 32, 16), ""),
    ),
    "ai-toolkit, issue 609": ({"job.yaml": AI_TOOLKIT}, (24, 3000, (1e-4, 1e-4), ("lora", 32, 32), "float8")),
    "SimpleTuner, edit-v3": (
        simpletuner(EDIT_V3, *({key: item[key] for key in item if key != "dataset_type"} for item in edits("refs_a"))),
        (8, 10000, (0, 1.5e-4), ("lora", 64, 64), "int8"),
    ),
    # Torch's ConstantLR: a third of the rate for 5 steps.
    "DiffSynth, model_paths": (
        {
            "train.sh": OLD_DIFFSYNTH,
            "a/metadata.json": json.dumps([{"image": f"{i}.png", "prompt": "x"} for i in range(8)]),
        },
        (40, 80, (1e-4 / 3, 1e-4), ("lora", 32, 32), ""),
    ),
    # Repeats there are besides the first use. The whole example of the guide: 1001 times 8, and 8 of the class.
    "SimpleTuner, guide": (
        simpletuner(GUIDE, CLASS, SUBJECT, TEXT),
        (8 * 1001 + 8, 1000, (0, 1e-4), ("lora", 8, 8), "int2"),
    ),
    "SimpleTuner, example": (
        simpletuner(EXAMPLE_OF_SIMPLETUNER, DOMOKUN, TEXT),
        (8, 100, (0, 1e-4), ("lora", 8, 8), "int2"),
    ),
    "SimpleTuner, edit-v1": (simpletuner(EDIT_GUIDE, *edits("refs_a")), (8, 2, (4e-7, 4e-7), ("lora", 16, 16), "int8")),
    "SimpleTuner, edit-v2": (
        simpletuner(
            EDIT_GUIDE
            | {"output_dir": "out/st", "model_flavour": "edit-v2", "model_kwargs": {"match_target_res": True}},
            *edits("refs_a", "refs_b", "refs_c"),
        ),
        (8, 2, (4e-7, 4e-7), ("lora", 16, 16), "int8"),
    ),
    # 8 and 2 times 8 in batches of 2, 100 epochs.
    "OneTrainer, LoRA 16GB": (onetrainer(LORA), (24, 1200, (0, 3e-4), ("lora", 16, 1), "float8")),
    "OneTrainer, LoRA 24GB": (onetrainer(LORA_24), (24, 1200, (0, 3e-4), ("lora", 16, 1), "float8")),
    "OneTrainer, Finetune 16GB": (onetrainer(FULL), (24, 1200, (0, 1e-5), ("full", 16, 16), "")),
    # 4 micro-batches a step, 1000 epochs.
    "diffusion-pipe, 24 GB": (
        {"main.toml": PIPE, "dataset.toml": PIPE_DATA},
        (8, 2000, (2e-5, 2e-5), ("lora", 32, 32), "float8"),
    ),
    "diffusion-pipe, edit": (
        {"main.toml": PIPE, "dataset.toml": KONTEXT},
        (8, 2000, (2e-5, 2e-5), ("lora", 32, 32), "float8"),
    ),
    "diffusion-pipe, kontext and text to image": (
        {"main.toml": PIPE, "dataset.toml": KONTEXT + "[[directory]]\npath = 'b'\n"},
        (16, 4000, (2e-5, 2e-5), ("lora", 32, 32), "float8"),
    ),
    # A file of datasets says nothing of steps, rates and rank: ours.
    "sd-scripts, documentation": (sd_scripts(EXAMPLE), (32, 1000, (1e-4, 1e-4), ("lora", 16, 16), "")),
    "sd-scripts, one folder twice": (sd_scripts(TWICE), (16, 1000, (1e-4, 1e-4), ("lora", 16, 16), "")),
    "sd-scripts, areas": (sd_scripts(AREAS), (32, 1000, (1e-4, 1e-4), ("lora", 16, 16), "")),
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures: Callable[..., Path]) -> Callable[..., str]:
    """Writes the files of a job, images and a model; returns the first file's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kohya, "MODEL", "model")  # a file of datasets names none

    def write_all(files: Mapping[str, str]) -> str:
        edits = any(re.search(r"control\w*\W+refs_a|conditioning_data", text) for text in files.values())
        write_tiny_model(Path("model"), TinySpec(arch="qwen_image_edit_plus" if edits else "qwen_image"))
        for folder in ("a", "b", "refs_a", "refs_b", "refs_c"):
            make_pictures(Path(folder), *map(str, range(IMAGES)), size=(96, 96))
        for name, text in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text.replace('"Qwen/Qwen-Image"', '"model"'))
        return next(iter(files))

    return write_all


@pytest.mark.parametrize("case", CASES)
def test_what_a_published_job_says_is_planned(case: str, write: Callable[..., str]) -> None:
    files, (samples, steps, rates, network, qtype) = CASES[case]
    config = load_job(write(files), discover().find_config)
    section = config.processes[0].section
    [plan] = plan_job(config).processes
    assert (plan.samples_per_epoch, plan.optimizer_steps) == (samples, steps)
    train = section.train
    rate = build_schedule(train.lr_scheduler, steps, params=train.lr_scheduler_params, **ScheduleArgs.named_in(train))
    assert [train.lr * rate(0), train.lr * rate(steps - 1)] == pytest.approx(rates)
    assert (section.network.type, section.network.linear, section.network.linear_alpha) == network
    assert (section.model.qtype if section.model.quantize else "") == qtype


@pytest.mark.parametrize("case", ["SimpleTuner, edit-v2", "sd-scripts, areas"])
def test_a_published_job_trains_two_steps(case: str, write: Callable[..., str], run_py: Callable[..., Any]) -> None:
    """As it is imported. Of OneTrainer and diffusion-pipe: their own tests."""
    imported = run_py("import", write(CASES[case][0]), "--output", "job.yaml")
    assert imported.returncode == 0, imported.stderr
    job = yaml.safe_load(Path("job.yaml").read_text())
    [process] = job["config"]["process"]
    if case.startswith("sd-scripts"):
        process |= {"model": {"name_or_path": "model"}, "train": process["train"] | {"steps": 2}}
        Path("job.yaml").write_text(yaml.safe_dump(job))
    done = run_py("job.yaml")
    assert done.returncode == 0, done.stderr
    _, (_, _, rates, network, _) = CASES[case]
    folder = Path(process["training_folder"]) / job["config"]["name"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    [file] = folder.glob("*.safetensors")
    assert file.stem == folder.name
    saved = load_file(file)
    ranks = {tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name}
    alphas = {float(tensor) for name, tensor in saved.items() if name.endswith(".alpha")}
    assert (ranks, alphas) == ({network[1]}, {network[2]})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_published_job_begins_as_planned(
    case: str, write: Callable[..., str], run_py: Callable[..., Any], start_py: Callable[..., Child]
) -> None:
    """Three steps of the job as it was published: each has the learning rate of the whole run's schedule, and a
    stop leaves a state from which it goes on."""
    files, (_, steps, rates, _, _) = CASES[case]
    imported = run_py("import", write(files), "--output", "imported.yaml")
    assert imported.returncode == 0, imported.stderr
    job = yaml.safe_load(Path("imported.yaml").read_text())
    [process] = job["config"]["process"]
    process["model"]["name_or_path"] = "model"  # a file of datasets names none
    Path("imported.yaml").write_text(yaml.safe_dump(job))
    section = load_job("imported.yaml", discover().find_config).processes[0].section
    folder = Path(section.training_folder) / job["config"]["name"]
    metrics = folder / "metrics.jsonl"
    child = start_py("imported.yaml")
    count = min(3, steps)
    child.wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= count)
    child.send(signal.SIGTERM)
    assert child.wait() in (EXIT_SIGTERM, 0), child.output
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    schedule = ScheduleArgs.named_in(section.train)
    rate = build_schedule(section.train.lr_scheduler, steps, params=section.train.lr_scheduler_params, **schedule)
    assert [line["lr"] for line in lines] == pytest.approx([section.train.lr * rate(n) for n in range(len(lines))])
    assert lines[0]["lr"] == pytest.approx(rates[0])
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert list_checkpoints(folder)[-1].step >= count

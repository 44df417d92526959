"""Published jobs and examples of the documentation of programs that are not run beside:
what they say is what is done.

Paths and sizes are those of the test; the sources stand with the jobs.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.dry_run import plan_job
from tests.faults.nursery import Child
from tests.running import lines
from toolkit.config import load_job
from toolkit.errors import EXIT_SIGTERM
from toolkit.extension import discover
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.optim.schedules import ScheduleArgs, build_schedule
from toolkit.train.run_reader import list_checkpoints

IMAGES = 8
"""In each folder: `a`, and as references `refs_a`."""

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
--output_name "borsa_iblues_rossa_lora" ^
--use_pinned_memory_for_block_swap
"""
"""The same, issue 713, for cmd; with the mark before the last line, which is missing
there."""

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
"""PKU-ICST-MIPL/AesFormer_ICML2026, stage 2, with the defaults and the comment of other
published scripts."""

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
"""FurkanGozukara/SECourses_Musubi_Trainer, qwen_image_defaults.toml and training.toml
of its benchmark."""

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

# ------------------------------------------------------------ what they say

Expected = tuple[float, int, tuple[float, float], tuple[str, int, float], str]
"""Uses of images in an epoch; optimizer steps; learning rates of the first and the last
one; network, rank and alpha; base."""

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
        {
            "job.toml": PRESET,
            "data.toml": MUSUBI_DATA.replace("[general]", "[general]\nnum_repeats = 4"),
        },
        (32, 1280, (2e-4, ONE_OF_1280), ("lora", 32, 16), ""),
    ),
    "ai-toolkit, issue 609": (
        {"job.yaml": AI_TOOLKIT},
        (24, 3000, (1e-4, 1e-4), ("lora", 32, 32), "float8"),
    ),
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of an arch, written once."""

    @cache
    def write(arch: str) -> Path:
        folder = tmp_path_factory.mktemp(arch) / "model"
        write_tiny_model(folder, TinySpec(arch=arch))
        return folder

    return write


@pytest.fixture
def write(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_pictures: Callable[..., Path],
    model_of: Callable[[str], Path],
) -> Callable[..., str]:
    """Writes the files of a job, images and a model; returns the first file's name."""
    monkeypatch.chdir(tmp_path)

    def write_all(files: Mapping[str, str]) -> str:
        edits = any(re.search(r"control\w*\W+refs_a", text) for text in files.values())
        arch = "qwen_image_edit_plus" if edits else "qwen_image"
        Path("model").symlink_to(model_of(arch))
        for folder in ("a", "refs_a"):
            make_pictures(Path(folder), *map(str, range(IMAGES)), size=(96, 96))
        for name, text in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text.replace('"Qwen/Qwen-Image"', '"model"'))
        return next(iter(files))

    return write_all


@pytest.mark.parametrize("case", CASES)
def test_what_a_published_job_says_is_planned(
    case: str, write: Callable[..., str]
) -> None:
    files, (samples, steps, rates, network, qtype) = CASES[case]
    config = load_job(write(files), discover().find_config)
    section = config.processes[0].section
    [plan] = plan_job(config).processes
    assert (plan.samples_per_epoch, plan.optimizer_steps) == (samples, steps)
    train = section.train
    rate = build_schedule(
        train.lr_scheduler,
        steps,
        params=train.lr_scheduler_params,
        **ScheduleArgs.named_in(train),
    )
    assert [train.lr * rate(0), train.lr * rate(steps - 1)] == pytest.approx(rates)
    assert (
        section.network.type,
        section.network.linear,
        section.network.linear_alpha,
    ) == network
    assert (section.model.qtype if section.model.quantize else "") == qtype


@pytest.mark.slow
def test_a_published_job_begins_as_planned(
    write: Callable[..., str],
    run_py: Callable[..., Any],
    start_py: Callable[..., Child],
) -> None:
    """Three steps of the job as it was published but for sizes: each has its learning
    rate, and a stop leaves a state from which it goes on."""
    files, (_, steps, rates, _, _) = CASES["ai-toolkit, issue 609"]
    imported = run_py("import", write(files), "--output", "imported.yaml")
    assert imported.returncode == 0, imported.stderr
    job = yaml.safe_load(Path("imported.yaml").read_text())
    (process,) = job["config"]["process"]
    process["model"]["model_kwargs"] = {"match_target_res": True}
    process["sample"] |= {"width": 64, "height": 64, "sample_steps": 1}
    Path("imported.yaml").write_text(yaml.safe_dump(job))
    section = load_job("imported.yaml", discover().find_config).processes[0].section
    folder = Path(section.training_folder) / job["config"]["name"]
    metrics = folder / "metrics.jsonl"
    child = start_py("imported.yaml")
    child.wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 3)
    child.send(signal.SIGTERM)
    assert child.wait() in (EXIT_SIGTERM, 0), child.output
    rows = lines(metrics)
    assert {row["lr"] for row in rows} == {rates[0]}
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert steps > list_checkpoints(folder)[-1].step >= 3

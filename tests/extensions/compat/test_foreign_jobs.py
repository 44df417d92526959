"""Published jobs and examples of the documentation of programs that are not run beside: what they say is what is done.

Paths and sizes are those of the test. Sources: SimpleTuner bc8e6ab7 (documentation/quickstart, simpletuner/examples),
OneTrainer 23df3832 (training_presets/QwenImage), diffusion-pipe 8f83dbf2 (examples, docs/supported_models.md),
sd-scripts 48d368fa (docs/config_README-en.md, docs/flux_train_network.md).
"""

from __future__ import annotations

import json
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
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.optim.schedules import build_schedule

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

# ------------------------------------------------------------ what they say

Expected = tuple[float, int, tuple[float, float], tuple[str, int, float], str]
"""Uses of images in an epoch; optimizer steps; learning rates of the first and the last one; network, rank and alpha;
base."""

CASES: dict[str, tuple[dict[str, str], Expected]] = {
    # Repeats there are besides the first use. The whole example of the guide: 1001 times 8, and 8 of the class.
    "SimpleTuner, guide": (
        simpletuner(GUIDE, CLASS, SUBJECT, TEXT),
        (8 * 1001 + 8, 1000, (0, 1e-4), ("lora", 8, 8), "int2"),
    ),
    "SimpleTuner, example": (
        simpletuner(EXAMPLE_OF_SIMPLETUNER, DOMOKUN, TEXT),
        (8, 100, (0, 1e-4), ("lora", 8, 8), "int2"),
    ),
    "SimpleTuner, edit-v1": (
        simpletuner(EDIT_GUIDE, *edits("refs_a")),
        (8, 2, (4e-7, 4e-7), ("lora", 16, 16), "int8"),
    ),
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
        edits = any("refs_a" in text for name, text in files.items() if name != "data.toml")
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
    rate = build_schedule(train.lr_scheduler, steps, train.lr_warmup_steps, train.lr_scheduler_params)
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

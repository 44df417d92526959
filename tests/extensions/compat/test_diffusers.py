"""Commands of diffusers' examples/dreambooth/train_dreambooth_lora_qwen_image.py at commit 58eb52c0, as jobs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from extensions.compat import diffusers
from tests.conftest import ROOT
from tests.extensions.compat.odd_values import FLAGS, only_config_errors
from toolkit.config import load_job
from toolkit.config.foreign import COMMAND_LINE, is_command
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.models.tiny import TinySpec, write_tiny_model

README = """\
export MODEL_NAME="Qwen/Qwen-Image"
export INSTANCE_DIR="dog"
export OUTPUT_DIR="trained-qwenimage-lora"

accelerate launch train_dreambooth_lora_qwen_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --mixed_precision="bf16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=1024 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --use_8bit_adam \\
  --learning_rate=2e-4 \\
  --report_to="wandb" \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0" \\
  --push_to_hub
"""
"""examples/dreambooth/README_qwen.md"""

TESTS = """\
train_dreambooth_lora_qwen_image.py
--pretrained_model_name_or_path hf-internal-testing/tiny-qwenimage-pipe
--instance_data_dir docs/source/en/imgs
--instance_prompt photo
--resolution 64
--train_batch_size 1
--gradient_accumulation_steps 1
--max_train_steps 2
--learning_rate 5.0e-04
--scale_lr
--lr_scheduler constant
--lr_warmup_steps 0
--output_dir out
"""
"""What examples/dreambooth/test_dreambooth_lora_qwenimage.py runs, in each of its tests with one or two more."""

OF_TESTS = {
    "latent_caching": "--cache_latents",
    "layer": "--cache_latents --learning_rate 1.0e-6 --lora_layers transformer_blocks.0.attn.to_k",
    "lora_alpha": "--rank 8 --lora_alpha 4",
    "checkpoints_total_limit": "--max_train_steps 6 --checkpoints_total_limit 2 --checkpointing_steps 2",
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("dog", "docs/source/en/imgs"):
        shutil.copytree(ROOT / "config" / "examples" / "pairs" / "before", folder)


def of_tests(more: str) -> str:
    given = {word for word in more.split() if word.startswith("--")}
    lines = [line for line in TESTS.splitlines() if line.split()[0] not in given]
    return f"accelerate launch {' '.join(lines)} {more}"


def load(command: str) -> Any:
    return load_job(COMMAND_LINE, discover().find_config, command=command)


def section(command: str) -> Any:
    return load(command).processes[0].section


def faults(command: str) -> str:
    with pytest.raises(ConfigErrors) as error:
        load(command)
    return str(error.value)


MODULE = ("accelerate launch", "python -m accelerate.commands.launch --num_processes 1")
SHELLS: dict[str, list[tuple[str, str]]] = {
    "bash": [],
    "windows line ends": [("\n", "\r\n")],
    "PowerShell": [("export ", "$env:"), ('E="', 'E = "'), ('R="', 'R = "'), ("=$", "=$env:"), ("\\\n", "`\n")],
    "cmd": [("export ", "set "), ("\\\n", "^\n"), ("$MODEL_NAME", "%MODEL_NAME%")],
    "module": [("$MODEL_NAME", "${MODEL_NAME}"), MODULE],
    "torchrun": [("accelerate launch", "CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node 1")],
    "quotes": [("--mixed_precision", "'--mixed_precision'"), ('="a photo of sks dog"', " 'a photo of sks dog'")],
    "background": [
        ("accelerate", "nohup /opt/venv/bin/accelerate"),
        ("--push_to_hub", "--push_to_hub > log.txt 2>&1 &"),
    ],
    "notebook": [("accelerate", "!accelerate")],
    "module of the script": [("accelerate launch", "python -m"), ("image.py", "image")],
    "comments": [("accelerate", "# trains\n\naccelerate"), ("  --push_to_hub", "  --push_to_hub # to mine")],
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_example_of_its_readme_in_every_shell(shell: str) -> None:
    text = reduce(lambda text, pair: text.replace(*pair), SHELLS[shell], README).replace("--report_to", "--logging_dir")
    assert is_command(text)
    config = load(text)
    job = config.processes[0].section
    train, network, sample = job.train, job.network, job.sample
    assert (config.name, job.model.name_or_path, job.training_seed) == ("trained-qwenimage-lora", "Qwen/Qwen-Image", 0)
    assert (network.type, network.linear, network.linear_alpha, len(network.include_patterns)) == ("lora", 4, 4, 4)
    assert (train.steps, train.lr, train.batch_size, train.gradient_accumulation) == (500, 2e-4, 1, 4)
    assert (train.optimizer, train.lr_scheduler, train.lr_warmup_steps, train.dtype) == (
        "adamw8bit", "constant", 0, "bfloat16",
    )  # fmt: skip
    assert train.optimizer_params == {"weight_decay": 1e-4, "eps": 1e-8, "betas": [0.9, 0.999]}
    assert (train.timestep_type, train.weighting_scheme, train.gradient_checkpointing) == ("sigma", "none", False)
    (dataset,) = job.datasets
    assert (dataset.folder_path, dataset.default_caption) == ("dog", "a photo of sks dog")
    assert str(dataset.resolution[0]) == "{width: 1024, height: 1024}"
    assert [item.prompt for item in sample.samples] == ["A photo of sks dog in a bucket"] * 4
    assert (sample.sample_every_n_epochs, sample.guidance_scale, sample.walk_seed) == (25, 1, True)
    assert (job.save.save_every, job.save.dtype, job.save.hf_repo_id) == (500, "bfloat16", "trained-qwenimage-lora")
    assert any("0 is a seed there, and a random one here" in line for line in config.warnings)


def test_flags_that_are_left_out_are_as_there() -> None:
    given = "--pretrained_model_name_or_path Qwen/Qwen-Image --instance_data_dir dog --instance_prompt a"
    config = load(f"python train_dreambooth_lora_qwen_image.py {given}")
    job = config.processes[0].section
    assert (config.name, job.train.batch_size, job.train.epochs, job.train.lr) == (
        "hidream-dreambooth-lora",
        4,
        1,
        1e-4,
    )
    assert (job.train.dtype, job.save.dtype, job.save.max_step_saves_to_keep) == ("float32", "float32", 0)
    assert job.train.lr_warmup_steps == 0 and job.train.disable_sampling
    assert str(job.datasets[0].resolution[0]) == "{width: 512, height: 512}"
    (note,) = [line for line in config.notes if "as in diffusers" in line]
    job = section(f"python train_dreambooth_lora_qwen_image.py {given} --lr_scheduler cosine")
    assert job.train.lr_warmup_steps == 500
    assert "rank 4" in note and "train_batch_size 4" in note and "mixed_precision no" in note


@pytest.mark.parametrize(
    ("flags", "place", "value"),
    [
        ("--lr_scheduler cosine --lr_warmup_steps 9", "train.lr_warmup_steps", 9),
        ("--use_aspect_ratio_buckets", "datasets.0.resolution", (64,)),
        ("--optimizer prodigy --learning_rate 1", "train.optimizer", "prodigy"),
        ("--optimizer prodigy --learning_rate 1", "train.optimizer_params.safeguard_warmup", True),
        ("--weighting_scheme logit_normal --logit_mean 0.5", "train.logit_mean", 0.5),
        ("--scale_lr --train_batch_size 2 --gradient_accumulation_steps 4", "train.lr", 4e-3),
        ("--bnb_quantization_config_path bnb.json", "model.qtype", "int4"),
        ("--revision abc", "model.revision", "abc"),
        ("--upcast_before_saving --mixed_precision bf16", "save.dtype", "float32"),
        ("--caption_dropout 0.1", "datasets.0.caption_dropout_rate", 0.1),
        ("--random_flip", "datasets.0.flip_x", True),
        ("--final_validation_prompt a --num_validation_images 2", "sample.sample_every_n_epochs", 0),
        ("--instance_prompt 1", "datasets.0.default_caption", "1"),
        ("--with_prior_preservation --class_data_dir dog --class_prompt b", "datasets.1.is_reg", True),
        ("--report_to tensorboard", "logging.logging_dir", "out/logs"),
    ],
)
def test_a_flag_lands_where_the_table_says(flags: str, place: str, value: object) -> None:
    Path("bnb.json").write_text('{\n    "load_in_4bit": true,\n    "bnb_4bit_quant_type": "nf4"\n}\n')
    found = section(of_tests(flags))
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--learnin_rate 1", "--learnin_rate: unknown flag. Did you mean 'learning_rate'?"),
        ("--rank 4 --rank 8", "--rank is 4, and 8 a second time. Remove one of them."),
        ("--variant fp16", "variant: 'fp16' is not supported: files of another number type are converted here"),
        ("--aspect_ratio_buckets 64,64", "aspect_ratio_buckets: '64,64' is not supported"),
        ("--dataset_name linoyts/Tuxemon", "goes without instance_data_dir. Remove one of them."),
        ("--hub_token abc", "log in with `hf auth login`"),
        ("--mixed_precision fp8", "mixed_precision: 'fp8' is not supported here."),
        ("--report_to comet_ml", "report_to: 'comet_ml' is not supported here."),
        ("--bnb_quantization_config_path none.json", "'none.json' does not exist"),
        ("--with_prior_preservation", "class_data_dir: is required: the images of the class"),
        ("--instance_data_dir gone", "'gone' does not exist"),
        ("--resolution 63,5", "resolution"),
        ("--gradient_accumulation_steps x", "gradient_accumulation_steps: 'x' is not a whole number above 0."),
    ],
)
def test_mistakes(flags: str, words: str) -> None:
    assert words in faults(of_tests(flags))


def test_a_dataset_of_the_hub_is_a_folder_of_it_here() -> None:
    text = of_tests("--caption_column prompt").replace("--instance_data_dir docs/source/en/imgs", "--dataset_name a/b")
    assert "Run hf download a/b --repo-type dataset --local-dir FOLDER, and give that." in faults(text)
    rows = [{"file_name": "coffee.jpg", "prompt": "a cup"}, {"file_name": "rocket.jpg", "prompt": ""}]
    Path("dog/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (dataset,) = section(text.replace("a/b", "dog")).datasets
    assert (dataset.folder_path, dataset.default_caption) == ("dog", "photo")


@pytest.mark.parametrize("case", OF_TESTS)
def test_the_examples_run_on_tiny_models(case: str, run_py: Callable[..., Any]) -> None:
    """With another model and images."""
    write_tiny_model(Path("model"), TinySpec(arch="qwen_image"))
    text = of_tests(OF_TESTS[case]).replace("hf-internal-testing/tiny-qwenimage-pipe", "model")
    Path("train.sh").write_text(f"#!/bin/bash\n{text}\n")
    done = run_py("train.sh")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    rate, steps = (1e-6 if case == "layer" else 5e-4), (6 if case == "checkpoints_total_limit" else 2)
    assert [line["lr"] for line in lines] == pytest.approx([rate] * steps)
    saved = load_file("out/out.safetensors")
    layers = {name.rpartition(".lora_")[0].partition(".")[2] for name in saved if "lora_" in name}
    if case == "layer":
        assert layers == {"transformer_blocks.0.attn.to_k"}
    else:
        assert {layer.partition("attn.")[2] for layer in layers} == {"to_k", "to_q", "to_v", "to_out.0"}
    assert {saved[name].shape[0] for name in saved if "lora_A" in name} == {8 if case == "lora_alpha" else 4}
    kept = sorted(path.name for path in Path("out").glob("out_*.safetensors"))
    assert kept == (["out_000000004.safetensors", "out_000000006.safetensors"] if steps == 6 else [])


@pytest.mark.slow  # every key with every value
def test_odd_values_are_errors_of_the_config() -> None:
    only_config_errors(lambda key, value: load(of_tests(f"--{key} {value}")), diffusers.COMMAND.flags, FLAGS)

"""Training commands of DiffSynth-Studio, as jobs: its examples/qwen_image/model_training at commit fed7b18f."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from extensions.compat import diffsynth
from tests.conftest import ROOT
from tests.extensions.compat.odd_values import FLAGS, only_config_errors
from tests.golden_tables import golden
from toolkit.config import load_job
from toolkit.config.foreign import COMMAND_LINE
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.flow.loss import weights
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import TimestepContext, inference_timesteps
from toolkit.models.tiny import TinySpec, write_tiny_model

FOLDER = "data/diffsynth_example_dataset/qwen_image"
LAYERS = (
    "to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out,"
    "img_mlp.net.2,img_mod.1,txt_mlp.net.2,txt_mod.1"
)
DOWNLOAD = """\
modelscope download --dataset DiffSynth-Studio/diffsynth_example_dataset --include "qwen_image/{0}/*" --local_dir ./data

"""
LORA = """\
accelerate launch examples/qwen_image/model_training/train.py \\
  --dataset_base_path data/diffsynth_example_dataset/qwen_image/{0} \\
  --dataset_metadata_path data/diffsynth_example_dataset/qwen_image/{0}/{1} \\
{2}  --max_pixels 1048576 \\
  --dataset_repeat 50 \\
  --model_id_with_origin_paths "Qwen/{0}:transformer/diffusion_pytorch_model*.safetensors,\
Qwen/Qwen-Image:text_encoder/model*.safetensors,Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors" \\
  --learning_rate 1e-4 \\
  --num_epochs 5 \\
  --remove_prefix_in_ckpt "pipe.dit." \\
  --output_path "./models/train/{0}_lora" \\
  --lora_base_model "dit" \\
  --lora_target_modules "{3}" \\
  --lora_rank 32 \\
  --use_gradient_checkpointing \\
  --dataset_num_workers 8 \\
  --find_unused_parameters"""
EDITS = '  --data_file_keys "image,edit_image" \\\n  --extra_inputs "edit_image" \\\n'
ZERO = " \\\n  --zero_cond_t # This is a special parameter introduced by Qwen-Image-Edit-2511. Please enable it.\n"
FULL = """\
accelerate launch --config_file examples/qwen_image/model_training/full/accelerate_config_zero2offload.yaml \
examples/qwen_image/model_training/train.py \\
  --dataset_base_path data/diffsynth_example_dataset/qwen_image/Qwen-Image \\
  --dataset_metadata_path data/diffsynth_example_dataset/qwen_image/Qwen-Image/metadata.csv \\
  --max_pixels 1048576 \\
  --dataset_repeat 50 \\
  --model_id_with_origin_paths "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors,\
Qwen/Qwen-Image:text_encoder/model*.safetensors,Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors" \\
  --learning_rate 1e-5 \\
  --num_epochs 2 \\
  --remove_prefix_in_ckpt "pipe.dit." \\
  --output_path "./models/train/Qwen-Image_full" \\
  --trainable_models "dit" \\
  --use_gradient_checkpointing \\
  --find_unused_parameters
"""
EXAMPLES = {
    "lora/Qwen-Image.sh": DOWNLOAD.format("Qwen-Image") + LORA.format("Qwen-Image", "metadata.csv", "", LAYERS),
    "lora/Qwen-Image-Edit-2509.sh": LORA.format("Qwen-Image-Edit-2509", "metadata.json", EDITS, LAYERS),
    "lora/Qwen-Image-Edit-2511.sh": LORA.format("Qwen-Image-Edit-2511", "metadata.json", EDITS, LAYERS) + ZERO,
    "full/Qwen-Image.sh": FULL,
}
COMMAND = EXAMPLES["lora/Qwen-Image.sh"]
TRANSFORMER = "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dataset: a table of `image`, `prompt` and `edit_image` beside the images."""
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen-Image", "Qwen-Image-Edit-2509", "Qwen-Image-Edit-2511"):
        base = Path(FOLDER) / name
        shutil.copytree(ROOT / "config" / "examples" / "pairs" / "after", base / "image")
        shutil.copytree(ROOT / "config" / "examples" / "pairs" / "before", base / "edit")
        edits = ["edit/coffee.jpg", "edit/rocket.jpg"]
        rows = [
            {"image": "image/coffee.jpg", "prompt": "make it, warm", "edit_image": edits},
            {"image": "image/rocket.jpg", "prompt": "a rocket", "edit_image": edits[:1]},
        ]
        (base / "metadata.json").write_text(json.dumps(rows, indent=4))
        lines = [f'{row["image"]},"{row["prompt"]}"' for row in rows]
        (base / "metadata.csv").write_text("\n".join(["image,prompt", *lines]))


def load(command: str = COMMAND) -> Any:
    return load_job(COMMAND_LINE, discover().find_config, command=command)


def section(command: str = COMMAND) -> Any:
    return load(command).processes[0].section


def faults(command: str) -> str:
    with pytest.raises(ConfigErrors) as error:
        load(command)
    return str(error.value)


def test_the_example_of_a_lora() -> None:
    config = load()
    job = config.processes[0].section
    train, save, network = job.train, job.save, job.network
    assert (config.name, job.training_folder, job.model.name_or_path) == (
        "Qwen-Image_lora", "models/train", "Qwen/Qwen-Image",
    )  # fmt: skip
    assert (network.type, network.linear, network.linear_alpha, len(network.include_patterns)) == ("lora", 32, 32, 12)
    assert (train.lr, train.epochs, train.batch_size, train.optimizer, train.max_grad_norm) == (1e-4, 5, 1, "adamw", 0)
    assert (train.lr_scheduler, train.optimizer_params) == ("ConstantLR", {"weight_decay": 0.01})
    assert (train.timestep_type, train.discrete_flow_shift, train.weighting_scheme) == ("shift", None, "bell")
    assert train.gradient_checkpointing is True and train.dtype == save.dtype == "bfloat16"
    assert (save.save_every, save.save_every_n_epochs, save.max_step_saves_to_keep) == (0, 1, 0)
    (dataset,) = job.datasets
    assert (dataset.num_repeats, dataset.resolution, dataset.num_workers) == (50, (1024,), 8)
    assert dataset.captions_file == f"{FOLDER}/Qwen-Image/metadata.csv" and not dataset.folder_path


def test_flags_that_are_left_out_are_as_there() -> None:
    job = section(
        f"python -m examples.qwen_image.model_training.train --dataset_base_path {FOLDER}/Qwen-Image "
        f"--lora_base_model dit --dataset_metadata_path {FOLDER}/Qwen-Image/metadata.csv "
        "--model_id_with_origin_paths Qwen/Qwen-Image:transformer/x.safetensors"
    )
    assert (job.train.lr, job.train.epochs, job.network.linear, job.datasets[0].num_repeats) == (1e-4, 1, 32, 1)
    assert (job.train.gradient_checkpointing, job.datasets[0].resolution) == (False, (1024,))


@pytest.mark.parametrize(
    ("flags", "place", "value"),
    [
        ("--height 512 --width 768", "datasets.0.resolution.0.width", 768),
        ("--max_pixels 262144", "datasets.0.resolution", (512,)),
        ("--save_steps 100", "save.save_every", 100),
        ("--save_steps 100 --gradient_accumulation_steps 4", "save.save_every", 25),
        ("--use_gradient_checkpointing_offload", "train.gradient_checkpointing", "full_offload"),
        ("--customized_optimizer torch.optim.Adam", "train.optimizer", "torch.optim.Adam"),
        ("--weight_decay 0.1", "train.optimizer_params", {"weight_decay": 0.1}),
        ("--fp8_models Qwen/Qwen-Image:transformer/x.safetensors", "model.qtype", "float8"),
        ("--quant_options Qwen/Qwen-Image:transformer/x*:bitsandbytes_nf4/img_in,txt_in", "model.qtype", "int4"),
        ("--lora_target_modules to_q", "network.include_patterns", ("to_q",)),
        ('--lora_target_modules ""', "network.include_patterns", ()),
        ("--enable_tensorboard_log", "logging.logging_dir", "./models/train/Qwen-Image_lora/tensorboard_log"),
    ],
)
def test_a_flag_lands_where_the_table_says(flags: str, place: str, value: object) -> None:
    named = {word for word in flags.split() if word.startswith("--")}
    lines = [line for line in COMMAND.splitlines() if not named & set(line.split())]
    found = section("\n".join([*lines[:-1], f"  --find_unused_parameters {flags}"]))
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_what_trains_on_an_encoded_dataset_takes_the_command_that_encodes_it() -> None:
    """examples/qwen_image/model_training/special/split_training/Qwen-Image-LoRA.sh"""
    first = COMMAND.replace("_repeat 50", "_repeat 1").replace(
        "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors,", ""
    )
    cache, base = "--dataset_base_path ./models/train/cache", f"--dataset_base_path {FOLDER}/Qwen-Image"
    second = LORA.format("Qwen-Image", "metadata.csv", "", LAYERS).replace(base, cache)
    second = second.replace(f"  --dataset_metadata_path {FOLDER}/Qwen-Image/metadata.csv \\\n", "")
    config = load(f'{first} \\\n --task "sft:data_process"\n\n{second} \\\n  --task "sft:train"\n')
    (dataset,) = config.processes[0].section.datasets
    assert dataset.captions_file == f"{FOLDER}/Qwen-Image/metadata.csv" and dataset.num_repeats == 50
    assert any("is left out: images and captions are encoded" in line for line in config.warnings)
    assert "its dataset is in another form" in faults(f'{second} \\\n  --task "sft:train"')


def test_the_arguments_that_it_writes_are_the_same_job() -> None:
    """training_args.json: all flags, with null and false for what is not given."""
    flags = load(COMMAND).processes[0].section
    arguments = dict.fromkeys(diffsynth.COMMAND.flags) | {
        "dataset_base_path": f"{FOLDER}/Qwen-Image", "dataset_metadata_path": f"{FOLDER}/Qwen-Image/metadata.csv",
        "dataset_repeat": 50, "dataset_num_workers": 8, "data_file_keys": "image,video", "max_pixels": 1048576,
        "model_id_with_origin_paths": f"{TRANSFORMER},Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors",
        "learning_rate": 1e-4, "num_epochs": 5, "weight_decay": 0.01, "task": "sft", "lora_base_model": "dit",
        "output_path": "./models/train/Qwen-Image_lora", "lora_target_modules": LAYERS, "lora_rank": 32,
        "use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": False, "enable_wandb_log": False,
        "gradient_accumulation_steps": 1, "zero_cond_t": False, "enable_csv_log": False, "wandb_project": "x",
    }  # fmt: skip
    Path("training_args.json").write_text(json.dumps(arguments, indent=4))
    config = load_job("training_args.json", discover().find_config)
    assert config.processes[0].section == flags
    assert not config.warnings


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("--num_epochs 5", "--num_epchs 5", "num_epchs: --num_epchs: unknown flag. Did you mean 'num_epochs'?"),
        ("--num_epochs 5", "--num_epochs 5 --num_epochs 6", "--num_epochs is 5, and 6 a second time"),
        ("Image:transformer/diffusion_pytorch_model", "Image:x/model", "with_origin_paths: is required: an entry"),
        ("--lora_base_model", "--lora_bas_model", "lora_base_model: is required: dit; or give --trainable_models"),
        ('"dit"', '"text_encoder"', "lora_base_model: 'text_encoder' is not supported here."),
        ("--num_epochs 5", "--extra_inputs eligen_entity_prompts", "'eligen_entity_prompts' is not supported"),
        ("--num_epochs 5", "--extra_inputs context_image", "'context_image' is not supported"),
        ("--num_epochs 5", "--task direct_distill", "task: 'direct_distill' is not supported here."),
        ("--num_epochs 5", "--task sft:data_process", "only encodes. Give the command of the training"),
        ("--num_epochs 5", "--model_paths x", "is no list of paths"),
        ("--num_epochs 5", "--quant_options x", "'x' is not of the form ID:FILES:METHOD."),
        ("--num_epochs 5", """--model_paths '["x.safetensors"]'""", "its name does not tell which part it is"),
        ("--max_pixels 1048576", "--max_pixels x", "'x' is not a number of pixels"),
        ("qwen_image/model_training", "wanvideo/model_training", "wanvideo/model_training/train.py' trains no"),
        (" --dataset_metadata_path", " --dataset_num_workers 8 #", "dataset_metadata_path: is required"),
        ("/metadata.csv", "/gone.csv", "gone.csv' does not exist"),
    ],
)
def test_mistakes(old: str, new: str, words: str) -> None:
    assert words in faults(COMMAND.replace(old, new))


def test_noise_levels_and_loss_weights_are_theirs() -> None:
    """At their shift, e^0.8 at every size; here it is the model's own. The weights are theirs but for one factor."""
    train = section().train
    settings = FlowSettings(timestep_type=train.timestep_type, weighting_scheme=train.weighting_scheme)
    ids, sigmas, theirs = (
        torch.tensor([case[key] for case in golden("diffsynth_noise")]) for key in ("id", "sigma", "weight")
    )
    levels = inference_timesteps((ids + 0.5) / 1000, settings, TimestepContext(mu=0.8, terminal=0.02))
    torch.testing.assert_close(levels, sigmas, atol=1e-6, rtol=0)
    ours = weights(sigmas, settings)
    assert ours[0] == theirs[0] == 0
    factors = ours[1:] / theirs[1:]
    assert float(factors.max() / factors.min()) == pytest.approx(1, rel=2e-3)


def test_one_side_alone_says_nothing_as_there() -> None:
    config = load(f"{COMMAND} --height 512")
    assert config.processes[0].section.datasets[0].resolution == (1024,)
    assert any("height: has no effect without the other side" in line for line in config.warnings)


@pytest.mark.parametrize(
    "example",
    [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("2511.sh")) for name in EXAMPLES],
)
def test_the_examples_run_on_tiny_models(example: str, tiny_model: Path, run_py: Callable[..., Any]) -> None:
    """With other paths and sizes."""
    model = tiny_model
    if "Edit" not in example:
        write_tiny_model(model := Path("model"), TinySpec(arch="qwen_image"))
    text = EXAMPLES[example]
    for name in ("Qwen-Image-Edit-2511", "Qwen-Image-Edit-2509", "Qwen-Image"):
        text = text.replace(f"Qwen/{name}:", f"{model}:")
    text = text.replace("--max_pixels 1048576", "--max_pixels 4096").replace("_repeat 50", "_repeat 1")
    Path("train.sh").write_text(
        text.replace("--num_epochs 5", "--num_epochs 1").replace("--num_epochs 2", "--num_epochs 1")
    )
    done = run_py("train.sh")
    assert done.returncode == 0, done.stderr
    (folder,) = Path("models/train").glob("Qwen*")
    rates = [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([float("1e-5" if "full" in example else "1e-4") / 3] * 2)
    assert (folder / f"{folder.name}.safetensors").is_file()  # of a whole model the transformer alone, as there
    if "lora" in example:
        saved = load_file(folder / f"{folder.name}.safetensors")
        names = {name.partition(".lora_")[0].partition("_blocks.0.")[2] for name in saved if "_blocks.0." in name}
        assert {name.partition("attn.")[2] or name for name in names if "alpha" not in name} == set(LAYERS.split(","))
        assert len(list(folder.glob("*_00*.safetensors"))) == 1


@pytest.mark.slow  # every key with every value
def test_odd_values_are_errors_of_the_config() -> None:
    keys = sorted(set(diffsynth.COMMAND.flags) - {"dataset_base_path"})

    def load_with(key: str, value: str) -> None:
        lines = [line for line in COMMAND.splitlines() if f"--{key} " not in f"{line} "]
        load("\n".join(lines).replace("train.py \\", f"train.py --{key} {value} \\"))

    only_config_errors(load_with, keys, FLAGS)

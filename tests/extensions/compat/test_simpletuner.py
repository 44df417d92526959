"""A config of SimpleTuner with its dataset file, as a job."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions.compat import simpletuner
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

JOB = {
    "model_type": "lora",
    "model_family": "qwen_image",
    "model_flavour": "edit-v2",
    "output_dir": "output/models-qwen_image",
    "data_backend_config": "data.json",
    "max_train_steps": 1000,
}
"""Of documentation/quickstart/QWEN_IMAGE.md and QWEN_EDIT.md, in part."""

REFERENCES = [
    {"id": name, "type": "local", "dataset_type": "conditioning", "instance_data_dir": f"pairs/{folder}"}
    for name, folder in (("refs-a", "before"), ("refs-b", "after"))
]
DATA = [
    {
        "id": "edited",
        "type": "local",
        "instance_data_dir": "pairs/after",
        "caption_strategy": "textfile",
        "conditioning_data": ["refs-b", "refs-a"],
        "cache_dir_vae": "cache/vae/edited",
    },
    *REFERENCES,
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")

    def load_both(job: dict[str, Any] | None = None, data: Any = DATA) -> Any:
        Path("config.json").write_text(json.dumps(JOB | (job or {}), indent=1))
        Path("data.json").write_text(json.dumps(data, indent=1))
        return load_job("config.json", discover().find_config)

    return load_both


def faults(load: Callable[..., Any], *given: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        load(*given)
    return str(error.value).splitlines()


def test_what_is_left_out_is_as_it_is_there(load) -> None:
    config = load()
    (process,) = config.processes
    section = process.section
    assert (config.name, section.training_folder) == ("models-qwen_image", "output")
    assert section.model.name_or_path == "Qwen/Qwen-Image-Edit-2509" and not section.model.quantize
    network, train, save = section.network, section.train, section.save
    assert (network.linear, network.linear_alpha, network.dropout) == (16, 16, 0.1)
    layers = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")
    assert tuple(network.network_kwargs.only_if_contains) == layers
    assert (train.lr, train.lr_scheduler, train.optimizer) == (4e-7, "constant_with_warmup", "adamw")
    assert (train.batch_size, train.steps, train.max_grad_norm, train.ema_config.use_ema) == (4, 1000, 0, False)
    assert train.optimizer_params == {"eps": 1e-6}
    assert (train.timestep_type, train.discrete_flow_shift, train.disable_sampling) == ("shift", 3, True)
    assert (save.save_every, save.max_step_saves_to_keep) == (500, 5)
    (dataset,) = section.datasets
    assert (dataset.num_repeats, dataset.caption_dropout_rate, dataset.resolution) == (1, 0.1, (1024,))
    assert (dataset.folder_path, dataset.control_path) == ("pairs/after", ("pairs/after", "pairs/before"))
    (note,) = [line for line in config.notes if "as in SimpleTuner" in line]
    assert "lora_rank 16" in note and "learning_rate 4e-07" in note and "flow_schedule_shift 3.0" in note


def test_a_whole_model_is_trained_in_bf16(load) -> None:
    (process,) = load({"model_type": "full"}).processes
    train = process.section.train
    assert (process.section.network.type, train.full_bf16, train.optimizer) == ("full", True, "adamw")
    (process,) = load({"model_type": "full", "mixed_precision": "no"}).processes
    assert (process.section.train.full_bf16, process.section.train.dtype) == (False, "float32")


def test_the_example_of_its_guide(load) -> None:
    job = {
        "lora_type": "standard", "lora_rank": 8, "lora_alpha": 4, "train_batch_size": 1, "validation_seed": 42,
        "gradient_accumulation_steps": 4, "validation_resolution": "1024x768", "validation_guidance": 4.0,
        "validation_num_inference_steps": 30, "validation_prompt": "A photo of a cat", "validation_step_interval": 50,
        "vae_batch_size": 1, "seed": 42, "resume_from_checkpoint": "latest", "resolution_type": "pixel_area",
        "report_to": "tensorboard", "optimizer": "optimi-lion", "num_train_epochs": 0, "mixed_precision": "bf16",
        "max_grad_norm": 0.01, "lr_warmup_steps": 100, "learning_rate": "1e-4", "gradient_checkpointing": "true",
        "base_model_precision": "int8-quanto", "quantize_via": "cpu", "quantize_activations": False,
        "flow_schedule_shift": 1.73, "caption_dropout_probability": 0.0, "aspect_bucket_rounding": 2,
        "checkpoints_total_limit": 3, "checkpoint_step_interval": 100, "disable_benchmark": False,
        "model_kwargs": {"match_target_res": True}, "user_prompt_library": "prompts.json",
    }  # fmt: skip
    Path("prompts.json").write_text('{"dog": "a dog"}')
    (process,) = load(job).processes
    section = process.section
    model, train, sample = section.model, section.train, section.sample
    assert (model.quantize, model.qtype, model.model_kwargs.match_target_res) == (True, "int8", True)
    assert (section.network.linear, section.network.linear_alpha, section.training_seed) == (8, 4, 42)
    assert (train.optimizer, train.lr, train.lr_warmup_steps, train.gradient_accumulation) == ("lion", 1e-4, 100, 4)
    assert (train.gradient_checkpointing, train.discrete_flow_shift, train.dtype) == (True, 1.73, "bfloat16")
    assert (sample.width, sample.height, sample.sample_every, sample.neg) == (1024, 768, 50, "blurry, cropped, ugly")
    assert [item.prompt for item in sample.samples] == ["A photo of a cat", "a dog"]
    assert section.datasets[0].caption_dropout_rate == 0


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ({"repeats": 9}, "num_repeats", 10),
        ({"resolution": 1.0, "resolution_type": "area"}, "resolution", (1000,)),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "a sks"}, "default_caption", "a sks"),
        ({"prepend_instance_prompt": True, "instance_prompt": "sks"}, "trigger_word", "sks"),
        ({"is_regularisation_data": True}, "is_reg", True),
        ({"caption_strategy": "filename"}, "caption_from_name", True),
        ({"caption_strategy": None}, "caption_from_name", True),  # its default
    ],
)
def test_keys_of_a_dataset(load, keys: dict[str, Any], field: str, value: Any) -> None:
    (process,) = load({}, [DATA[0] | keys, *DATA[1:]]).processes
    assert getattr(process.section.datasets[0], field) == value


def test_references_are_told_by_their_conditioning_type(load) -> None:
    """As jobs have them in which dataset_type is left out."""
    data = [{key: value for key, value in item.items() if key != "dataset_type"} for item in REFERENCES]
    marked = [item | {"conditioning_type": "reference_strict", "caption_strategy": None} for item in data]
    (process,) = load({}, [DATA[0], *marked]).processes
    (dataset,) = process.section.datasets
    assert dataset.control_path == ("pairs/after", "pairs/before")
    (process,) = load({"caption_strategy": "textfile"}, [DATA[0] | {"caption_strategy": None}, *marked]).processes
    assert not process.section.datasets[0].caption_from_name


@pytest.mark.parametrize(
    ("job", "values"),
    [
        ({"optimizer": "optimi-adamw"}, {"optimizer_params": {"betas": [0.9, 0.99], "weight_decay": 0, "eps": 1e-6}}),
        ({"optimizer": "torch-adamw", "optimizer_config": "eps=1e-7,weight_decay=0.1"},
         {"optimizer": "adamw", "optimizer_params": {"eps": 1e-7, "weight_decay": 0.1}}),
        ({"optimizer": "optimi-lion", "optimizer_beta1": 0.8, "optimizer_beta2": 0.9},
         {"optimizer": "lion", "optimizer_params": {"betas": [0.8, 0.9]}}),
        ({"max_grad_norm": 0.01}, {"max_grad_norm": 0}),  # of each number there
        ({"max_grad_norm": 0.01, "grad_clip_method": "norm"}, {"max_grad_norm": 0.01}),
        ({"lr_scheduler": "polynomial", "learning_rate": 4e-6},
         {"lr_scheduler_power": 0.8, "lr_scheduler_min_lr_ratio": 4e-7 / 4e-6}),
        # What its page writes for all that is not chosen.
        ({"crepa_lambda": 0.5, "noise_offset": "0.1", "use_dora": False, "lora_format": "diffusers"}, {"lr": 4e-7}),
    ],
)  # fmt: skip
def test_keys_of_the_training(load, job: dict[str, Any], values: dict[str, Any]) -> None:
    (process,) = load(job).processes
    assert {key: getattr(process.section.train, key) for key in values} == values


def test_averages_are_as_there(load) -> None:
    (process,) = load({"use_ema": True}).processes
    assert (process.section.train.ema_config.use_ema, process.section.train.ema_config.ema_decay) == (True, 0.995)


def test_square_crops_are_one_size(load) -> None:
    crop = {"crop": True, "crop_aspect": "square", "crop_style": "center", "resolution": 512}
    (process,) = load({}, [DATA[0] | crop, *DATA[1:]]).processes
    (size,) = process.section.datasets[0].resolution
    assert (size.width, size.height) == (512, 512)


@pytest.mark.parametrize(
    ("job", "keys", "message"),
    [
        ({"model_family": "flux"}, {}, "config.json:3:18: model_family: 'flux' cannot be trained here"),
        ({"model_flavour": "v9"}, {}, "model_flavour: 'v9' is unknown."),
        ({"lora_type": "lycoris"}, {}, "lycoris_config: is required: the file of the adapter"),
        ({"lora_type": "lycori"}, {}, "lora_type: 'lycori' is not supported here. Did you mean 'lycoris'?"),
        ({"base_model_precision": "nf4-bnb"}, {}, "base_model_precision: 'nf4-bnb' is not supported here."),
        ({"twinflow_enabled": True}, {}, "twinflow_enabled: true is not supported here. Leave this key out."),
        ({"learning_rte": 1}, {}, "learning_rte: unknown key of SimpleTuner. Did you mean 'learning_rate'?"),
        ({"data_backend_config": "none.json"}, {}, "data_backend_config: 'none.json' does not exist"),
        ({"validation_prompt": "a", "validation_resolution": "big"}, {}, "'big' is not a size."),
        ({}, {"type": "huggingface"}, "type: 'huggingface' is not read here."),
        ({}, {"caption_strategy": "parquet"}, "caption_strategy: captions by parquet are not read here."),
        ({}, {"caption_strategy": "instanceprompt"}, "instance_prompt: is required for this caption_strategy."),
        ({}, {"conditioning_data": ["refs-c"]}, "'refs-c' is the id of no dataset in this file."),
        ({}, {"repeat": 3}, "repeat: 3 is not supported. Did you mean 'repeats'?"),
        ({}, {"instance_data_dir": "none"}, "'none' does not exist"),
    ],
)
def test_mistakes(load, job: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    assert any(message in line for line in faults(load, job, [DATA[0] | keys, *DATA[1:]]))


def test_a_dataset_file_alone_is_told_as_that(load) -> None:
    load()
    with pytest.raises(ConfigErrors, match=r"It is a list of datasets: run the config that names it\."):
        load_job("data.json", discover().find_config)


LOKR = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 10000,
    "linear_alpha": 1,
    "factor": 10,
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 10}, "FeedForward": {"factor": 4}},
    },
}
"""Of documentation/LYCORIS.md."""


@pytest.fixture
def network(load: Callable[..., Any]) -> Callable[..., Any]:
    """The network of a `lycoris_config`."""

    def load_file(**changed: Any) -> Any:
        Path("lycoris_config.json").write_text(json.dumps(LOKR | changed))
        config = load({"lora_type": "lycoris", "lycoris_config": "lycoris_config.json", "lora_rank": 16})
        return config.processes[0].section.network, config.warnings

    return load_file


def test_the_adapters_of_lycoris(network: Callable[..., Any]) -> None:
    lokr, told = network()
    assert (lokr.type, lokr.linear, lokr.linear_alpha, lokr.factor) == ("lokr", 10000, 1, 10)
    assert lokr.network_kwargs.only_if_contains == (".attn.", "_mlp.") and not lokr.lokr_full_rank
    assert any("factor 4: it is 10 for all layers here." in line for line in told)
    whole, _ = network(full_matrix=True, bypass_mode=True)
    assert whole.lokr_full_rank
    loha, _ = network(algo="loha", linear_dim=8, linear_alpha=0, apply_preset={"target_module": ["Attention"]})
    assert (loha.type, loha.linear, loha.linear_alpha) == ("loha", 8, 8)
    assert loha.network_kwargs.only_if_contains == (".attn.",)
    all_layers = {"target_module": ["Attention", "QwenImageTransformerBlock"]}
    assert network(apply_preset=all_layers)[0].network_kwargs.only_if_contains == ()
    dora, told = network(algo="lora", dora_wd=True, dropout=0.1, apply_preset={})
    assert (dora.type, dora.dropout) == ("dora", 0.1) and any("all layers of the blocks" in line for line in told)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"algo": "tlora"}, "lycoris_config.json:1:10: algo: 'tlora' is not supported here."),
        ({"algo": None}, "algo: is required: lokr, loha or lora"),
        ({"multiplier": 2}, "multiplier: 2 is not supported. Write 1.0."),
        ({"use_scalar": True}, "use_scalar: true is not supported. Did you mean"),
        ({"apply_preset": {"target_module": ["Flux2Attention"]}}, "'Flux2Attention' is not supported here."),
        ({"apply_preset": {"exclude_name": ["a*"]}}, "exclude_name: is not supported. Write network.include_patterns"),
        ({"apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"algo": "loha"}}}},
         "only a factor of the classes in target_module is read"),
        ({"linear_dim": "x"}, "linear_dim: 'x' is not"),
    ],
)  # fmt: skip
def test_adapters_that_are_not_here(network: Callable[..., Any], changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        network(**changed)
    assert words in str(error.value)


ENV = """\
# Configure these values.
export MODEL_TYPE='lora'   # or full
export MODEL_FAMILY=qwen_image
export MODEL_NAME="Qwen/Qwen-Image"
BASE_DIR=output
export OUTPUT_DIR="${BASE_DIR}/models-qwen_image"
export DATALOADER_CONFIG="data.json"
MAX_NUM_STEPS=1000
export NUM_EPOCHS=0
export LEARNING_RATE=1e-4
export LR_SCHEDULE="cosine"
export USE_GRADIENT_CHECKPOINTING=true
export USE_EMA=false
export VALIDATION_PROMPT="it's a photo of a cat, 50%"
export VALIDATION_RESOLUTION=512x768
export TRAINING_SEED=42
export TRAINING_NUM_PROCESSES=1
export MIXED_PRECISION="bf16"
export OPTIMIZER="adamw_bf16"
export TRAINER_EXTRA_ARGS="--lora_rank=8 --flow_schedule_shift=1.73"
export TRAINER_EXTRA_ARGS+=" --base_model_precision=int8-quanto --user_prompt_library="
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_variables_are_the_keys_of_a_config(load: Callable[..., Any], end: str) -> None:
    load({"model_flavour": "edit-v2"}, [{key: DATA[0][key] for key in DATA[0] if key != "conditioning_data"}])
    Path("config.env").write_bytes(ENV.replace("\n", end).encode())
    config = load_job("config.env", discover().find_config)
    job = config.processes[0].section
    assert (config.name, job.training_folder, job.model.name_or_path) == (
        "models-qwen_image",
        "output",
        "Qwen/Qwen-Image",
    )
    assert (job.network.linear, job.model.qtype, job.training_seed) == (8, "int8", 42)
    train = job.train
    assert (train.lr, train.steps, train.lr_scheduler, train.discrete_flow_shift) == (1e-4, 1000, "cosine", 1.73)
    assert (train.gradient_checkpointing, train.ema_config.use_ema) == (True, False)
    assert job.sample.samples[0].prompt == "it's a photo of a cat, 50%"
    assert (job.sample.width, job.sample.height) == (512, 768)
    (warning,) = config.warnings
    assert "lr_scheduler: there lr_warmup_steps is its period" in warning


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("LEARNING_RTE=1", "config.env:22:1: learning_rte: LEARNING_RTE has no effect: it is none of SimpleTuner's"),
        ("nonsense", "config.env:22:1: 'nonsense' is not of the form KEY=value."),
        ("export CONFIG_TYPE=json", "CONFIG_TYPE: the config is another file. Run config.json beside this one."),
        ("export MODEL_FAMILY=flux", "config.env:22:8: model_family: 'flux' cannot be trained here"),
        ('TRAINER_EXTRA_ARGS+=" --learning_rte=1"', "unknown key of SimpleTuner. Did you mean 'learning_rate'?"),
        ('VALIDATION_PROMPT="a', "is not of the form KEY=value."),
    ],
)
def test_mistakes_in_variables(load: Callable[..., Any], line: str, words: str) -> None:
    load({"model_flavour": "edit-v2"}, [{key: DATA[0][key] for key in DATA[0] if key != "conditioning_data"}])
    Path("config.env").write_text(f"{ENV}{line}\n")
    try:
        told = load_job("config.env", discover().find_config).warnings
    except ConfigErrors as error:
        told = [str(error)]
    assert any(words in each for each in told), told


@pytest.mark.slow  # every key with every value
def test_odd_values_are_errors_of_the_config(load) -> None:
    keys = [*simpletuner.ROWS, *sorted(simpletuner.BY_HAND)]
    for value in (None, "", "x", 0, -1, 1.5, "1e400", 1e30, True, [], [[1], {}], {"a": 1}):
        for key in keys:
            with contextlib.suppress(ConfigErrors):
                load({"validation_prompt": "a", key: value})
        for key in (*simpletuner.OF_DATASETS, "id", "type", "dataset_type"):
            for index in (0, 1):
                with contextlib.suppress(ConfigErrors):
                    load(None, [entry | {key: value} if at == index else entry for at, entry in enumerate(DATA)])

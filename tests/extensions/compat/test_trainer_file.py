"""Files of SimpleTuner, OneTrainer and diffusion-pipe as jobs. The files are small ones
of the test's own, in the form of theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from docs.config_page import keys
from docs.generate import section_models
from extensions.compat.trainer_file import trainer_tables
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.config.reading.process import JobConfig
from toolkit.errors import UserError
from toolkit.extension import discover

Texts = dict[str, Any]

SIMPLETUNER: Texts = {
    "model_family": "qwen_image",
    "pretrained_model_name_or_path": "model",
    "--output_dir": "out/fox",
    "data_backend_config": "data.json",
}
BACKENDS: list[Texts] = [
    {
        "id": "after",
        "type": "local",
        "instance_data_dir": "pairs/after",
        "caption_strategy": "textfile",
        "resolution": 64,
        "conditioning_data": ["before"],
    },
    {"id": "before", "type": "local", "instance_data_dir": "pairs/before"},
    {"id": "texts", "type": "local", "dataset_type": "text_embeds"},
]
ONETRAINER: Texts = {
    "model_type": "QWEN",
    "training_method": "LORA",
    "base_model_name": "model",
    "output_model_destination": "out/fox.safetensors",
    "concepts": [{"path": "pairs/after"}],
}
PIPE = """\
output_dir = "out/fox"
dataset = "data.toml"
epochs = 3
[model]
type = "qwen_image"
diffusers_path = "model"
dtype = "bfloat16"
[adapter]
type = "lora"
rank = 8
[optimizer]
type = "adamw_optimi"
lr = 2e-5
"""
DIRECTORIES = (
    'resolutions = [64]\nenable_ar_bucket = true\n[[directory]]\npath = "pairs/after"\n'
)

Load = Callable[..., JobConfig]


@pytest.fixture
def load(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a file of a program; what is given replaces its keys, and the keys of its
    first dataset where `data` is given."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model)
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")

    def load_one(program: str, more: Any = None, data: Any = None) -> JobConfig:
        name = "main.toml"
        if program == "diffusion-pipe":
            Path(name).write_text((more or "") + PIPE)
            Path("data.toml").write_text(DIRECTORIES + (data or ""))
        else:
            name = "config.json"
            config = dict(SIMPLETUNER if program == "SimpleTuner" else ONETRAINER)
            first, *others = (
                BACKENDS if program == "SimpleTuner" else config["concepts"]
            )
            datasets = [first | (data or {}), *others]
            Path("data.json").write_text(json.dumps(datasets))
            if program == "OneTrainer":
                config["concepts"] = datasets
            Path(name).write_text(json.dumps(config | (more or {}), indent=1))
        return load_job(name, discover().find_config)

    return load_one


def at(config: JobConfig, place: str) -> Any:
    """The value of a key; `0` is the first of a list."""
    section: Any = config.processes[0].section
    return reduce(
        lambda value, key: value[0] if key == "0" else getattr(value, key),
        place.split("."),
        section,
    )


TAKEN: list[tuple[str, Any, Any, str, Any]] = [
    ("SimpleTuner", {}, {}, "network.linear", 16),
    ("SimpleTuner", {}, {}, "train.lr", 4e-7),
    ("OneTrainer", {}, {"balancing": 3, "balancing_strategy": "REPEATS"}, "datasets.0.num_repeats", 3),
    ("SimpleTuner", {}, {}, "train.batch_size", 4),
    ("SimpleTuner", {}, {}, "train.discrete_flow_shift", 3.0),
    ("SimpleTuner", {}, {}, "train.max_grad_norm", 0.0),
    ("SimpleTuner", {}, {}, "datasets.0.captions", "lines"),
    ("SimpleTuner", {}, {}, "datasets.0.control_path", ("pairs/before",)),
    ("SimpleTuner", {"flow_schedule_shift": "0"}, {}, "train.timestep_type", "sigmoid"),
    ("SimpleTuner", {"optimizer": "bnb-adamw8bit"}, {}, "train.optimizer", "adamw8bit"),
    ("SimpleTuner", {"grad_clip_method": "norm"}, {}, "train.max_grad_norm", 2.0),
    ("SimpleTuner", {"base_model_precision": "fp8-quanto"}, {}, "model.qtype", "float8"),
    ("SimpleTuner", {"model_type": "full"}, {}, "network.type", "full"),
    ("SimpleTuner", {"max_train_steps": 7, "num_train_epochs": 0}, {}, "train.steps", 7),
    ("SimpleTuner", {"validation_prompt": "fox"}, {}, "sample.samples.0.prompt", "fox"),
    ("SimpleTuner", {}, {"repeats": 2}, "datasets.0.num_repeats", 3),
    ("OneTrainer", {}, {}, "network.linear_alpha", 1.0),
    ("OneTrainer", {}, {}, "train.epochs", 100),
    ("OneTrainer", {}, {}, "train.lr_warmup_steps", 200),
    ("OneTrainer", {}, {}, "train.timestep_type", "uniform"),
    ("OneTrainer", {"gradient_accumulation_steps": 4}, {}, "train.lr_warmup_steps", 50),
    ("OneTrainer", {"timestep_distribution": "LOGIT_NORMAL"}, {}, "train.timestep_type", "sigmoid"),
    ("OneTrainer", {"timestep_shift": 2.5}, {}, "train.discrete_flow_shift", 2.5),
    ("OneTrainer", {"peft_type": "LOKR"}, {}, "network.type", "lokr"),
    ("OneTrainer", {"layer_filter": "attn, mlp"}, {}, "network.network_kwargs.only_if_contains", ("attn", "mlp")),
    ("OneTrainer", {"transformer": {"weight_dtype": "INT_8"}}, {}, "model.qtype", "int8"),
    ("OneTrainer", {"optimizer": {"beta1": 0.8}}, {}, "train.optimizer_params", {"betas": [0.8, 0.999]}),
    ("OneTrainer", {"save_every": 2, "save_every_unit": "EPOCH"}, {}, "save.save_every_n_epochs", 2),
    ("OneTrainer", {}, {"balancing": 3.0}, "datasets.0.num_repeats", 3),
    ("OneTrainer", {"training_method": "LORA"}, {}, "network.type", "lora"),
    ("OneTrainer", {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": 0}, {}, "train.timestep_type", "sigmoid"),
    ("OneTrainer", {"save_every": 2, "save_every_unit": "STEP"}, {}, "save.save_every", 2),
    ("OneTrainer", {}, {"text": {"prompt_source": "sample"}}, "datasets.0.caption_from_name", False),
    ("diffusion-pipe", "", "resolutions = [1024]\n", "datasets.0.resolution", (1024,)),
    ("diffusion-pipe", "", "", "network.linear", 8),
    ("diffusion-pipe", "", "", "train.epochs", 3),
    ("diffusion-pipe", "", "", "train.timestep_type", "sigmoid"),
    ("diffusion-pipe", "", "", "train.optimizer_params", {"betas": [0.9, 0.99], "weight_decay": 0.0}),
    ("diffusion-pipe", "", "", "save.save_every", 0),
    ("diffusion-pipe", "", "", "datasets.0.num_repeats", 1),
    ("diffusion-pipe", "activation_checkpointing = 'unsloth'\n", "", "train.gradient_checkpointing", "full_offload"),
    ("diffusion-pipe", "warmup_steps = 9\n", "", "train.lr_warmup_steps", 9),
    ("diffusion-pipe", "", "control_path = 'pairs/before'\n", "datasets.0.control_path", ("pairs/before",)),
]  # fmt: skip
"""Program, keys of its file, keys of its first dataset -> a key of ours, its value."""


@pytest.mark.parametrize(("program", "more", "data", "place", "value"), TAKEN)
def test_what_a_key_means_there_it_means_here(
    program: str, more: Any, data: Any, place: str, value: Any, load: Load
) -> None:
    config = load(program, more, data)
    found = at(config, place)
    found = tuple(found) if isinstance(found, list) else found
    assert found == value
    assert config.name == "fox" and at(config, "training_folder") == "out"


REFUSED: list[tuple[str, Any, Any, str]] = [
    ("SimpleTuner", {"model_family": "flux"}, {}, "model_family: 'flux' is not supported here: only Qwen-Image"),
    ("SimpleTuner", {"controlnet": True}, {}, "controlnet: true is not supported here: it changes what is learned"),
    ("SimpleTuner", {"base_model_precision": "nf9"}, {}, "base_model_precision: 'nf9' is none of the types here"),
    ("SimpleTuner", {"flow_schedule_shift": []}, {}, "flow_schedule_shift: a list is not a number"),
    ("SimpleTuner", {}, {"type": "huggingface"}, "type: 'huggingface' is not supported here: download the images"),
    ("SimpleTuner", {}, {"caption_strategy": "parquet"}, "Write each image's caption beside it, and 'textfile'"),
    ("SimpleTuner", {}, {"instance_data_dir": "nowhere"}, "instance_data_dir: 'nowhere' does not exist"),
    ("SimpleTuner", {}, {"conditioning_data": ["none"]}, "names no dataset with a folder: 'none'"),
    ("SimpleTuner", {"data_backend_config": "/old/a"}, {}, "not on this machine. Where it lies elsewhere: --map /old="),
    ("OneTrainer", {"model_type": "FLUX_2"}, {}, "model_type: 'FLUX_2' is not supported here: only Qwen-Image"),
    ("OneTrainer", {"training_method": "EMBEDDING"}, {}, "'EMBEDDING' is not here. Write 'LORA' or 'FINE_TUNE'"),
    ("OneTrainer", {"mae_strength": 0.5}, {}, "mae_strength: 0.5 is not supported here"),
    ("OneTrainer", {"timestep_distribution": "BETA"}, {}, "'BETA' is not here. Write 'LOGIT_NORMAL' or 'UNIFORM'"),
    ("OneTrainer", {"learning_rate_warmup_steps": "soon"}, {}, "learning_rate_warmup_steps: 'soon' is not a number"),
    ("OneTrainer", {"concepts": None}, {}, "concepts: is required: the images"),
    ("OneTrainer", {}, {"balancing": 0.5}, "balancing: 0.5 is not here: give a whole number, and 'REPEATS'"),
    ("OneTrainer", {}, {"text": {"prompt_source": "concept"}}, "Write each image's caption beside it, and 'sample'"),
    ("OneTrainer", {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": 0.2}, {}, "0.2 is not here. Write 0."),
    ("diffusion-pipe", "uncond_fraction = 0.1\n", "", "uncond_fraction: 0.1 is not supported here"),
    ("diffusion-pipe", "micro_batch_size_per_gpu = [[512, 4]]\n", "", "micro_batch_size_per_gpu"),
    ("diffusion-pipe", "", "resolutions = ['big']\n", "is not a list of sizes. Write [1024], or [[1280, 720]]."),
]  # fmt: skip
"""Program, keys of its file, keys of its first dataset, a part of the message."""


@pytest.mark.parametrize(("program", "more", "data", "says"), REFUSED)
def test_what_changes_the_training_and_is_not_here_is_an_error_at_its_key(
    program: str, more: Any, data: Any, says: str, load: Load
) -> None:
    with pytest.raises(UserError) as error:
        load(program, more, data)
    assert says in str(error.value)


def test_a_part_of_the_images_becomes_a_number_of_repeats(load: Load) -> None:
    whole = {"balancing": 2, "balancing_strategy": "REPEATS"}
    assert at(load("OneTrainer", {}, whole), "datasets")[0].num_repeats == 2


def test_a_unit_that_is_not_here_is_a_warning_and_the_units_that_are_end_it(
    load: Load,
) -> None:
    told = "is not here: none at intervals. Write 'EPOCH' or 'STEP'."
    units = ("MINUTE", "EPOCH", "STEP")
    found = [
        told in str(load("OneTrainer", {"save_every_unit": unit}, {}).warnings)
        for unit in units
    ]
    assert found == [True, False, False]


def test_each_key_that_no_table_has_is_named_and_left_out(load: Load) -> None:
    config = load("SimpleTuner", {"lora_rnak": 4, "sparkle": True, "vae_batch_size": 1})
    assert at(config, "network.linear") == 16
    unknown = [line for line in config.warnings if "is an unknown key" in line]
    assert [line.split(": ")[1] for line in unknown] == ["lora_rnak", "sparkle"]
    assert unknown[0].endswith("and is left out. Did you mean 'lora_rank'?")
    assert any("vae_*: has no effect" in line for line in config.warnings)
    assert config.notes[0].startswith(
        "left out, and therefore as in SimpleTuner: lora_rank 16, lora_dropout 0.1"
    )


def test_a_lycoris_network_is_that_of_its_file(load: Load) -> None:
    network = {"algo": "lokr", "linear_dim": 64, "factor": 4, "multiplier": 1.0}
    Path("net.json").write_text(json.dumps(network))
    config = load("SimpleTuner", {"lora_type": "lycoris", "lycoris_config": "net.json"})
    kind = at(config, "network")
    assert (kind.type, kind.linear, kind.factor) == ("lokr", 64, 4)


def test_a_file_with_keys_of_two_programs_is_an_error_with_both(load: Load) -> None:
    with pytest.raises(UserError, match="keys of SimpleTuner and of OneTrainer"):
        load("OneTrainer", {"model_family": "qwen_image"})


@pytest.mark.slow
@pytest.mark.parametrize("program", ["SimpleTuner", "OneTrainer", "diffusion-pipe"])
def test_the_written_job_is_planned_and_is_the_same(
    program: str, load: Load, run_py: Callable[..., Any]
) -> None:
    config = load(program)
    done = run_py("import", str(config.path), "-o", "job.yaml")
    assert done.returncode == 0, done.stderr
    made, schema, *_ = Path("job.yaml").read_text().splitlines()
    assert made.startswith("# Made from ")
    named = schema.removeprefix("# yaml-language-server: $schema=")
    assert Path(named).resolve() == ROOT / "docs" / "job.schema.json"
    again = load_job("job.yaml", discover().find_config)
    ours, theirs = (c.processes[0].section.model_dump() for c in (again, config))
    assert ours == theirs
    assert run_py("job.yaml", "--dry-run").returncode == 0


def test_what_a_key_is_here_is_a_key() -> None:
    known = {*keys(section_models()), "config.name", "network.network_kwargs"}
    strange = {
        (program, key, place)
        for program, tables in trainer_tables().items()
        for rows in tables.values()
        for key, row in rows.items()
        for place in row.name.ours
        if place not in known and not place.startswith("train.optimizer_params.")
    }
    assert strange == set()

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
    assert (train.batch_size, train.steps, train.max_grad_norm, train.ema_config.use_ema) == (4, 1000, 2, False)
    assert (train.timestep_type, train.discrete_flow_shift, train.disable_sampling) == ("shift", 3, True)
    assert (save.save_every, save.max_step_saves_to_keep) == (500, 5)
    (dataset,) = section.datasets
    assert (dataset.num_repeats, dataset.caption_dropout_rate, dataset.resolution) == (1, 0.1, (1024,))
    assert (dataset.folder_path, dataset.control_path) == ("pairs/after", ("pairs/after", "pairs/before"))
    (note,) = [line for line in config.notes if "as in SimpleTuner" in line]
    assert "lora_rank 16" in note and "learning_rate 4e-07" in note and "flow_schedule_shift 3.0" in note


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
    ],
)
def test_keys_of_a_dataset(load, keys: dict[str, Any], field: str, value: Any) -> None:
    (process,) = load({}, [DATA[0] | keys, *DATA[1:]]).processes
    assert getattr(process.section.datasets[0], field) == value


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
        ({"lora_type": "lycoris"}, {}, "lora_type: 'lycoris' is not read: its layers are in lycoris_config."),
        ({"base_model_precision": "nf4-bnb"}, {}, "base_model_precision: 'nf4-bnb' is not supported here."),
        ({"twinflow_enabled": True}, {}, "twinflow_enabled: unknown key of SimpleTuner."),
        ({"learning_rte": 1}, {}, "learning_rte: unknown key of SimpleTuner. Did you mean 'learning_rate'?"),
        ({"data_backend_config": "none.json"}, {}, "data_backend_config: 'none.json' does not exist"),
        ({"validation_prompt": "a", "validation_resolution": "big"}, {}, "'big' is not a size."),
        ({}, {"type": "huggingface"}, "type: 'huggingface' is not read here."),
        ({}, {"caption_strategy": "filename"}, "caption_strategy: captions by filename are not read here."),
        ({}, {"caption_strategy": "instanceprompt"}, "instance_prompt: is required for this caption_strategy."),
        ({}, {"conditioning_data": ["refs-c"]}, "'refs-c' is the id of no dataset in this file."),
        ({}, {"repeat": 3}, "repeat: 3 is not supported. Did you mean 'repeats'?"),
        ({}, {"instance_data_dir": "none"}, "'none' does not exist"),
    ],
)
def test_mistakes(load, job: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    assert any(message in line for line in faults(load, job, [DATA[0] | keys, *DATA[1:]]))


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

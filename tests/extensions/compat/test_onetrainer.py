"""A training config of OneTrainer with its concepts, as a job."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from extensions.compat import onetrainer
from tests.conftest import ROOT
from toolkit.config import load_job
from toolkit.config.process import JobConfig
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.models.tiny import TinySpec, write_tiny_model

Load = Callable[..., JobConfig]

LORA = {
    "base_model_name": "model",
    "batch_size": 2,
    "learning_rate": 0.0003,
    "model_type": "QWEN",
    "output_model_format": "DIFFUSERS_LORA",
    "resolution": "128",
    "transformer": {"train": True, "weight_dtype": "FLOAT_8", "offload_fraction": 0.5},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"},
    "training_method": "LORA",
    "vae": {"weight_dtype": "FLOAT_32"},
    "train_dtype": "BFLOAT_16",
    "weight_dtype": "BFLOAT_16",
    "output_dtype": "BFLOAT_16",
    "timestep_distribution": "LOGIT_NORMAL",
    "layer_filter": "attn,img_mlp,txt_mlp",
    "layer_filter_preset": "attn-mlp",
    "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
}
"""training_presets/QwenImage, "#qwen LoRA 16GB", with another model and size."""

LORA_24 = LORA | {"transformer": {"train": True, "weight_dtype": "FLOAT_8", "offload_fraction": 0.1}}

ADAFACTOR = {
    "optimizer": "ADAFACTOR",
    "fused_back_pass": True,
    "beta1": None,
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "eps": 1e-30,
    "eps2": 0.001,
    "relative_step": False,
    "scale_parameter": False,
    "stochastic_rounding": True,
    "warmup_init": False,
    "weight_decay": 0.0,
}

FULL = {
    "base_model_name": "model",
    "batch_size": 2,
    "learning_rate": 1e-5,
    "model_type": "QWEN",
    "output_model_format": "ORIGINAL_TRANSFORMER",
    "resolution": "128",
    "transformer": {"train": True, "weight_dtype": "BFLOAT_16", "offload_fraction": 0.75},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"},
    "training_method": "FINE_TUNE",
    "vae": {"weight_dtype": "FLOAT_32"},
    "train_dtype": "BFLOAT_16",
    "weight_dtype": "BFLOAT_16",
    "output_dtype": "BFLOAT_16",
    "timestep_distribution": "LOGIT_NORMAL",
    "optimizer": {"optimizer": "ADAFACTOR"},
    "optimizer_defaults": {"ADAFACTOR": ADAFACTOR},
    "layer_filter": "transformer_block",
    "layer_filter_preset": "blocks",
}
"""The preset "#qwen Finetune 16GB"."""

CONCEPTS = [{"name": "a", "path": "pairs/after", "balancing": 3.0, "image": {"enable_crop_jitter": True}}]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a config with keys changed, beside which the concepts are in the file of the default's name."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(Path("model"), TinySpec(arch="qwen_image"))
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")
    Path("training_concepts").mkdir()

    def load_texts(config: dict[str, Any] = LORA, concepts: Any = CONCEPTS, **changes: Any) -> JobConfig:
        Path("training_concepts/concepts.json").write_text(json.dumps(concepts))
        Path("job.json").write_text(json.dumps(config | changes))
        return load_job("job.json", discover().find_config)

    return load_texts


def section(config: JobConfig) -> Any:
    return config.processes[0].section


def test_the_preset_of_a_lora(load: Load) -> None:
    config = load()
    job, train = section(config), section(config).train
    assert (train.lr, train.epochs, train.batch_size, train.gradient_accumulation) == (3e-4, 100, 2, 1)
    assert (train.timestep_type, train.sigmoid_scale, train.dtype, train.optimizer) == (
        "sigmoid", 1, "bfloat16", "adamw",
    )  # fmt: skip
    assert (train.lr_scheduler, train.lr_warmup_steps, train.max_grad_norm) == ("constant_with_warmup", 200, 1)
    assert train.optimizer_params["weight_decay"] == 0.01 and not train.ema_config.use_ema and train.disable_sampling
    model = job.model
    assert (model.quantize, model.qtype, model.qtype_te, model.blocks_to_swap) == (True, "float8", "float8", 1)
    network = job.network
    assert (network.linear, network.linear_alpha) == (16, 1)
    assert network.network_kwargs.only_if_contains == ("attn", "img_mlp", "txt_mlp")
    (dataset,) = job.datasets
    assert (dataset.num_repeats, dataset.resolution, job.save.dtype, job.save.save_every) == (3, (128,), "bfloat16", 0)
    assert (job.training_folder, config.name) == ("models", "model")
    (note,) = [note for note in config.notes if note.startswith("left out")]
    assert note.startswith("left out, and therefore as in OneTrainer: epochs 100,") and "lora_alpha 1.0" in note
    assert section(load(LORA_24)).model.blocks_to_swap == 0  # of 2 blocks


def test_the_preset_of_a_fine_tuning(load: Load) -> None:
    job = section(load(FULL))
    assert (job.network.type, job.train.optimizer, job.train.lr) == ("full", "adafactor", 1e-5)
    assert job.train.optimizer_params["relative_step"] is False and not job.model.quantize
    # As there: bf16 weights, updated within the backward pass, most of them in main memory, saved in one file.
    assert (job.train.full_bf16, job.train.fused_backward_pass, job.model.blocks_to_swap) == (True, True, 1)
    assert job.save.layout == "single_file"
    other = section(load(FULL, output_model_format="DIFFUSERS", optimizer={"optimizer": "ADAMW"}))
    assert (other.save.layout, other.train.full_bf16, other.model.blocks_to_swap) == ("diffusers", True, 0)
    slow = section(load(FULL, optimizer={"optimizer": "ADAMW_8BIT", "fused_back_pass": True}))
    assert (slow.train.full_bf16, slow.train.fused_backward_pass, slow.model.blocks_to_swap) == (False, False, 0)


@pytest.mark.parametrize(
    ("changes", "place", "value"),
    [
        ({"timestep_shift": 2.5}, "train.discrete_flow_shift", 2.5),
        ({"dynamic_timestep_shifting": True}, "train.timestep_type", "model_shift"),
        ({"noising_weight": 0.5}, "train.sigmoid_scale", 1.5),
        ({"min_noising_strength": 0.25}, "train.min_timestep", 250),
        ({"gradient_accumulation_steps": 4, "learning_rate_warmup_steps": 100}, "train.lr_warmup_steps", 25),
        ({"learning_rate_warmup_steps": 0.1}, "train.lr_warmup_steps", 0.1),
        ({"ema": "CPU", "ema_decay": 0.99}, "train.ema_config.ema_decay", 0.99),
        ({"save_every": 2, "save_every_unit": "EPOCH"}, "save.save_every_n_epochs", 2),
        ({"save_every": 9, "save_every_unit": "STEP"}, "save.save_every", 9),
        ({"optimizer": {"optimizer": "PRODIGY", "d_coef": 0.8}}, "train.optimizer_params.d_coef", 0.8),
        ({"peft_type": "LOHA"}, "network.type", "loha"),
        ({"peft_type": "LOKR"}, "network.linear", 16),
        ({"peft_type": "LOKR", "lokr_dim": 4, "lokr_decompose_factor": 2}, "network.factor", 2),
        ({"peft_type": "LOKR", "lokr_full_matrix": True}, "network.lokr_full_rank", True),
        ({"text_encoder": {"dropout_probability": 0.1}}, "datasets.0.caption_dropout_rate", 0.1),
        ({"aspect_ratio_bucketing": False}, "datasets.0.resolution.0.width", 128),
        ({"sample_definition_file_name": "training_samples/samples.json"}, "train.disable_sampling", True),
        ({"masked_training": True}, "datasets.0.mask_min_value", 0.1),
        ({"resolution": "96x128"}, "datasets.0.resolution.0.width", 128),
        ({"samples": [{"prompt": "a", "seed": 7}]}, "sample.samples.0.seed", 7),
        ({"output_model_destination": "out/her.safetensors"}, "training_folder", "out"),
    ],
)
def test_a_key_means_what_it_means_there(load: Load, changes: dict[str, Any], place: str, value: Any) -> None:
    found = section(load(**changes))
    for part in place.split("."):
        found = (
            found[int(part)] if part.isdigit() else found[part] if isinstance(found, Mapping) else getattr(found, part)
        )
    assert found == value


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"peft_type": "LOKR", "lokr_weight_decompose": True}, "lokr_weight_decompose is not supported. Leave it out."),
        ({"model_type": "FLUX_DEV_1"}, "model_type: 'FLUX_DEV_1' cannot be trained here"),
        ({"lora_ranc": 4}, "lora_ranc: unknown key of OneTrainer. Did you mean 'lora_rank'?"),
        ({"optimizer": {"optimizer": "CAME"}}, "optimizer.optimizer: 'CAME' is not supported here."),
        ({"timestep_distribution": "BETA"}, "timestep_distribution: 'BETA' is not supported here."),
        ({"mae_strength": 0.5}, "mae_strength: 0.5 is not supported: write loss_type: mae"),
        ({"concepts": [{"path": "pairs/after", "balancing": 0.5}]}, "concepts[0].balancing: 0.5 is not supported."),
        ({"concepts": [{"path": "gone"}]}, "'gone' does not exist"),
        ({"concepts": []}, "concepts: is required: the images."),
        ({"concept_file_name": "gone.json"}, "concept_file_name: 'gone.json' does not exist"),
    ],
)
def test_what_has_no_counterpart_is_refused_at_its_place(load: Load, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        load(**changes)
    assert fault in str(error.value)


@pytest.mark.slow  # every key with every value
def test_odd_values_are_errors_of_the_config(load: Load) -> None:
    keys = [*onetrainer._Reader.rows, *sorted(onetrainer._Reader.by_hand)]
    inside = ["path", "balancing", "balancing_strategy", "type", "loss_weight", "image", "text", "enabled"]
    for value in ("", "x", 0, -1, 1e30, True, [], [[1], {}], {"a": 1}, {"optimizer": [1], "weight_decay": "x"}):
        for key in keys:
            with contextlib.suppress(ConfigErrors):
                load(**{key: value})
        for key in inside:
            with contextlib.suppress(ConfigErrors):
                load(concepts=[{"path": "pairs/after", key: value}])


@pytest.mark.slow
def test_a_preset_trains(run_py: Callable[..., Any], load: Load) -> None:
    load(epochs=2, learning_rate_warmup_steps=4, save_every=1, save_every_unit="EPOCH", output_dtype="FLOAT_32")
    done = run_py("job.json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path("models/model/metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines][:6] == pytest.approx([0, 7.5e-5, 1.5e-4, 2.25e-4, 3e-4, 3e-4])
    assert lines[-1]["samples"] == 3 * 3 * 2
    files = sorted(path.name for path in Path("models/model").glob("*_0*.safetensors"))
    assert len(files) == 2
    weights = load_file("models/model/model.safetensors")
    assert {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name} == {16}

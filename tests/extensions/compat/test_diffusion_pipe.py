"""A training config of diffusion-pipe with its dataset file, as a job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.extensions.compat.odd_values import TOML, only_config_errors
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

MAIN = """\
output_dir = 'runs/dogs'
dataset = 'dataset.toml'
epochs = 1000
micro_batch_size_per_gpu = 1
pipeline_stages = 1
gradient_accumulation_steps = 4
gradient_clipping = 1
eval_every_n_epochs = 1
eval_before_first_step = true
save_every_n_epochs = 5
checkpoint_every_n_minutes = 120
activation_checkpointing = true
partition_method = 'parameters'
save_dtype = 'bfloat16'
caching_batch_size = 8
steps_per_print = 1
blocks_to_swap = 8
[model]
type = 'qwen_image'
diffusers_path = 'Qwen/Qwen-Image'
dtype = 'bfloat16'
transformer_dtype = 'float8'
timestep_sample_method = 'logit_normal'
[adapter]
type = 'lora'
rank = 32
dtype = 'bfloat16'
[optimizer]
type = 'AdamW8bitKahan'
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.01
"""
"""Keys of examples/qwen_image_24gb_vram.toml, with its second optimizer."""

DATA = """\
resolutions = [512]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1, 33]
[[directory]]
path = 'pairs/after'
num_repeats = 3
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")

    def load_both(main: str = MAIN, data: str = DATA) -> Any:
        Path("main.toml").write_text(main)
        Path("dataset.toml").write_text(data)
        return load_job("main.toml", discover().find_config)

    return load_both


def faults(load: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(ConfigErrors) as error:
        load(*given)
    return str(error.value)


def test_the_example_for_24_gb(load) -> None:
    config = load()
    (process,) = config.processes
    section = process.section
    model, network, train, save = section.model, section.network, section.train, section.save
    assert (config.name, section.training_folder) == ("dogs", "runs")
    assert (model.name_or_path, model.quantize, model.qtype) == ("Qwen/Qwen-Image", True, "float8")
    assert (model.blocks_to_swap, network.type, network.linear, network.linear_alpha) == (8, "lora", 32, 32)
    assert (train.optimizer, train.lr, train.epochs, train.gradient_accumulation) == ("adamw8bit", 2e-5, 1000, 4)
    assert train.optimizer_params == {"betas": [0.9, 0.99], "weight_decay": 0.01}
    assert (train.timestep_type, train.gradient_checkpointing, train.disable_sampling) == ("sigmoid", True, True)
    assert (save.save_every_n_epochs, save.save_every, save.dtype) == (5, 0, "bfloat16")
    assert save.max_step_saves_to_keep == 0
    (dataset,) = section.datasets
    assert (dataset.folder_path, dataset.num_repeats, dataset.resolution) == ("pairs/after", 3, (512,))


def test_single_files_with_references_are_an_edit_model(load) -> None:
    for name in ("dit", "te", "vae"):
        Path(f"{name}.safetensors").write_bytes(b"")
    main = MAIN.replace(
        "diffusers_path = 'Qwen/Qwen-Image'",
        "transformer_path = 'dit.safetensors'\ntext_encoder_path = 'te.safetensors'\nvae_path = 'vae.safetensors'",
    )
    message = faults(load, main, DATA + "control_path = 'pairs/before'\n")
    assert "dit.safetensors" in message and "te.safetensors" in message  # read as the parts they are
    assert "model" in message and "unknown key" not in message


def test_an_edit_model_and_its_references(load) -> None:
    main = MAIN.replace("Qwen/Qwen-Image'", "Qwen/Qwen-Image-Edit'")
    (process,) = load(main, DATA + "control_path = 'pairs/before'\ncaption_prefix = 'art, '\n").processes
    section = process.section
    assert section.model.name_or_path == "Qwen/Qwen-Image-Edit" and section.model.model_kwargs.match_target_res
    (dataset,) = section.datasets
    assert (dataset.control_path, dataset.caption_prefix) == (("pairs/before",), "art")


def test_without_an_adapter_the_model_is_trained(load) -> None:
    main = MAIN.replace("[adapter]\ntype = 'lora'\nrank = 32\ndtype = 'bfloat16'\n", "")
    main = main.replace("blocks_to_swap = 8\n", "").replace("transformer_dtype = 'float8'\n", "")
    (process,) = load(main).processes
    save, train = process.section.save, process.section.train
    assert (process.section.network.type, save.dtype, save.layout) == ("full", "bfloat16", "single_file")
    assert not train.full_bf16  # its optimizer is 8-bit here
    (process,) = load(main.replace("AdamW8bitKahan", "adamw_optimi")).processes
    assert process.section.train.full_bf16
    assert process.section.train.optimizer_params == {"betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.01}


def test_what_is_left_out_is_as_it_is_there(load) -> None:
    main = MAIN.replace("activation_checkpointing = true\n", "").replace("lr = 2e-5\n", "")
    config = load(main)
    assert config.processes[0].section.train.lr == 1e-3
    (note,) = [line for line in config.notes if "as in diffusion-pipe" in line]
    assert note.endswith("lr 0.001, activation_checkpointing false")


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        ("type = 'lora'\nrank = 32", "type = 'lokr'\nrank = 1e6\ndecompose_factor = 4", "network.lokr_full_rank", True),
        ("type = 'lora'", "type = 'lora'\ninit_from_existing = 'old/epoch50'", "network.pretrained_lora_path", None),
        ("'logit_normal'", "'logit_normal'\nshift = 3", "train.discrete_flow_shift", 3),
        ("'logit_normal'", "'logit_normal'\nflux_shift = true", "train.timestep_type", "flux_shift"),
        ("'logit_normal'", "'uniform'", "train.timestep_type", "uniform"),
        ("epochs = 1000", "epochs = 2\nmax_steps = 7", "train.step_limit", 7),
        ("save_every_n_epochs = 5", "save_every_n_examples = 400", "save.save_every", 100),
        ("epochs = 1000", "epochs = 9\nlr_scheduler = 'cosine'", "train.lr_scheduler_params", {"eta_min": 1e-6}),
        ("epochs = 1000", "epochs = 9\nforce_constant_lr = 1e-3", "train.lr", 1e-3),
        ("epochs = 1000", "epochs = 9\nuncond_fraction = 0.1", "datasets.0.caption_dropout_rate", 0.1),
        ("activation_checkpointing = true", "activation_checkpointing = 'unsloth'", "train.gradient_checkpointing",
         "full_offload"),
    ],
)  # fmt: skip
def test_keys(load, old: str, new: str, field: str, value: Any) -> None:
    assert old in MAIN
    main = MAIN.replace(old, new, 1)
    if value is None:
        assert "old/epoch50/adapter_model.safetensors" in faults(load, main)
        return
    found = load(main).processes[0].section
    for name in field.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("old", "new", "sizes"),
    [
        ("[512]", "[512, [1280, 720]]", (512, 960)),
        ("enable_ar_bucket = true", "enable_ar_bucket = false", ((512, 512),)),
        ("enable_ar_bucket = true", "enable_ar_bucket = true\nar_buckets = [4.0]", ((1024, 256),)),
        ("enable_ar_bucket = true", "size_buckets = [[512, 768, 1]]", ((512, 768),)),
    ],
)
def test_sizes(load, old: str, new: str, sizes: tuple[Any, ...]) -> None:
    (dataset,) = load(data=DATA.replace(old, new, 1)).processes[0].section.datasets
    assert tuple(s if isinstance(s, int) else (s.width, s.height) for s in dataset.resolution) == sizes


@pytest.mark.parametrize(
    ("main", "data", "message"),
    [
        ("type = 'qwen_image'|type = 'flux'", "", "main.toml:19:8: model.type: 'flux' cannot be trained here"),
        ("'AdamW8bitKahan'|'automagic'", "", "optimizer.type: 'automagic' is not here. Write type ="),
        ("rank = 32|rank = 32\nalpha = 4", "", "adapter.alpha: 4 is not supported: it is the rank there"),
        ("epochs = 1000|epoch = 1000", "", "epoch: unknown key of diffusion-pipe. Did you mean 'epochs'?"),
        ("'dataset.toml'|'none.toml'", "", "dataset: 'none.toml' does not exist"),
        ("save_every_n_epochs = 5|", "", "save_every_n_epochs: is required"),
        ("'logit_normal'|'uniform'\nshift = 3", "", "3 is not supported with uniform noise levels"),
        ("|", "num_repeats = 3|num_repeats = 0.5", "dataset.toml:9:15: directory[0].num_repeats: 0.5 is not a whole"),
        ("|", "num_repeats|num_repeat", "num_repeat: unknown key of diffusion-pipe's datasets. Did you mean"),
        ("|", "[512]|['a']", "are not sizes. Write numbers of pixels"),
        ("|", "'pairs/after'|'none'", "'none' does not exist"),
    ],
)
def test_mistakes(load, main: str, data: str, message: str) -> None:
    text, dataset = MAIN, DATA
    if main != "|":
        text = text.replace(*main.split("|"), 1)
    if data:
        dataset = dataset.replace(*data.split("|"), 1)
    assert message in faults(load, text, dataset)


@pytest.mark.slow  # every key with every value
def test_odd_values(load) -> None:
    lines = [line for line in MAIN.splitlines() if " = " in line]
    extra = ["eval_datasets", "shift", "flux_shift", "init_from_existing", "exclude_modules", "force_constant_lr"]

    def one(key: str, value: str) -> None:
        at = next((line for line in lines if line.startswith(f"{key} =")), None)
        load(MAIN.replace(at, f"{key} = {value}", 1) if at else f"{key} = {value}\n{MAIN}")

    def one_of_data(key: str, value: str) -> None:
        load(data=f"{DATA}{key} = {value}\n" if key not in DATA else DATA.replace(f"{key} =", f"{key} = {value} #", 1))

    only_config_errors(one, [*(line.split(" = ")[0] for line in lines), *extra], TOML)
    of_data = "path num_repeats mask_path control_path caption_prefix resolutions ar_buckets size_buckets directory"
    only_config_errors(one_of_data, [*of_data.split(), "enable_ar_bucket", "cache_shuffle_num"], TOML)


@pytest.mark.slow
def test_it_trains(load, tiny_model: Path, run_py: Callable[..., Any]) -> None:
    """3 images 3 times in two epochs; 4 micro-batches a step, the rate rises in the first two."""
    main = MAIN.replace("'Qwen/Qwen-Image'", f"'{tiny_model}'").replace("epochs = 1000", "epochs = 4\nwarmup_steps = 2")
    main = main.replace("save_every_n_epochs = 5", "save_every_n_epochs = 2").replace("blocks_to_swap = 8\n", "")
    main = main.replace("transformer_dtype = 'float8'\n", "").replace("AdamW8bitKahan", "adamw_optimi")
    load(main, DATA.replace("[512]", "[64]") + "control_path = 'pairs/before'\n")
    done = run_py("main.toml")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path("runs/dogs/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and lines[-1]["samples"] == 36 and lines[-1]["lr"] == 2e-5
    saved = {path.name for path in Path("runs/dogs").glob("*.safetensors")}
    assert {"dogs.safetensors", "dogs_000000005.safetensors"} <= saved
    assert {str(tensor.dtype) for tensor in load_file("runs/dogs/dogs.safetensors").values()} == {"torch.bfloat16"}

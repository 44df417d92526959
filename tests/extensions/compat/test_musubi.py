"""A training config of musubi-tuner with its dataset file, as a job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from extensions.compat.musubi import QWEN_SHIFT_OF_LAYERS
from tests.conftest import ROOT
from tests.golden_tables import golden, table
from tests.layer_files import write_layers
from toolkit.config import load_job
from toolkit.config.reading.process import JobConfig
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.tiny import TinySpec, write_tiny_model

JOB = """\
dit = "model/transformer"
dataset_config = "data.toml"
network_module = "networks.lora_qwen_image"
output_name = "my_lora"
"""
DATA = """\
[general]
resolution = [128, 96]
caption_extension = ".txt"
enable_bucket = true
bucket_no_upscale = true

[[datasets]]
image_directory = "pairs/after"
"""


PARTS = (
    ("dit", "dit", "transformer"),
    ("vae", "vae", "vae"),
    ("text_encoder", "text", "text_encoder"),
)
"""Flag, its value in tests/golden/musubi_jobs.json, the part of a model's folder."""


@pytest.fixture
def load(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., JobConfig]:
    """Loads a training config and a dataset file; their text may be replaced."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model)
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")

    def load_texts(job: str = JOB, data: str = DATA, **options: Any) -> JobConfig:
        Path("job.toml").write_text(job)
        Path("data.toml").write_text(data)
        return load_job("job.toml", discover().find_config, **options)

    return load_texts


def faults(load: Callable[..., JobConfig], *texts: str) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        load(*texts)
    return str(error.value).splitlines()


def section(config: JobConfig) -> Any:
    return config.processes[0].section


def test_what_is_left_out_is_as_there_and_one_line_says_it(
    load: Callable[..., JobConfig],
) -> None:
    config = load(
        data=DATA.replace("resolution = [128, 96]\n", "").replace(
            "enable_bucket = true\n", ""
        )
    )
    job = section(config)
    train = job.train
    assert (train.lr, train.steps, train.timestep_type, train.discrete_flow_shift) == (
        2e-6,
        1600,
        "sigma",
        None,
    )
    assert (train.optimizer, train.lr_scheduler, train.lr_warmup_steps, train.max_grad_norm) == (
        "adamw", "constant", 0, 1.0,
    )  # fmt: skip
    assert (
        not train.ema_config.use_ema
        and train.disable_sampling
        and train.batch_size == 1
    )
    assert (job.network.linear, job.network.linear_alpha, job.network.dropout) == (
        4,
        1,
        0,
    )
    assert (
        job.save.dtype,
        job.save.save_every,
        job.save.files_to_keep(),
        job.training_seed,
    ) == ("float32", 0, 0, 0)
    (dataset,) = job.datasets
    assert dataset.num_repeats == 1 and [str(size) for size in dataset.resolution] == [
        "{width: 960, height: 544}"
    ]
    assert config.notes == (
        "left out, and therefore as in musubi-tuner: network_dim 4, network_alpha 1, "
        "max_train_steps 1600, learning_rate 2e-06, optimizer_type adamw (there an error), fp8_vl false, "
        "timestep_sampling sigma, seed random, save_precision float32, save_every_n_steps 0, save_last_n_steps 0, "
        "resolution [960, 544]",
    )


@pytest.mark.parametrize(
    ("lines", "place", "value"),
    [
        (
            "discrete_flow_shift = 2.2\ntimestep_sampling = 'shift'",
            "train.discrete_flow_shift",
            2.2,
        ),
        ("timestep_sampling = 'shift'", "train.discrete_flow_shift", 1.0),
        ("timestep_sampling = 'qwen_shift'", "train.timestep_type", "model_shift"),
        (
            "min_timestep = 200",
            "train.max_timestep",
            800,
        ),  # sigma: a place on a list that begins with the most noise
        (
            "min_timestep = 200\ntimestep_sampling = 'uniform'",
            "train.min_timestep",
            200,
        ),
        ("max_train_epochs = 3", "train.epochs", 3),
        ("max_train_epochs = 0", "train.steps", 1600),
        (
            "save_last_n_steps = 0\nsave_every_n_steps = 0",
            "save.max_step_saves_to_keep",
            0,
        ),
        ("lr_warmup_steps = '10%'", "train.lr_warmup_steps", 0.1),
        ("lr_scheduler = 'cosine'\nlr_decay_steps = 0.2", "train.lr_decay_steps", 0),
        (
            "lr_scheduler = 'warmup_stable_decay'\nlr_decay_steps = 0.2",
            "train.lr_decay_steps",
            0.2,
        ),
        (
            "lr_scheduler = 'linear'\nlr_scheduler_min_lr_ratio = 0.1",
            "train.lr_scheduler_params",
            {},
        ),
        (
            "lr_scheduler = 'rex'\nlr_scheduler_min_lr_ratio = 0.1",
            "train.lr_scheduler_params",
            {"min_lr_ratio": 0.1},
        ),
        ("vae_chunk_size = 0\nmulti_gpu = false", "train.lr", 2e-6),
        ("mixed_precision = 'no'", "train.dtype", "float32"),
        ("network_args = ['loraplus_lr_ratio=4']", "network.loraplus_lr_ratio", 4),
        (
            "network_args = [\"include_patterns=['.*attn.*']\"]",
            "network.include_patterns",
            (),
        ),
        ("fp8_base = true\nfp8_scaled = true", "model.qtype", "fp8_scaled"),
        ("edit_plus = true", "model.arch", "qwen_image_edit_plus"),
        ("model_version = 'edit-2511'", "model.arch", "qwen_image_edit_plus"),
        ("[optimizer]\nlearning_rate = 1e-4", "train.lr", 1e-4),
        (
            "save_every_n_steps = 100\nsave_last_n_steps = 200",
            "save.max_step_saves_to_keep",
            3,
        ),
        ("save_every_n_epochs = 2", "save.save_every_n_epochs", 2),
        ("max_data_loader_n_workers = 2", "datasets.0.num_workers", 2),
        ("output_dir = 'out'", "training_folder", "out"),
    ],
)
def test_an_option_lands_where_the_table_says(
    load: Callable[..., JobConfig], lines: str, place: str, value: object
) -> None:
    found = section(load(f"{JOB}{lines}\n"))
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_the_model_itself_is_trained_without_a_network(
    load: Callable[..., JobConfig],
) -> None:
    job = section(
        load(
            JOB.replace(
                'network_module = "networks.lora_qwen_image"\n', "full_bf16 = true\n"
            )
        )
    )
    assert (job.network.type, job.train.full_bf16, job.save.dtype) == (
        "full",
        True,
        "bfloat16",
    )
    assert job.save.layout == "single_file"  # as there: the transformer alone


def test_block_swap_of_a_whole_model_and_what_only_counts_there(
    load: Callable[..., JobConfig],
) -> None:
    full = JOB.replace('network_module = "networks.lora_qwen_image"\n', "")
    config = load(
        f'{full}blocks_to_swap = 1\nfused_backward_pass = true\nmem_eff_save = true\noptimizer_type = "adafactor"\n'
        'optimizer_args = ["relative_step=False"]\n'
    )
    assert (
        section(config).model.blocks_to_swap == 1
        and section(config).train.fused_backward_pass
    )
    assert any(
        "mem_eff_save: has no effect: one file is written" in line
        for line in config.warnings
    )
    lora = JOB.replace("networks.lora", "musubi_tuner.networks.lora")  # of its package
    config = load(f"{lora}full_bf16 = true\n")
    assert (
        section(config).network.type == "lora" and not section(config).train.full_bf16
    )
    assert any(
        "full_bf16: has no effect: an adapter is trained in float32, as in musubi-tuner."
        in line
        for line in config.warnings
    )


def test_a_transformer_that_lies_alone_is_used_in_place_of_the_folders(
    load: Callable[..., JobConfig],
) -> None:
    Path("alone").mkdir()
    shards = map(load_file, Path("model/transformer").glob("*.safetensors"))
    save_file(
        {name: tensor for shard in shards for name, tensor in shard.items()},
        "alone/dit.safetensors",
    )
    job = JOB.replace("model/transformer", "alone/dit.safetensors")
    model = section(load(f'{job}vae = "model/vae"\n')).model
    assert (model.name_or_path, model.transformer_path) == (
        "model",
        "alone/dit.safetensors",
    )
    shutil.copy(next(Path("model/vae").glob("*.safetensors")), "alone/vae.safetensors")
    model = section(load(f'{JOB}vae = "alone/vae.safetensors"\n')).model
    assert (model.name_or_path, model.transformer_path, model.vae_path) == (
        "model",
        None,
        "alone/vae.safetensors",
    )
    # the published model has other shapes
    told = faults(load, f"{job}edit_plus = true\n")
    assert len(told) == 1 and told[0].startswith("job.toml:1:7: dit: ")


def test_buckets_share_an_area_and_references_have_that_of_their_image(
    load: Callable[..., JobConfig],
) -> None:
    data = f'{DATA}control_directory = "pairs/before"\n'
    job = section(load(JOB, data))
    assert job.datasets[0].resolution == (110,) and job.datasets[0].control_path == (
        "pairs/before",
    )
    assert job.model.model_kwargs.match_target_res
    job = section(load(JOB, f"{data}control_resolution = [1024, 1024]\n"))
    assert not job.model.model_kwargs.match_target_res
    (told,) = faults(load, JOB, f"{data}control_resolution = [512]\n")
    assert told.startswith(
        "data.toml:10:22: datasets[0].control_resolution: [512] is not a size. "
    )
    kwargs = section(
        load(JOB, f"{data}control_resolution = [768, 512]\n")
    ).model.model_kwargs
    # whose square has that area
    assert (kwargs.control_resolution, kwargs.match_target_res) == (
        627,
        False,
    )


def test_every_mistake_of_both_files_is_told_with_its_place(
    load: Callable[..., JobConfig],
) -> None:
    lines = 'network_dim = 0\noptimizer_args = [\n  "b",\n]\nlearning_rat = 1\nfull_fp16 = true\nresolution = 512\n'
    more = 'batch_sise = 2\nvideo_directory = "x"\n[[datasets]]\nimage_directory = "pairs/after"\nbatch_size = 2\n'
    assert sorted(faults(load, JOB + lines, DATA + more)) == [
        "data.toml:10:1: datasets[0].video_directory: 'x' is not supported: videos cannot be trained here.",
        "data.toml:13:14: datasets[1].batch_size: 2, and 1 in another dataset: batch_size is one for all here.",
        "data.toml:9:1: datasets[0].batch_sise: unknown key. Did you mean 'batch_size'?",
        "job.toml:10:13: full_fp16: true is not supported yet. Leave this key out: trained weights are float32, or "
        "bf16 with train.full_bf16.",
        "job.toml:11:1: resolution: unknown key. It belongs in the dataset file.",
        "job.toml:5:15: network_dim: 0 is out of range: must be >= 1.",
        "job.toml:6:18: optimizer_args[0]: 'b' is not of the form name=value.",
        "job.toml:9:1: learning_rat: unknown key. Did you mean 'learning_rate'?",
    ]


def test_paths_of_another_machine_are_one_list_and_can_be_moved(
    load: Callable[..., JobConfig],
) -> None:
    (lost,) = faults(load, f'{JOB}sample_prompts = "/old/p.txt"\n')
    assert lost.startswith(
        "job.toml:5:18: sample_prompts: '/old/p.txt' is not on this machine."
    )
    here = Path.cwd()
    job = JOB.replace("model/transformer", "/old/disk/model/transformer")
    data = DATA.replace("pairs/after", "/old/disk/pairs/after")
    remedy = "is not on this machine. Where it lies elsewhere: --map {}=NEW"
    assert sorted(faults(load, job, data)) == [
        f"data.toml:8:19: datasets[0].image_directory: '/old/disk/pairs/after' {remedy.format('/old/disk')}",
        f"job.toml:1:7: dit: '/old/disk/model/transformer' {remedy.format('/old/disk')}",
    ]
    assert faults(load, JOB.replace('"data', '"/old/a/data')) == [
        f"job.toml:2:18: dataset_config: '/old/a/data.toml' {remedy.format('/old/a')}"
    ]
    drives = (
        JOB.replace('"data', "'D:/data")
        .replace('toml"', "toml'")
        .replace("model/tr", "/tr")
    )
    assert all(line.endswith("--map OLD=NEW") for line in faults(load, drives))
    assert (
        section(load(job, data, moved={"/old/disk": str(here)})).datasets[0].folder_path
        == f"{here}/pairs/after"
    )
    windows = job.replace(
        "/old/disk/model/transformer", "C:\\\\old\\\\model\\\\transformer"
    )
    assert (
        section(load(windows, moved={"C:\\old": str(here)})).model.name_or_path
        == f"{here}/model"
    )


@pytest.mark.parametrize(
    ("job", "fault"),
    [
        ("a = 1\nb = x\n", "job.toml:2:5: not valid TOML: this value is none of TOML."),
        (
            "job: extension\nconfig: {}\n",
            "job.toml:1:1: holds YAML, not TOML. Rename it",
        ),
        (
            "[data]\nx = 1\n",
            "job.toml:1:1: step 'train' trains nothing.",
        ),  # FluxFlow's guide, as TOML
        (
            "x = 1\n",
            "job.toml:1:1: is not the config of a supported program. Jobs of this program are YAML.",
        ),
        (
            DATA,
            "job.toml:1:1: is not the config of a supported program. It is a dataset file",
        ),
        (
            "[training]\nmax_train_epochs = 2\n",
            "job.toml:1:1: dataset_config: is required",
        ),
    ],
)
def test_a_file_that_is_something_else(
    load: Callable[..., JobConfig], job: str, fault: str
) -> None:
    assert faults(load, job)[0].startswith(fault)


@pytest.mark.slow
def test_a_config_trains_and_its_copy_is_the_same_job(
    run_py: Callable[..., Any], load: Callable[..., JobConfig]
) -> None:
    lines = (
        "edit_plus = true\nlearning_rate = 1e-3\nmax_train_steps = 2\nseed = 42\noutput_dir = 'out'\n"
        "optimizer_args = ['betas=0.9,0.95']\nmetadata_title = 'Mine'\nwandb_api_key = 'abc12345678'\n"
        "network_args = [\"exclude_patterns=['.*_mod.*']\"]\n"
    )
    direct = load(f"{JOB}{lines}", f'{DATA}control_directory = "pairs/before"\n')
    done = run_py("job.toml")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("left out, and therefore as in musubi-tuner: network_dim 4")
        == 1
    )
    with safe_open("out/my_lora/my_lora.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "Mine"
        names = list(file.keys())
        downs = [name for name in names if "lora_A" in name]
        assert {file.get_tensor(name).shape[0] for name in downs} == {4}
        assert not any("img_mod" in name for name in names)
    rates = [
        json.loads(line)["lr"]
        for line in Path("out/my_lora/metrics.jsonl").read_text().splitlines()
    ]
    assert rates == [1e-3, 1e-3]
    copy = Path("out/my_lora/config.yaml")
    assert (
        "lr: 0.001  # job.toml:6 learning_rate" in copy.read_text()
        and "abc12345678" not in copy.read_text()
    )
    again = load_job(copy, discover().find_config)
    settings = [
        config.processes[0].section.recorded_settings() for config in (direct, again)
    ]  # type: ignore[union-attr]
    assert settings[0] == settings[1] and direct.meta == again.meta


@pytest.fixture
def as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_py: Callable[..., Any]
) -> Callable[..., Path]:
    """Runs the command of a job of tests/golden/musubi_jobs.json on our tiny model;
    returns the folder of the run."""
    monkeypatch.chdir(tmp_path)

    def run(case: dict[str, Any], *changes: tuple[str, str]) -> Path:
        is_edit = "edit" in case["command"]
        spec = TinySpec(zero_cond_t=True) if is_edit else TinySpec(arch="qwen_image")
        write_tiny_model(Path("model"), spec)
        for index, (width, height) in enumerate(table("musubi_jobs")["images"]):
            for folder, names in (
                ("imgs", [f"{index}"]),
                ("refs", [f"{index}_{n}" for n in range(1 + index % 2)]),
            ):
                Path(folder).mkdir(exist_ok=True)
                for name in names:
                    Image.effect_noise(
                        (width + 50 * (folder == "refs"), height), 40
                    ).save(f"{folder}/{name}.png")
            Path(f"imgs/{index}.txt").write_text(f"caption {index}")
        parts = [
            (f"--{key} {value}", f"--{key} model/{part}") for key, value, part in PARTS
        ]
        command = reduce(
            lambda text, pair: text.replace(*pair), [*parts, *changes], case["command"]
        )
        Path("train.sh").write_text(f"{command}\n")
        Path("data.toml").write_text(case["data"])
        done = run_py("train.sh")
        assert done.returncode == 0, done.stderr
        return Path("out/my-lora")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", golden("musubi_jobs"), ids=lambda case: case["job"])
def test_a_command_does_what_its_own_trainer_did(
    as_there: Callable[..., Path], case: dict[str, Any]
) -> None:
    """Steps, the learning rate of each group in each of them, images, saved files and
    their dtype."""
    folder = as_there(case)
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == case["steps"] and lines[-1]["samples"] == case["images_seen"]
    groups = ["lr/base", "lr/base up"] if len(case["rates"][0]) == 2 else ["lr"]
    for line, rates in zip(lines, case["rates"], strict=True):
        assert [line[group] for group in groups] == pytest.approx(rates, rel=1e-6), (
            line["step"]
        )
    saved = {
        name: (step, dtype)
        for name, (step, dtype) in case["files"].items()
        if name != "final"
    }
    last = {case["steps"]} if "epochs" in case["command"] else set()
    found = {
        int(path.stem.rpartition("_")[2]): path
        for path in folder.glob("my-lora_*.safetensors")
    }
    assert found.keys() == {step for step, _ in saved.values()} | last
    for path in (folder / "my-lora.safetensors", *found.values()):
        assert {str(tensor.dtype) for tensor in load_file(path).values()} == {
            case["files"]["final"][1]
        }


@pytest.mark.slow
def test_an_adapter_begins_as_there(as_there: Callable[..., Path]) -> None:
    """The file of a step whose learning rate is 0: layers, shapes, alpha, the bound of
    one factor, the other zero."""
    changes = (
        ("--max_train_steps 23", "--max_train_steps 5"),
        ("--save_every_n_steps 5", "--save_every_n_steps 1"),
    )
    (case,) = golden("musubi_jobs", job="steps")
    file = (
        as_there(case, *changes, ("--save_precision bf16", ""))
        / "my-lora_000000001.safetensors"
    )
    # the file has it in its matrices
    ours, alpha = (
        load_file(file),
        float(read_metadata(file)["alpha"]),
    )
    theirs = table("musubi_jobs")["initial_adapter"]
    layers = {name.rpartition(".lora_A")[0] for name in ours if "lora_A" in name}
    assert {
        f"lora_unet_{name.partition('.')[2].replace('.', '_')}" for name in layers
    } == theirs.keys()
    for name in layers:
        there = theirs[f"lora_unet_{name.partition('.')[2].replace('.', '_')}"]
        down, up = (ours[f"{name}.{end}"] for end in ("lora_A.weight", "lora_B.weight"))
        assert alpha == there["alpha"]
        for tensor, (shape, largest) in (
            (down, there["lora_down.weight"]),
            (up, there["lora_up.weight"]),
        ):
            assert list(tensor.shape) == shape
            assert tensor.abs().max().item() == pytest.approx(largest, rel=0.05)


def test_a_table_of_images_names_them_from_the_working_directory(
    load: Callable[..., JobConfig], run_py: Callable[..., Any]
) -> None:
    """Two references of an image, from another folder; images that the table does not
    name are not used."""
    Path("tables").mkdir()
    rows = [
        {
            "image_path": "pairs/after/coffee.jpg",
            "caption": "a",
            "control_path_0": "pairs/before/coffee.jpg",
        },
        {
            "image_path": "pairs/after/rocket.jpg",
            "caption": "b",
            "control_path_0": "pairs/before/rocket.jpg",
        },
    ]
    rows[1] |= {"control_path_3": "pairs/before/astronaut.jpg"}
    Path("tables/images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DATA.replace(
        'image_directory = "pairs/after"', 'image_jsonl_file = "tables/images.jsonl"'
    )
    load(
        f"{JOB}edit_plus = true\nmax_train_steps = 2\n",
        f'{data}cache_directory = "cache"\nnum_repeats = 3\n',
    )
    plan = run_py("job.toml", "--dry-run", "-v")
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.splitlines()[1].startswith(
        "  left out, and therefore as in musubi-tuner: network_dim 4, "
    )
    assert (
        "pairs/after: 2 x 3 = 6 samples" in plan.stdout
        and "control images: 1 with 1, 1 with 2" in plan.stdout
    )


def test_numbered_references_of_one_folder_and_several_datasets(
    load: Callable[..., JobConfig], run_py: Callable[..., Any]
) -> None:
    for name in ("astronaut", "coffee", "rocket"):
        shutil.copy(f"pairs/before/{name}.jpg", f"pairs/before/{name}_1.jpg")
        Path(f"pairs/before/{name}.jpg").rename(f"pairs/before/{name}_0.jpg")
    more = 'control_directory = "pairs/before"\n[[datasets]]\nimage_directory = "pairs/after"\nresolution = 64\n'
    load(
        f"{JOB}edit_plus = true\n",
        f'{DATA}{more}num_repeats = 2\ncontrol_directory = "pairs/before"\n',
    )
    plan = run_py("job.toml", "--dry-run", "-v")
    assert plan.returncode == 0, plan.stderr
    assert (
        plan.stdout.count("control images: 3 with 2") == 2
        and "3 x 1 + 3 x 2 = 9 samples" in plan.stdout
    )


@pytest.mark.parametrize(
    ("job", "data", "fault"),
    [
        (
            JOB.replace('"model/transformer"', "[1, 2]"),
            DATA,
            "job.toml:1:7: dit: a list is not text.",
        ),
        (
            JOB.replace('"my_lora"', '["a"]'),
            DATA,
            "job.toml:4:15: output_name: a list is not text.",
        ),
        (
            JOB,
            "general = 1\n[[datasets]]\nimage_directory = 'pairs/after'\n",
            "data.toml:1:11: general: 1 is not a",
        ),
        (
            JOB,
            "datasets = [1]\n",
            "data.toml:1:12: datasets[0]: 1 is not a table of keys and values.",
        ),
        (JOB, "", "data.toml:1:1: datasets: is required: at least one [[datasets]]."),
        (JOB, "a = [\n", "data.toml:1:1: not valid TOML: a bracket is not closed"),
        (
            JOB,
            f"{DATA}control_directory = {{a = 1}}",
            "data.toml:9:21: datasets[0].control_directory: a mapping is",
        ),
        (
            f"{JOB}network_args = [[1]]\n",
            DATA,
            "job.toml:5:16: network_args[0]: a list is not of the form name=value.",
        ),
        (JOB.replace("model/tr", "x" * 300), DATA, "job.toml:1:7: dit: "),
        (
            JOB,
            DATA.replace("et = true", "et = 'true'"),
            "data.toml:4:17: general.enable_bucket: 'true' is not true or",
        ),
        (
            f"{JOB}edit_plus = 'true'\n",
            DATA,
            "job.toml:5:13: edit_plus: 'true' is not true or false.",
        ),
        (JOB.replace("data.toml", "x" * 300), DATA, "job.toml:2:18: dataset_config: "),
        (
            JOB.replace("data.toml", "pairs"),
            DATA,
            "job.toml:2:18: dataset_config: 'pairs' is not a file. Give the file",
        ),
        (
            JOB.replace("data.toml", "/dev/zero"),
            DATA,
            "job.toml:2:18: dataset_config: '/dev/zero' is not a file. Give",
        ),
        (
            JOB.replace("/transformer", "/vae"),
            DATA,
            "job.toml:1:7: dit: 'model/vae' is another part of the model. Give",
        ),
        (
            f"{JOB}[[datasets]]\na = 1\n",
            DATA,
            "job.toml:5:1: datasets: unknown key. It belongs in the dataset file.",
        ),
    ],
)
def test_a_value_of_another_kind_is_one_line(
    load: Callable[..., JobConfig], job: str, data: str, fault: str
) -> None:
    (found,) = faults(load, job, data)
    assert found.startswith(fault)


OFF = (
    "blocks_to_swap max_train_epochs ddp_timeout lr_decay_steps lr_warmup_steps min_timestep network_dropout "
    "num_timestep_buckets sample_every_n_steps sample_every_n_epochs save_every_n_epochs save_every_n_steps "
    "save_last_n_epochs save_last_n_epochs_state save_last_n_steps scale_weight_norms compile_cache_size_limit "
    "vae_chunk_size logit_mean lr_scheduler_timescale"
)
NOT_GIVEN = (
    "additional_parameters base_weights base_weights_multiplier huggingface_repo_id log_prefix log_with logging_dir "
    "lr_scheduler_args lr_scheduler_type metadata_title network_args network_weights optimizer_args resume "
    "sample_prompts show_timesteps training_comment wandb_api_key"
)


def test_what_its_front_end_writes_for_off_is_off(
    load: Callable[..., JobConfig],
) -> None:
    """It writes every field: 0 and an empty text where nothing is asked for. Source:
    its guide of fields."""
    lines = [f"{key} = 0" for key in OFF.split()] + [
        f'{key} = ""' for key in NOT_GIVEN.split()
    ]
    lines += [
        "caching_latent_skip_existing = true",
        'dit_dtype = "bfloat16"',
        'dynamo_backend = "NO"',
    ]
    written, plain = (
        load(text).processes[0].section for text in (JOB + "\n".join(lines), JOB)
    )
    for part in ("model", "network", "train", "training_seed", "datasets", "resume"):
        assert written.model_dump()[part] == plain.model_dump()[part]
    assert (
        (written.save.interval(), written.save.files_to_keep())
        == ((0, 0), 0)
        == (plain.save.interval(), 0)
    )
    assert written.sample.interval() == (0, 0) and not written.sample.samples


@pytest.mark.parametrize("key", ["output_dir", "vae", "text_encoder"])
def test_what_may_not_be_empty_there_is_refused(
    load: Callable[..., JobConfig], key: str
) -> None:
    for nothing in ('""', "'  '"):
        told, *_ = faults(load, f"{JOB}{key} = {nothing}\n")
        assert (
            told.startswith("job.toml:5:")
            and f"{key}: has no value, which is an error there too. " in told
        )


def test_adafactor_has_the_defaults_of_its_class_as_there(
    load: Callable[..., JobConfig],
) -> None:
    job = f'{JOB}optimizer_type = "AdaFactor"\n'
    config = load(
        f'{job}optimizer_args = ["relative_step=False", "weight_decay=0.1"]\n'
    )
    assert section(config).train.optimizer_params == {
        "relative_step": "False", "weight_decay": 0.1, "scale_parameter": True,
    }  # fmt: skip
    assert "scale_parameter true" in config.notes[0]
    config = load(
        f'{job}optimizer_args = ["relative_step=False", "scale_parameter=False"]\n'
    )
    assert section(config).train.optimizer_params["scale_parameter"] == "False"
    (told,) = faults(load, job)
    assert told.startswith(
        "job.toml:5:18: optimizer_type: 'AdaFactor' takes a learning rate of its own there, and none"
    )
    load(f"{job}{told.split('Write ')[1].split(', as flags ')[0]}\n")
    (told,) = faults(load, f'{job}optimizer_args = ["relative_step=True"]\n')
    assert (
        "relative_step" in told and "is not possible: the learning rate is 'lr'" in told
    )


@pytest.mark.parametrize(
    ("line", "message", "instead"),
    [
        (
            'resume = "x-state"',
            "states of musubi-tuner are not read. Give its LoRA file as 'network_weights'.",
            'network_weights = "of.safetensors"',
        ),
        (
            "save_last_n_steps_state = 2",
            "the newest two states are kept. Give 'save.max_states_to_keep' in the job that 'run.py import' writes.",
            "",
        ),
        (
            'output_dir = ""',
            "Give the folder of the results, or leave the key out for 'output'",
            'output_dir = "results"',
        ),
    ],
)
def test_what_is_not_read_is_answered_with_what_is(
    load: Callable[..., JobConfig], line: str, message: str, instead: str
) -> None:
    save_file(
        {
            "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": torch.ones(
                4, 64
            )
        },
        "of.safetensors",
    )
    try:
        told = load(f"{JOB}{line}\n").warnings
    except ConfigErrors as error:
        told = str(error).splitlines()
    assert message in "\n".join(told)
    assert message not in "\n".join(load(f"{JOB}{instead}\n").warnings)


FRONT_END = """\
training_mode = "LoRA Training"
dataset_config_mode = "Generate from Folder Structure"
dataset_resolution_width = 1328
create_missing_captions = true
dit_in_channels = 16
flow_shift = 7
fused_backward_pass = true
sample_prompts = "p.txt"
sample_width = 64
sample_height = 96
sample_steps = 7
sample_guidance_scale = 1
sample_seed = 99
sample_discrete_flow_shift = 2.2
sample_cfg_scale = 2.5
sample_negative_prompt = "blurry"
disable_prompt_enhancement = false
"""
"""Keys of FurkanGozukara/SECourses_Musubi_Trainer, qwen_image_defaults.toml."""


def test_keys_of_a_front_end_beside_the_options(load: Callable[..., JobConfig]) -> None:
    Path("p.txt").write_text("a cat\na dog --w 128 --s 3\n")
    config = load(f"{JOB}{FRONT_END}")
    cat, dog = section(config).sample.sample_items()
    assert (cat.width, cat.height, cat.sample_steps, cat.guidance_scale) == (
        64,
        96,
        7,
        2.5,
    )
    assert (cat.seed, cat.flow_shift, cat.neg, dog.width, dog.sample_steps) == (
        99,
        2.2,
        "blurry",
        128,
        3,
    )
    assert (
        not section(config).train.fused_backward_pass
        and section(config).network.type == "lora"
    )
    told = [line for line in config.warnings if "front end" in line]
    assert len(told) == 1 and "6 more such keys" in told[0]
    assert told[0].startswith("job.toml:6:1: dataset_config_mode: ")
    assert any(
        "fused_backward_pass: has no effect: an adapter is trained without it" in w
        for w in config.warnings
    )
    off = load(f"{JOB}{FRONT_END.replace('2.2', '0').replace('= 99', '= -1')}")
    assert section(off).sample.sample_items()[0].flow_shift is None
    as_written = load(
        f"{JOB}{FRONT_END.replace('enhancement = false', 'enhancement = true')}"
    )
    assert section(as_written).sample.sample_items()[0].width == 256
    full = load(
        f"{JOB}{FRONT_END.replace('LoRA Training', 'DreamBooth Fine-Tuning')}network_dim = 128\n"
    )
    assert (
        section(full).network.type == "full" and section(full).train.fused_backward_pass
    )


def test_options_without_effect_are_named_in_one_line(
    load: Callable[..., JobConfig],
) -> None:
    keys = "xformers split_attn persistent_data_loader_workers vae_dtype save_state"
    given = "".join(f"{key} = true\n" for key in keys.split())
    (told,) = [line for line in load(f"{JOB}{given}").warnings if "5 keys" in line]
    assert told.endswith(
        f"5 keys have no effect: {', '.join(keys.split())}. docs/config.md says why."
    )


def test_paths_as_windows_writes_them(load: Callable[..., JobConfig]) -> None:
    job = JOB.replace('"model/transformer"', "'.\\model\\transformer'").replace(
        '"data', "'.\\data"
    )
    job = job.replace('toml"', "toml'") + "output_dir = 'out\\a'\n"
    data = DATA.replace('"pairs/after"', "'pairs\\after'")
    found = section(load(job, data))
    assert (found.datasets[0].folder_path, found.training_folder, found.model.name_or_path) == (
        "pairs/after", "out/a", "model",
    )  # fmt: skip
    assert faults(load, f"{JOB}output_dir = 'D:/out'\nlogging_dir = 'E:\\log'\n") == [
        "job.toml:5:14: output_dir: 'D:/out' is a folder of another machine. 'D:/' begins a path of Windows: "
        "--map D:=NEW says where it is now; in WSL, C: is '/mnt/c'.",
        "job.toml:6:15: logging_dir: 'E:\\\\log' is a folder of another machine. 'E:\\\\' begins a path of Windows: "
        "--map E:=NEW says where it is now; in WSL, C: is '/mnt/c'.",
    ]
    assert (
        section(
            load(f"{JOB}output_dir = 'D:/out'\n", moved={"D:": "new"})
        ).training_folder
        == "new/out"
    )


def test_a_dataset_file_may_be_json(load: Callable[..., JobConfig]) -> None:
    job = JOB.replace("data.toml", "data.json")
    Path("data.json").write_text(
        '{"datasets": [{"image_directory": "pairs/after", "resolution": 96}]}'
    )
    assert (
        str(section(load(job)).datasets[0].resolution[0]) == "{width: 96, height: 96}"
    )
    Path("data.json").write_text(
        '{"datasets": [{"image_directory": "pairs/after", "batch_sise": 1}]}'
    )
    assert faults(load, job) == [
        "data.json:1:50: datasets[0].batch_sise: unknown key. Did you mean 'batch_size'?"
    ]


LAYERED = """\
model_version = "layered"
remove_first_image_from_target = true
sample_prompts = "layered.txt"
"""


@pytest.fixture
def of_layers(
    load: Callable[..., JobConfig], layered_model: Path, tmp_path: Path
) -> Callable[..., JobConfig]:
    """As `load`, of Qwen-Image-Layered and of images with layers."""
    Path("model").unlink()
    Path("model").symlink_to(layered_model)
    for number, path in enumerate(write_layers(tmp_path / "layered", 2)):
        path.rename(path.with_name(f"image1_{number}.png" if number else "image1.png"))
    Path("layered.txt").write_text(
        "a poster --w 640 --h 512 --f 2 --ci layered/image1.png --l 4\n"
    )

    def load_texts(
        lines: str = LAYERED, data: str = DATA.replace("pairs/after", "layered")
    ) -> JobConfig:
        return load(f"{JOB}{lines}", data + "multiple_target = true\n")

    return load_texts


def test_keys_of_layers_are_ours(of_layers: Callable[..., JobConfig]) -> None:
    """Its example of names is image1.png with image1_1.png, image1_2.png
    (docs/dataset_config.md, 30c658c4)."""
    job = section(of_layers())
    assert (job.model.arch, job.model.model_kwargs.composite_target) == (
        "qwen_image_layered",
        False,
    )
    (dataset,) = job.datasets
    assert dataset.layers_suffix == "_"
    (sample,) = scan_datasets([dataset], None).samples
    assert [Path(path).name for path in sample.layers] == [
        "image1_1.png",
        "image1_2.png",
    ]
    (drawn,) = job.sample_pictures()
    assert (drawn.layers, drawn.ctrl_img, drawn.width, drawn.guidance_scale) == (
        2,
        ("layered/image1.png",),
        640,
        4,
    )


@pytest.mark.parametrize(
    ("lines", "composite", "layers"),
    [
        (LAYERED.replace("true", "false"), True, 2),
        (LAYERED.replace("remove_first_image_from_target = true\n", ""), True, 2),
    ],
)
def test_layers_with_their_picture(
    of_layers: Callable[..., JobConfig], lines: str, composite: bool, layers: int
) -> None:
    job = section(of_layers(lines))
    assert job.model.model_kwargs.composite_target is composite
    assert [one.layers for one in job.sample_pictures()] == [layers]


def test_what_of_layers_is_not_read_is_said(
    of_layers: Callable[..., JobConfig],
) -> None:
    said = of_layers(f"{LAYERED}timestep_sampling = 'qwen_shift'\n").warnings
    assert [
        line.partition(": ")[2]
        for line in said
        if "qwen_shift" in line or "distribution" in line
    ] == [f"timestep_sampling: {QWEN_SHIFT_OF_LAYERS}"]
    Path("images.jsonl").write_text(
        '{"image_path": "layered/image1.png", "caption": "a"}\n'
    )
    table = DATA.replace(
        'image_directory = "pairs/after"', 'image_jsonl_file = "images.jsonl"'
    )
    assert [
        line.partition(": ")[2] for line in faults(lambda: of_layers(data=table))
    ] == [
        "datasets[0].multiple_target: layers are not read from a table. Name those of a.png a_0.png, a_1.png and so "
        "on, beside it, and give 'image_directory'."
    ]


@pytest.mark.parametrize(
    "key", ["automatic_prompt_lang_for_layered = 'en'", "output_layers = 4"]
)
def test_what_belongs_to_its_other_commands_is_refused(
    of_layers: Callable[..., JobConfig], key: str
) -> None:
    (fault,) = faults(lambda: of_layers(f"{LAYERED}{key}\n"))
    assert key.split()[0] in fault


def test_prompts_in_other_files_are_refused(load: Callable[..., JobConfig]) -> None:
    Path("p.json").write_text('[{"prompt": "a cat"}]')
    (told,) = faults(load, f'{JOB}sample_prompts = "p.json"\n')
    assert "sample_prompts: is not a list. Write one prompt per line" in told


def test_flags_of_a_front_end_are_options(load: Callable[..., JobConfig]) -> None:
    flags = '--max_grad_norm 0.5 --network_args "loraplus_lr_ratio=4" --seed=3'
    more = f"max_train_steps = 7\nadditional_parameters = '{flags}'\n"
    job = section(load(f"{JOB}{more}"))
    assert (job.train.max_grad_norm, job.network.loraplus_lr_ratio) == (0.5, 4)
    assert (job.training_seed, job.train.steps) == (3, 7)
    told = faults(
        load, f"{JOB}{more.replace('--seed=3', '--sed=3 --max_train_steps 8')}"
    )
    assert any("--sed: unknown flag. Did you mean 'seed'?" in line for line in told)
    assert any("max_train_steps is 7, and 8" in line for line in told)


def test_a_yaml_job_is_told_where_a_dataset_file_is_read(
    load: Callable[..., JobConfig],
) -> None:
    load()
    Path("job.yaml").write_text(
        "job: extension\nconfig:\n  name: x\n  process:\n    - type: sd_trainer\n"
        "      model: {name_or_path: model}\n      dataset_config: data.toml\n"
    )
    with pytest.raises(ConfigErrors) as error:
        load_job("job.yaml", discover().find_config)
    assert (
        "job.yaml:7:7: process[0].dataset_config: unknown key. musubi-tuner's "
        "'dataset_config' is 'datasets' here."
    ) in str(error.value)

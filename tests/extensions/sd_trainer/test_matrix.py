"""Whole jobs of every network, of optimizers that differ in what they keep or how they
step, of types of the base under DoRA, which reads its weights, and of schedules that
differ in kind.

To an optimizer a network is a list of matrices, a schedule is a function of the step,
and the base never reaches either: each one of them is tested in toolkit/optim and
toolkit/memory. Each row trains 4 steps with a save after 2, resumes from that save,
ends in the same bytes, and loads. Then what saves memory or time, on members of the
family: without it the same weights are learned.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

from tests.running import run_job
from toolkit.contracts.network_kinds import KINDS
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.number_types import TYPES_OF_PRODUCTS
from toolkit.optim.optimizer_args import (
    OPTIMIZERS,
    is_schedule_free,
    requires_single_lr,
)
from toolkit.registry import FAMILIES

ROWS: list[tuple[str, str, str, str, dict]] = [
    ("full", "muon", "cosine", "16 bit", {}),
    ("full", "adamw8bit", "constant_with_warmup", "16 bit", {}),
    ("full", "schedulefree_adamw", "constant", "16 bit", {}),
    ("dora", "prodigy", "cosine_with_restarts", "int4", {}),
    ("dora", "lion", "rex", "fp8_scaled", {}),
    ("dora", "sgd", "step", "uint3", {"step_size": 2}),
    ("loha", "came", "piecewise_constant", "fp8 products", {"step_rules": "1:2,0.5"}),
    ("lokr", "stableadamw", "plateau", "int8 products", {}),
    ("lora", "torch.optim.NAdam", "CosineAnnealingLR", "16 bit", {}),
]
"""Network, optimizer, schedule, type of the base, and parameters of the schedule."""


def section_of(
    trainer: Callable[..., dict],
    photos: Path,
    network: str,
    optimizer: str,
    schedule: str = "constant",
    base: str = "16 bit",
    params: dict | None = None,
) -> dict:
    package = re.split("[.:]", OPTIMIZERS.get(optimizer, optimizer))[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    sizes = {} if network == "full" else {"linear": 2, "linear_alpha": 2}
    section = trainer(
        photos,
        network={"type": network, **sizes},
        save={"dtype": "float32", "save_every": 2},
        train={
            "steps": 4,
            "dtype": "bf16",
            "optimizer": optimizer,
            "lr": 1.0 if requires_single_lr(optimizer) or optimizer == "sgd" else 0.01,
            "lr_scheduler": schedule,
            "lr_scheduler_params": params or {},
            "lr_warmup_steps": 0 if is_schedule_free(optimizer) else 1,
        },
    )
    kind = base.removesuffix(" products")
    if kind != base:
        base = TYPES_OF_PRODUCTS[kind]
        section["model"]["quantized_products"] = kind
    if base != "16 bit":
        section["model"] |= {"quantize": True, "qtype": base}
    return section


def what_is_saved(run: Path) -> dict[str, bytes]:
    """A network file, or the files of a model folder."""
    found = [*run.glob("job.safetensors"), *run.glob("job/**/*")]
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in found
        if path.is_file()
    }


def loads(run: Path, kind: str, model: Path) -> bool:
    """Whether the file holds a change of every layer, or the folder a model that draws
    finite numbers."""
    if kind != "full":
        changes = load_adapter_file(
            run / "job.safetensors", FAMILY.linear_layers(model)
        )
        return len(changes) == 28 and all(
            bool(change.delta().isfinite().all()) for change in changes.values()
        )
    loaded = QwenImageTransformer2DModel.from_pretrained(
        run / "job" / "transformer", torch_dtype=torch.float32
    )
    return all(bool(parameter.isfinite().all()) for parameter in loaded.parameters())


@pytest.fixture
def photos(make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_pictures(tmp_path / "photos", "a", "b")


def test_every_network_has_a_row() -> None:
    # the others: test_lycoris_library.py
    own = {name for name, kind in KINDS.items() if not kind.library_class}
    assert {network for network, *_ in ROWS} == own


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: "-".join(row[:4]).replace(" ", "_")
)
def test_it_trains_saves_goes_on_and_loads(
    row: tuple, tiny_model: Path, trainer, write_job, photos: Path, tmp_path: Path
) -> None:
    section = section_of(trainer, photos, *row)
    run_job(write_job(section))
    run = tmp_path / "output" / "job"
    whole = what_is_saved(run)
    assert whole and loads(run, row[0], tiny_model)
    run_job(write_job({**section, "resume": 2}))
    assert what_is_saved(run) == whole


# ---------------------------------------------------------------- savings, on members
# of the family

MEMBER_SPECS = {
    "2.1": TinySpec(arch="qwen_image_2"),
    "2511": TinySpec(zero_cond_t=True),
}

LORA = {"network": {"type": "lora", "linear": 2, "linear_alpha": 2}}
TRAINED: dict[str, dict[str, dict]] = {
    "int8": {**LORA, "model": {"quantize": True, "qtype": "int8"}},
    "ARA": {
        **LORA,
        "model": {
            "quantize": True,
            "qtype": "uint3",
            "accuracy_recovery_adapter": "auto",
        },
    },
    "the model itself": {"network": {"type": "full"}},
}

SAVINGS: dict[str, dict[str, dict]] = {
    "cheap": {"train": {"gradient_checkpointing": "cheap"}},
    "keep attention": {"train": {"gradient_checkpointing": "keep_attention"}},
    "table, keep attention": {
        "model": {"modulation_table": True},
        "train": {"gradient_checkpointing": "keep_attention"},
    },
    "swap, full": {
        "model": {"blocks_to_swap": 1},
        "train": {"gradient_checkpointing": "full"},
    },
    "compile": {"train": {"compile": {"enabled": True, "backend": "eager"}}},
}
WITHOUT_SAVINGS = {
    "model": {"blocks_to_swap": 0, "modulation_table": False},
    "train": {"gradient_checkpointing": "none", "compile": {"enabled": False}},
}

PARTS: dict[str, dict[str, dict]] = {
    "EMA, validation": {
        "train": {"ema_config": {"use_ema": True, "ema_decay": 0.9}},
        "validation": {"fraction": 0.5, "every": 2, "timesteps": 1},
    },
    "two batches": {"train": {"gradient_accumulation": 2}},
    "prior held": {"train": {"blank_prompt_preservation": True}},
    "no cache": {"datasets": {"cache": False}},
}

MEMBER_ROWS = [
    ("2.1", "int8", "compile", "two batches"),
    ("2.1", "int8", "swap, full", "prior held"),
    ("2.1", "ARA", "cheap", "prior held"),
    ("2511", "ARA", "swap, full", "no cache"),
    ("2511", "int8", "table, keep attention", "EMA, validation"),
    ("2511", "the model itself", "keep attention", "two batches"),
]
"""Each member, kind of training, saving and part, and those that meet in a layer."""


def with_keys(section: dict, *changes: dict[str, dict]) -> dict:
    """The section with the keys of each change in its sections; those of `datasets` in
    each of them."""
    section = copy.deepcopy(section)
    for name, keys in (
        (name, keys) for change in changes for name, keys in change.items()
    ):
        for target in (
            section["datasets"]
            if name == "datasets"
            else [section.setdefault(name, {})]
        ):
            target.update(copy.deepcopy(keys))
    return section


def saved_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Of the network file, or of the transformer of the model folder."""
    files = sorted(
        [*run.glob("job.safetensors"), *run.glob("job/transformer/*.safetensors")]
    )
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def member_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("members") / name for name in MEMBER_SPECS}
    for name, folder in folders.items():
        write_tiny_model(folder, MEMBER_SPECS[name])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "trained", "saving", "part"),
    MEMBER_ROWS,
    ids=lambda value: value.replace(" ", "_").replace(",", ""),
)
def test_a_member_trains_with_a_saving_what_it_trains_without(
    member: str,
    trained: str,
    saving: str,
    part: str,
    member_folders,
    trainer,
    write_job,
    make_pictures,
    photos: Path,
    tmp_path: Path,
) -> None:
    """The run goes on from step 1 once more, without the saving, and ends in the same
    weights."""
    base = trainer(
        photos,
        network={},
        save={"dtype": "float32", "save_every": 1, "max_states_to_keep": 0},
        train={"steps": 3},
    )
    base["model"]["name_or_path"] = str(member_folders[member])
    control: dict[str, dict] = {}
    if FAMILIES.load(MEMBER_SPECS[member].arch).max_references:
        before = make_pictures(tmp_path / "before", "a", "b")
        control = {"datasets": {"control_path": [str(before)]}}
    chosen = TRAINED[trained], PARTS[part], SAVINGS[saving]
    section = with_keys(base, WITHOUT_SAVINGS, control, *chosen)
    run = tmp_path / "output" / "job"
    run_job(write_job(section))
    with_it = saved_tensors(run)
    run_job(write_job({**with_keys(section, WITHOUT_SAVINGS), "resume": 1}))
    plain = saved_tensors(run)
    assert plain.keys() == with_it.keys()
    assert (
        trained == "the model itself"
        or max(float(plain[n].abs().max()) for n in plain if "lora_B" in n) > 5e-3
    )
    for name, tensor in plain.items():
        assert (with_it[name] - tensor).abs().max() < 1e-5, (
            f"{name}: a step changes it by up to 0.01"
        )


@pytest.mark.slow
def test_layers_of_2_1_are_chosen_by_their_names(
    member_folders, trainer, write_job, photos: Path, tmp_path: Path
) -> None:
    section = trainer(photos, train={"steps": 1}, save={"dtype": "float32"})
    section["network"]["network_kwargs"] = {
        "only_if_contains": ["transformer_blocks.1."],
        "ignore_if_contains": ["attn"],
    }
    section["model"]["name_or_path"] = str(member_folders["2.1"])
    run_job(write_job(section))
    stems = {
        name.removesuffix(".alpha").partition(".lora_")[0]
        for name in saved_tensors(tmp_path / "output" / "job")
    }
    block = "transformer_blocks.1.img_mlp"
    assert stems == {f"{block}.{layer}" for layer in ("gate_layer", "proj", "out")}

"""Every optimizer, those that treat matrices or bfloat16 in a way of their own on the
model itself, every type of the base under DoRA, which reads its weights, every other
network, and every schedule.

Not every optimizer with every kind of network, schedule or base: to an optimizer a
network is a list of matrices, a schedule is a function of the step, the same for any
optimizer, and the base never reaches one. How each resumes from its state is tested in
toolkit/optim/test_optimizers.py. Each row trains 4 steps with a save after 2, resumes
from that save, ends in the same bytes, and loads. Then what saves memory or time, on
members of the family: without it the same weights are learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

from tests.optimizer_names import INSTALLED
from tests.pairwise import Row, pairwise
from tests.running import run_job
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.number_types import QTYPES
from toolkit.optim.optimizer_args import is_schedule_free, requires_single_lr
from toolkit.optim.schedules import SCHEDULES
from toolkit.registry import FAMILIES

ALIKE = ("int2", "uint2", "uint4", "uint5", "uint6")
"""They differ from int4, uint3 and uint7 in a number of bits
(toolkit/memory/test_quantization_quantize.py)."""

OPTIMIZER_NAMES = [*INSTALLED, "torch.optim.NAdam"]
"""Of other packages: below, and toolkit/optim/test_trial.py."""
BASES = ["16 bit", *(qtype for qtype in QTYPES if qtype not in ALIKE)]

OF_THE_MODEL = (
    "adamw",
    "adamw8bit",
    "muon",
    "adafactor",
    "prodigy",
    "schedulefree_adamw",
)
OTHERS = [("lora", "int8"), ("loha", "int4"), ("lokr", "int8"), ("lora", "float8")]

SCHEDULE_PARAMS = {
    "step": {"step_size": 2},
    "exponential": {"gamma": 0.5},
    "piecewise_constant": {"step_rules": "1:2,0.5"},
}

LEARNING_RATES = {"sgd": 1.0}


def rows() -> Iterator[dict[str, str]]:
    """What the config refuses is left out, and tested where it is refused."""
    schedules, optimizers = (
        cycle(SCHEDULES),
        iter(name for name in OPTIMIZER_NAMES if name not in OF_THE_MODEL),
    )
    chosen = [("full", "16 bit", optimizer) for optimizer in OF_THE_MODEL]
    chosen += [("dora", base, next(optimizers, "adamw")) for base in BASES]
    chosen += [(kind, base, next(optimizers, "adamw")) for kind, base in OTHERS]
    chosen += [("lora", "16 bit", optimizer) for optimizer in optimizers]
    for network, base, optimizer in chosen:
        schedule = "constant" if is_schedule_free(optimizer) else next(schedules)
        yield {
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
            "base": base,
        }


ROWS = [*rows()]


def section_of(row: Row, trainer: Callable[..., dict], photos: Path) -> dict:
    optimizer = row["optimizer"]
    section = trainer(
        photos,
        network={
            "type": row["network"],
            **({} if row["network"] == "full" else {"linear": 2, "linear_alpha": 2}),
        },
        save={"dtype": "float32", "save_every": 2},
        train={
            "steps": 4,
            "dtype": "bf16",
            "optimizer": optimizer,
            "lr": 1.0
            if requires_single_lr(optimizer)
            else LEARNING_RATES.get(optimizer, 0.01),
            "lr_scheduler": row["schedule"],
            "lr_scheduler_params": SCHEDULE_PARAMS.get(row["schedule"], {}),
            **({} if is_schedule_free(optimizer) else {"lr_warmup_steps": 1}),
        },
    )
    if row["base"] != "16 bit":
        section["model"] |= {"quantize": True, "qtype": row["base"]}
    return section


def what_is_saved(run: Path, name: str) -> dict[str, bytes]:
    """A network file, or the files of a model folder."""
    found = run / name
    files = (
        [found]
        if found.is_file()
        else sorted(p for p in found.rglob("*") if p.is_file())
    )
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def loads(run: Path, name: str, kind: str, model: Path) -> bool:
    """Whether the file holds a change of every layer, or the folder a model that draws
    finite numbers."""
    if kind != "full":
        changes = load_adapter_file(run / name, FAMILY.linear_layers(model))
        return len(changes) == 28 and all(
            bool(change.delta().isfinite().all()) for change in changes.values()
        )
    loaded = QwenImageTransformer2DModel.from_pretrained(
        run / name / "transformer", torch_dtype=torch.float32
    )
    return all(bool(parameter.isfinite().all()) for parameter in loaded.parameters())


def test_the_rows_hold_what_they_are_to_hold() -> None:
    def met(key: str, *kinds: str) -> set[str]:
        return {row[key] for row in ROWS if row["network"] in kinds}

    # the others: test_lycoris_library.py
    own = {name for name, kind in KINDS.items() if not kind.library_class}
    assert met("optimizer", *KINDS) == {*OPTIMIZER_NAMES} and met("base", "dora") == {
        *BASES
    }
    assert met("network", *KINDS) == own and met("schedule", *KINDS) == {*SCHEDULES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=lambda row: "-".join(str(value).replace(" ", "_") for value in row.values()),
)
def test_it_trains_saves_goes_on_and_loads(
    row: Row,
    tiny_model: Path,
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_pictures(tmp_path / "photos", "a", "b")
    section = section_of(row, trainer, photos)
    run_job(write_job(section))
    run = tmp_path / "output" / "job"
    name = "job" if row["network"] == "full" else "job.safetensors"
    whole = what_is_saved(run, name)
    assert whole and loads(run, name, row["network"], tiny_model)
    run_job(write_job({**section, "resume": 2}))
    assert what_is_saved(run, name) == whole


# ---------------------------------------------------------------- optimizers by their
# paths

SAME: dict[str, dict] = {
    "bitsandbytes.optim.PagedAdamW8bit": {"min_8bit_size": 256},
    "pytorch_optimizer.SOAP": {},
    "schedulefree.RAdamScheduleFree": {},
}
"""Class -> arguments, of those that resume to the same bytes: a state of bytes, one of
lists, one that averages. All others: toolkit/optim/test_trial.py."""

REPORTED = {
    "adv_optm.Lion_adv": (
        {},
        "train.optimizer: adv_optm.Lion_adv cannot load the state that it has saved",
    ),
    "adv_optm.AdamW_adv": (
        {"kourkoutas_beta": True},
        "its state does not come back whole",
    ),
}
"""Class -> arguments, and what is said before the first step; the last one trains."""


def job_of(
    name: str, arguments: dict, trainer: Callable[..., dict], photos: Path
) -> dict:
    if find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name.partition('.')[0]} is not installed here")
    row = {
        "network": "lora",
        "optimizer": name,
        "schedule": "constant",
        "base": "16 bit",
    }
    section = section_of(row, trainer, photos)
    section["train"]["optimizer_params"] = arguments
    return section


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_class_by_its_path_resumes_to_the_same_bytes(
    name: str,
    tiny_model: Path,
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    section = job_of(
        name, SAME[name], trainer, make_pictures(tmp_path / "photos", "a", "b")
    )
    run_job(write_job(section))
    whole = what_is_saved(tmp_path / "output" / "job", "job.safetensors")
    assert whole and loads(
        tmp_path / "output" / "job", "job.safetensors", "lora", tiny_model
    )
    run_job(write_job({**section, "resume": 2}))
    assert what_is_saved(tmp_path / "output" / "job", "job.safetensors") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTED)
def test_a_class_that_does_not_resume_is_reported_before_the_first_step(
    name: str,
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = REPORTED[name]
    section = job_of(
        name, arguments, trainer, make_pictures(tmp_path / "photos", "a", "b")
    )
    run = tmp_path / "output" / "job"
    if name == "adv_optm.AdamW_adv":
        with caplog.at_level("INFO"):
            run_job(write_job(section))
        said = [record.getMessage() for record in caplog.records]
        [at] = [index for index, line in enumerate(said) if message in line]
        assert said[at].startswith("warning: ") and not any(
            line.startswith("step ") for line in said[:at]
        )
        return
    with pytest.raises(UserError) as caught:
        run_job(write_job(section))
    assert message in str(caught.value) and "--restart" not in str(caught.value)
    assert not (run / "state").exists() and not (run / "job.safetensors").exists()


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
    "no cache": {"datasets": {"cache_latents": False, "cache_text_embeddings": False}},
}

MEMBER_AXES = {
    "member": [*MEMBER_SPECS],
    "trained": [*TRAINED],
    "saving": [*SAVINGS],
    "part": [*PARTS],
}


def members_go_together(row: Row) -> bool:
    """What the config refuses or warns of is left out; a minute of compiling, but for
    one member."""
    with_table = row["trained"] != "the model itself" and row["member"] != "2.1"
    if row["trained"] == "the model itself" and (
        row["saving"] == "swap, full" or row["part"] == "prior held"
    ):
        return False
    if row["saving"].endswith("keep attention"):
        return row["saving"].startswith("table") is with_table
    if row["saving"] == "compile":
        return tuple(row.values()) == ("2.1", "int8", "compile", "two batches")
    return True


MEMBER_ROWS = pairwise(MEMBER_AXES, members_go_together)


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
    "row",
    MEMBER_ROWS,
    ids=lambda row: "-".join(row.values()).replace(" ", "_").replace(",", ""),
)
def test_a_member_trains_with_a_saving_what_it_trains_without(
    row: Row,
    member_folders,
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run goes on from step 1 once more, without the saving, and ends in the same
    weights."""
    monkeypatch.chdir(tmp_path)
    spec = MEMBER_SPECS[row["member"]]
    photos, before = (
        make_pictures(tmp_path / name, "a", "b") for name in ("photos", "before")
    )
    references = min(1, FAMILIES.load(spec.arch).max_references)
    base = trainer(
        photos,
        network={},
        save={"dtype": "float32", "save_every": 1, "max_states_to_keep": 0},
        train={"steps": 3},
    )
    base["model"]["name_or_path"] = str(member_folders[row["member"]])
    control = (
        {"datasets": {"control_path": [str(before)] * references}} if references else {}
    )
    chosen = TRAINED[row["trained"]], PARTS[row["part"]], SAVINGS[row["saving"]]
    section = with_keys(base, WITHOUT_SAVINGS, control, *chosen)
    run_job(write_job(section))
    run = tmp_path / "output" / "job"
    saving = saved_tensors(run)
    run_job(write_job({**with_keys(section, WITHOUT_SAVINGS), "resume": 1}))
    plain = saved_tensors(run)
    assert plain.keys() == saving.keys()
    assert (
        row["trained"] == "the model itself"
        or max(float(plain[n].abs().max()) for n in plain if "lora_B" in n) > 5e-3
    )
    for name, tensor in plain.items():
        assert (saving[name] - tensor).abs().max() < 1e-5, (
            f"{name}: a step changes it by up to 0.01"
        )


@pytest.mark.parametrize(
    ("kwargs", "trained"),
    [
        (
            {"only_if_contains": ["gate_layer"]},
            {"0.img_mlp.gate_layer", "1.img_mlp.gate_layer"},
        ),
        (
            {
                "only_if_contains": ["transformer_blocks.1."],
                "ignore_if_contains": ["attn"],
            },
            {"1.img_mlp.gate_layer", "1.img_mlp.proj", "1.img_mlp.out"},
        ),
    ],
)
def test_layers_of_2_1_are_chosen_by_their_names(
    kwargs: dict,
    trained: set[str],
    member_folders,
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "photos", "a"),
        train={"steps": 1},
        save={"dtype": "float32"},
    )
    section["network"]["network_kwargs"] = kwargs
    section["model"]["name_or_path"] = str(member_folders["2.1"])
    run_job(write_job(section))
    stems = (
        name.removeprefix("transformer_blocks.")
        for name in saved_tensors(tmp_path / "output" / "job")
    )
    assert {
        stem.rpartition(".lora_")[0] or stem.removesuffix(".alpha") for stem in stems
    } == trained

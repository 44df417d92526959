"""What the header of a network file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.writers import LoraWriter
from tests.parts import needs_foreign_names
from toolkit.config import load_job
from toolkit.contracts.training import TrainState
from toolkit.data.scan.folder import scan_datasets
from toolkit.plan.run_plan import BucketCount, FolderPlan, RunPlan


@pytest.fixture
def plan() -> RunPlan:
    """5 images of 3 repeats at two sizes, 2 of 4 in a folder of the same name: 23 uses,
    in 12 batches."""
    many = FolderPlan(
        "data/a/3_many",
        5,
        3,
        0,
        {1: 5},
        {0: 4, 2: 1},
        (BucketCount(64, 64, 4), BucketCount(64, 96, 1)),
    )
    few = FolderPlan(
        "/secret/b/3_many/",
        2,
        4,
        0,
        {1: 2},
        {0: 2},
        (BucketCount(64, 96, 2),),
        is_reg=True,
    )
    return RunPlan("sd_trainer", "maya", (many, few), 23, 12, 30, accumulation=2)


@pytest.fixture
def metadata(write_job, trainer, make_pictures, plan, tmp_path: Path):
    """The metadata after 9 steps of a job with these sections; 18 of 12 micro-batches
    per epoch are done."""
    photos = make_pictures(tmp_path / "photos", "a")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])

    def describe(
        meta: dict | None = None,
        plan: RunPlan | None = plan,
        scan: bool = False,
        **sections,
    ) -> dict[str, str]:
        network = {"type": "lora", "linear": 4, "linear_alpha": 2}
        job = load_job(
            write_job(trainer(photos, **{"network": network, **sections})),
            lambda _: SdTrainerConfig,
        )
        section = job.processes[0].section
        folders = (
            scan_datasets(section.datasets, section.trigger_word).folders
            if scan
            else ()
        )
        fixed = job_metadata(
            section, meta or {}, "maya", 30, 7, optimizer, plan, folders=folders
        )
        writer = LoraWriter(None, section, fixed)
        found = writer.metadata_at(TrainState(step=9, epoch=1, epochs_done=1))
        # the order of the header is the same at each step
        assert list(found) == list(fixed)
        # safetensors takes nothing else
        assert all(isinstance(value, str) for value in found.values())
        return found

    return describe


def test_it_tells_the_training_as_it_was(metadata) -> None:
    found = metadata(
        train={
            "optimizer": "adamw", "optimizer_params": {"weight_decay": 0.02}, "lr": 0.0003, "dtype": "bf16",
            "lr_scheduler": "cosine", "lr_warmup_steps": 5, "timestep_type": "shift", "discrete_flow_shift": 3,
            "max_grad_norm": 0.5, "gradient_checkpointing": False, "gradient_accumulation": 2,
        },
        network={"type": "lora", "linear": 4, "linear_alpha": 2, "dropout": 0.1, "rank_dropout": 0.2},
    )  # fmt: skip
    assert json.loads(found["training_info"]) == {"step": 9, "epoch": 1}
    expected = {
        "output_name": "maya", "steps": "9", "epoch": "1", "max_train_steps": "30", "seed": "7",
        "learning_rate": "0.0003", "optimizer": "torch.optim.adamw.AdamW(weight_decay=0.02)",
        "lr_scheduler": "cosine", "lr_warmup_steps": "5.0", "max_grad_norm": "0.5",
        "mixed_precision": "bf16", "gradient_checkpointing": "False", "gradient_accumulation_steps": "2",
        "timestep_sampling": "shift", "discrete_flow_shift": "3.0", "weighting_scheme": "none",
        "network_module": "toolkit.networks.lora", "network_dim": "4", "network_alpha": "2.0",
        "network_dropout": "0.1", "base_model_version": "qwen_image_edit_plus",
    }  # fmt: skip
    assert {key: found[f"ss_{key}"] for key in expected} == expected
    assert json.loads(found["ss_network_args"]) == {"rank_dropout": 0.2}
    assert (found["rank"], found["alpha"]) == ("4", "2.0")


def test_the_arguments_of_the_network_are_all_that_differ_from_their_defaults(
    metadata, tmp_path: Path
) -> None:
    start = tmp_path / "secret.safetensors"
    save_file({}, start)
    arguments = {
        "loraplus_lr_ratio": 16.0, "scale_weight_norms": 1.0, "module_dropout": 0.1, "exclude_patterns": [".*mlp.*"],
        "network_kwargs": {"ignore_if_contains": ["to_q"]},
    }  # fmt: skip
    found = metadata(
        network={
            "type": "lora",
            "linear": 4,
            "pretrained_lora_path": str(start),
            **arguments,
        }
    )
    assert json.loads(found["ss_network_args"]) == arguments
    whole = {"factor": 4, "lokr_full_rank": True}
    assert (
        json.loads(
            metadata(network={"type": "lokr", "linear": 4, **whole})["ss_network_args"]
        )
        == whole
    )


def test_the_resolution_is_the_largest_size(metadata, tmp_path: Path) -> None:
    def of(*sizes: object) -> str:
        datasets = [{"folder_path": str(tmp_path / "photos"), "resolution": sizes}]
        return metadata(datasets=datasets, **more)["modelspec.resolution"]

    rectangle, more = {"width": 960, "height": 544}, {"plan": None}
    assert [of(512, rectangle), of(768, rectangle)] == ["960x544", "768x768"]
    more = {}  # the images of the plan are at most 64 x 96 pixels, and not enlarged
    assert [of(96), of(1024)] == ["96x96", "64x96"]


def test_it_tells_the_datasets_by_the_last_part_of_their_names(metadata) -> None:
    found = metadata()
    numbers = {
        "num_train_items": "23",
        "num_batches_per_epoch": "12",
        "num_epochs": "5",
        "num_reg_images": "8",
    }
    assert {key: found[f"ss_{key}"] for key in numbers} == numbers
    assert json.loads(found["ss_dataset_dirs"]) == {
        "3_many": {"n_repeats": 3, "img_count": 5},
        "3_many (2)": {"n_repeats": 4, "img_count": 2},
    }
    many, few = json.loads(found["ss_datasets"])
    assert many == {
        "name": "3_many", "num_repeats": 3, "num_images": 5, "is_reg": False, "references": {"0": 4, "2": 1},
        "buckets": [[64, 64, 4], [64, 96, 1]],
    }  # fmt: skip
    assert few["is_reg"] is True
    assert json.loads(found["ss_bucket_info"]) == {
        "buckets": {
            "0": {"resolution": [64, 64], "count": 12},
            "1": {"resolution": [64, 96], "count": 11},
        }
    }
    assert not any("secret" in value or "data/a" in value for value in found.values())
    assert "ss_datasets" not in metadata(plan=None)


@pytest.mark.parametrize(
    ("captions", "keys", "words"),
    [
        (("[trigger], smile, red coat", "smile, park", "red coat, [trigger], smile, night"), {"trigger_word": "ohwx"},
         {"maya": {"ohwx": 3, "smile": 3, "red coat": 2}}),
        (("A woman named ohwx lives in Main Street 4, and reads.", "She sleeps."), {"trigger_word": "ohwx"},
         {"maya": {"ohwx": 2}}),
        (("smile, park", "smile, night"), {}, {"maya": {"smile": 2}}),
        (("She sleeps.",), {}, None),
        (("a", ""), {"trigger_word": "${SECRET}"}, {"maya": {"${SECRET}": 2}}),
        (("smile, park",) * 2, {"caption_prefix": "${SECRET}", "trigger_word": "ohwx"},
         {"maya": {"ohwx": 2, "park": 2, "smile": 2}}),
        (("", ""), {"default_caption": "${SECRET}, dog"}, {"maya": {"${SECRET}": 2, "dog": 2}}),
        (tuple(f"{i}, {i + 1}, {i + 2}" for i in range(300)), {}, 100),
    ],
)  # fmt: skip
def test_it_has_the_words_that_managers_of_loras_read(
    metadata, make_pictures, tmp_path: Path, monkeypatch, captions, keys, words
) -> None:
    """The trigger words, and tags of several images; no sentence, and no variable."""
    monkeypatch.setenv("SECRET", "pangolin, in a dress")
    photos = make_pictures(
        tmp_path / "maya", *(f"{i:03}" for i in range(len(captions)))
    )
    for index, caption in enumerate(captions):
        (photos / f"{index:03}.txt").write_text(caption)
    of_folder = {key: keys[key] for key in keys if "caption" in key}
    sections = {
        "datasets": [{"folder_path": str(photos), **of_folder}],
        **{key: keys[key] for key in keys.keys() - of_folder},
    }
    found = metadata(scan=True, **sections).get("ss_tag_frequency")
    if words == 100:
        assert [len(one) for one in json.loads(found).values()] == [100]
    else:
        assert (json.loads(found) if found else None) == words
    assert "pangolin" not in str(found)
    first = next(iter((json.loads(found) if found else {"": {}}).values()), {})
    assert not keys.get("trigger_word") or next(iter(first)) == keys["trigger_word"]


def test_it_names_the_noise_levels_that_are_drawn(metadata) -> None:
    found = metadata(train={"timestep_type": "shift", "linear_timesteps": True})
    assert found["ss_timestep_sampling"] == "linear"


def test_it_names_the_model_as_the_model_standard_does(metadata) -> None:
    meta = {
        "title": "Maya",
        "author": "me",
        "tags": ["a", "ü"],
        "comment": "first try",
        "unrelated": 1,
    }
    found = metadata(meta, trigger_word="maya_char", train={"max_timestep": 800})
    spec = {
        key.partition(".")[2]: value
        for key, value in found.items()
        if key.startswith("modelspec.")
    }
    assert spec == {
        "sai_model_spec": "1.0.0",
        "architecture": "Qwen-Image-Edit-Plus/lora",
        "implementation": "https://github.com/QwenLM/Qwen-Image",
        "title": "Maya",
        "resolution": "64x64",
        "timestep_range": "0,800",
        "trigger_phrase": "maya_char",
        "author": "me",
        "tags": "a, ü",
    }
    assert (found["ss_training_comment"], found["unrelated"]) == ("first try", "1")
    assert metadata()["modelspec.title"] == "maya"
    assert (
        metadata(network={"type": "loha", "linear": 4})["modelspec.architecture"]
        == "Qwen-Image-Edit-Plus/loha"
    )


def test_what_was_trained_outranks_what_the_user_says(metadata) -> None:
    assert metadata({"ss_steps": "99", "training_info": "x"})["ss_steps"] == "9"


def test_it_holds_no_secret_no_path_and_no_moment(metadata, tmp_path: Path) -> None:
    token = "hf_" + "a1" * 17
    meta = {"api_key": "pangolin", "comment": f"with {token}"}
    found = metadata(meta)
    assert (
        found["api_key"] == "<redacted>"
        and found["ss_training_comment"] == "with <redacted>"
    )
    assert not any(str(tmp_path) in value or token in value for value in found.values())
    assert found == metadata(meta)
    assert not [
        key for key in found if "date" in key or "time" in key.replace("timestep", "")
    ]


def test_nothing_is_said_where_nothing_is_wanted(metadata) -> None:
    assert metadata({"author": "me"}, save={"no_metadata": True}) == {}


def test_a_variable_is_shown_where_it_was_written_and_nowhere_else(
    metadata, monkeypatch
) -> None:
    monkeypatch.setenv("OUT", "pics")
    found = metadata(training_folder="${OUT}", trigger_word="pics")
    assert found["trigger_word"] == found["modelspec.trigger_phrase"] == "pics"
    found = metadata(training_folder="pics", trigger_word="${OUT}")
    assert found["trigger_word"] == found["modelspec.trigger_phrase"] == "${OUT}"


@needs_foreign_names
def test_files_that_came_from_variables_are_shown_as_written(
    metadata, monkeypatch, plan, tmp_path: Path
) -> None:
    file = tmp_path / "photos" / "a.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file({}, file)
    for name, value in (
        ("PHOTOS", file.parent),
        ("FILE", file),
        ("MODEL", "Qwen/Qwen-Image-Edit-2509"),
        ("RUN", "anna"),
    ):
        monkeypatch.setenv(name, str(value))
    named = replace(
        plan, datasets=(replace(plan.datasets[0], folder=str(file.parent)),)
    )
    monkeypatch.setattr("toolkit.config.sections.model.model_fault", lambda *_: "")
    found = metadata(
        plan=named,
        name="${RUN}",
        datasets=[{"image_directory": "${PHOTOS}"}],
        model={
            "name_or_path": "${MODEL}",
            "base_weights": "${FILE}",
            "quantize": True,
            "qtype": "int4|${FILE}",
        },
    )
    for key in ("base_model", "ss_sd_model_name"):
        assert found[key] == "${MODEL}", key
    for key in ("ss_output_name", "modelspec.title"):
        assert found[key] == "${RUN}", key
    assert found["accuracy_recovery_adapter"] == "${FILE}"
    assert json.loads(found["base_loras"]) == [{"file": "${FILE}", "multiplier": 1.0}]
    assert json.loads(found["ss_datasets"])[0]["name"] == "${PHOTOS}"

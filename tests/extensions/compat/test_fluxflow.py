"""The job that a file of FluxFlow's guide becomes, as plain data, and the messages
about its mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions.compat import fluxflow
from extensions.compat.fluxflow import GUIDE, sized
from tests.extensions.compat import fluxflow_guide as guide
from toolkit.config.reading.located import Diagnostics
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import ConfigErrors


class Read:
    """A file, read: its processes as plain data, and its warnings."""

    def __init__(self, text: str, name: str | None = None) -> None:
        diagnostics = Diagnostics("config.yaml")
        self.root = GUIDE.as_job(
            read_yaml(text, diagnostics), Path("."), name, diagnostics
        )
        diagnostics.raise_errors()
        self.warnings = diagnostics.warnings
        self.job = self.root.data()
        self.steps: list[dict[str, Any]] = self.job["config"]["process"]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Read]:
    monkeypatch.chdir(tmp_path)
    guide.write_data(tmp_path)
    return Read


def step(
    *lines: str, data: str = "{data_path: images}", model: str = "{}", more: str = ""
) -> str:
    """A file of one step."""
    body = "".join(f"\n        {line}" for line in lines)
    return f"data: {data}\nmodel: {model}\n{more}\ntraining:\n  pipeline:\n    steps:\n      - name: one{body}\n"


def joint(*lines: str, model: str = "{}") -> str:
    """A file of a step that trains an autoencoder, and one that trains it further with
    a flow model."""
    both = ("train_vae: true", "train_diff_full: true", *lines)
    return (
        step("train_vae: true", "lr: 1e-5", "n_epochs: 1", model=model)
        + "      - name: both"
        + "".join(f"\n        {line}" for line in both)
    )


def after_autoencoder(*lines: str, **more: str) -> str:
    """The same behind a step that trains an autoencoder; only the second one's process
    matters."""
    before = "    steps:\n      - {name: before, train_vae: true, lr: 1e-5}\n"
    return step(*lines, **more).replace("    steps:\n", before)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        Read(text)
    return [
        line.removeprefix("config.yaml:") for line in str(caught.value).splitlines()
    ]


AT = "training.pipeline.steps[0]"


# ------------------------------------------------------------ shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {}", True),
        ("data: {}\noutput: {}", True),
        ("job: extension\ntraining: {}", False),
        ("config: {}\ndata: {}", False),
        ("model: {}", False),
    ],
)
def test_a_file_is_the_guides_by_its_sections(text: str, expected: bool) -> None:
    assert GUIDE.reads(read_yaml(text, Diagnostics("x"))) is expected


def test_results_go_to_the_output_path_and_each_step_to_a_folder_below(read) -> None:
    found = read(guide.FILES["complete"])
    assert found.job["config"]["name"] == "full_pipeline"
    assert [process["name"] for process in found.steps] == [
        "vae_warmup",
        "vae_spade_gan",
        "flow_training",
    ]
    assert {process["training_folder"] for process in found.steps} == {"outputs"}
    assert [process["save"]["fluxflow_files"] for process in found.steps] == [
        "step",
        "step",
        "last",
    ]


def test_a_given_name_replaces_the_last_part_of_the_output_path(read) -> None:
    found = read(
        step("train_vae: true", "lr: 1e-5", more="output: {output_path: a/b/c}"),
        "other",
    )
    assert (found.job["config"]["name"], found.steps[0]["training_folder"]) == (
        "other",
        "a/b",
    )


def test_without_a_pipeline_there_is_one_step_named_train(read) -> None:
    (process,) = read(
        "data: {data_path: images}\ntraining: {train_vae: true, lr: 1e-5}"
    ).steps
    assert (process["name"], process["type"], process["save"]["fluxflow_files"]) == (
        "train",
        "vae_trainer",
        "only",
    )


# ------------------------------------------------------------ what a step becomes


GUIDES_PIXELS = {
    "l1": 0,
    "reconstruction": 1,
    "mse": 0.1,
    "contrast": 0.1,
    "color": 0.05,
    "histogram": 0.02,
}
"""The losses that the guide has without a key for each; the defaults here are
others."""


def test_an_autoencoder_step(read) -> None:
    first = read(guide.FILES["complete"]).steps[0]
    arguments = sized(16)
    assert first["type"] == "vae_trainer"
    assert first["model"] == {
        "class_name": "AutoencoderKL",
        "config": {
            **arguments,
            "block_out_channels": arguments["block_out_channels"][1:],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
        },
        "spade": False,
    }
    assert first["train"] == {
        "batch_size": 4,
        "epochs": 10,
        "lr": 2e-5,
        "lr_scheduler": "CosineAnnealingLR",
        "lr_scheduler_params": {"eta_min_factor": 0.1},
        "dtype": "float32",
        "ema_config": {"use_ema": True},
    }
    assert first["losses"] == {**GUIDES_PIXELS, "kl": 1e-4}
    assert "discriminator" not in first
    assert first["save"]["save_every"] == 100
    assert first["stop_when"] == {"metric": "loss_recon", "below": 0.02}
    assert first["sample"] == {
        "sample_every": 100,
        "sample_at_first": False,
        "format": "png",
        "overview": True,
    }
    assert first["datasets"] == [
        {
            "folder_path": "images",
            "captions_file": "captions.txt",
            "resolution": guide.SIDE,
            "num_workers": 8,
        }
    ]


def test_a_step_goes_on_from_the_last_one_of_its_part(read) -> None:
    _, second, third = read(guide.FILES["complete"]).steps
    assert second["model"] == {
        "name_or_path": "outputs/[name]/vae_warmup/vae_warmup",
        "spade": True,
    }
    assert third["model"]["vae"] == "outputs/[name]/vae_spade_gan/vae_spade_gan"
    assert "name_or_path" not in third["model"]


def test_a_flow_step(read) -> None:
    third = read(guide.FILES["complete"]).steps[2]
    assert third["type"] == "flow_trainer"
    model = {key: value for key, value in third["model"].items() if key != "vae"}
    assert model == {
        "prediction": "flow",
        "transformer": {
            "class_name": "SD3Transformer2DModel",
            "config": {
                "num_layers": 4,
                "num_attention_heads": 1,
                "attention_head_dim": 32,
            },
        },
        "text_encoder": {
            "train": True,
            "projection_dim": 32,
            "config": fluxflow.RANDOM_TEXT_ENCODER,
        },
    }
    assert [sample["prompt"] for sample in third["sample"]["samples"]] == [
        "a photo of a cat sitting on a couch",
        "an illustration of mountains at sunset",
    ]
    assert set(third["optimizers"]) == {"flow", "text_encoder"}
    assert "autoencoder" not in third


def test_a_second_flow_step_starts_from_the_first_and_takes_a_newer_autoencoder(
    read,
) -> None:
    text = (
        "data: {data_path: images}\ntraining:\n  lr: 1e-5\n  output_path: o/x\n  pipeline:\n    steps:\n"
        "      - {name: v, train_vae: true}\n      - {name: f, train_diff: true}\n"
        "      - {name: g, train_diff: true}\n      - {name: w, train_vae: true}\n      - {name: h, train_diff: true}\n"
    )
    v, f, g, w, h = (process["model"] for process in read(text).steps)
    assert f["vae"] == "o/[name]/v/v"
    assert g == {"name_or_path": "o/[name]/f/f", "text_encoder": {"train": True}}
    assert w == {"name_or_path": "o/[name]/v/v", "train": "decoder"}
    assert (h["name_or_path"], h["vae"]) == ("o/[name]/g/g", "o/[name]/w/w")
    assert "class_name" in v


def test_joint_training_is_a_flow_step_with_an_autoencoder(read) -> None:
    _, both = read(
        joint("gan_training: true", "train_spade: true", "lr: 1e-6", "kl_beta: 1e-3")
    ).steps
    own = both["autoencoder"]
    assert (
        both["type"] == "flow_trainer"
        and both["model"]["vae"] == "outputs/[name]/one/one"
    )
    assert (own["train"], own["spade"], own["losses"]) == (
        "all",
        True,
        {**GUIDES_PIXELS, "kl": 1e-3},
    )
    assert (
        own["discriminator"]["channels"],
        own["discriminator"]["adaptive_weight"],
    ) == (32, False)
    assert set(both["optimizers"]) == {"flow", "text_encoder", "vae", "discriminator"}


def test_both_may_begin_from_nothing_in_one_step(read) -> None:
    lines = ("train_diff: true", "train_vae: true", "lr: 1e-5")
    (found,) = read(step(*lines, model="{vae_dim: 32}")).steps
    assert found["autoencoder"]["train"] == "all" and "vae" not in found["model"]
    assert found["model"]["new_vae"]["class_name"] == "AutoencoderKL"
    assert found["model"]["new_vae"]["config"]["block_out_channels"] == [8, 16, 32, 32]


@pytest.mark.parametrize(
    "lines",
    [
        ("train_vae: true", "gan_training: true", "train_reconstruction: false"),
        ("gan_training: true",),
    ],
)
def test_both_spellings_of_adversarial_training_compare_no_pixels(
    lines: tuple[str, ...], read
) -> None:
    found = read(step(*lines, "lr: 1e-5", "lambda_adv: 0.9"))
    (process,) = found.steps
    zero = dict.fromkeys(
        ("l1", "reconstruction", "mse", "contrast", "color", "histogram", "kl"), 0
    )
    assert process["losses"] == {**zero, "adversarial": 0.9}
    assert any("adversarial training only" in line for line in found.warnings) == (
        len(lines) == 1
    )


def test_sizes_scale_with_the_guides_dimensions(read) -> None:
    model = "{vae_dim: 64, feature_maps_dim: 64, feature_maps_dim_disc: 16}"
    first, process = read(joint("gan_training: true", "lr: 1e-5", model=model)).steps
    assert first["model"]["config"] == sized(64)
    # a quarter and a half of 40 are 10 and 20: rounded down to multiples of 8
    found = sized(40)
    assert found["block_out_channels"] == [8, 16, 40, 40]
    assert (found["norm_num_groups"], found["latent_channels"]) == (2, 5)
    assert process["autoencoder"]["discriminator"]["channels"] == 64
    transformer = process["model"]["transformer"]["config"]
    assert transformer == {
        "num_layers": 8,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
    }


def test_a_pretrained_text_encoder(read) -> None:
    model = "{pretrained_bert_model: bert, tokenizer_name: words}"
    _, process = read(joint("freeze_text_encoder: true", "lr: 1e-5", model=model)).steps
    assert process["model"]["text_encoder"] == {
        "train": False, "name_or_path": "bert", "tokenizer": "words", "projection_dim": 1024,
    }  # fmt: skip
    assert "text_encoder" not in process["optimizers"]


# ------------------------------------------------------------ values


GIVEN = "{data_path: images, fixed_prompt_prefix: style anime, cfg_dropout_prob: 0.1}"
SHARDS = "{use_webdataset: true, webdataset_url: 'hf://datasets/a/b/*.tar', webdataset_caption_key: caption}"
LPIPS = {"lpips": 0.1, "lpips_backbone": os.path.expanduser(fluxflow.LPIPS_BACKBONE)}
OF_SHARDS = {"image_key": ["png"], "label_key": "json", "caption_key": "caption"}
LENGTHS = (
    "training_steps: 4", "n_epochs: 3", "max_steps: 10", "checkpoint_save_interval: 50", "samples_per_checkpoint: 5",
    "log_interval: 4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "data", "section", "expected"),
    [
        (LENGTHS, "", "train", {"epochs": None, "steps": 2, "gradient_accumulation": 4}),  # in optimizer steps
        (LENGTHS, "", "save", {"save_every": 13}),
        (LENGTHS, "", "sample", {"sample_every": 65}),
        (LENGTHS, "", "logging", {"log_every": 1}),
        (["max_steps: 7"], "", "train", {"steps": 7, "epochs": None}),
        ([], "", "train", {"epochs": 1}),
        (['lr: "1e-5"'], "", "train", {"lr": 1e-5}),
        (["lr: 5e-7"], "", "train", {"lr": 5e-7}),
        (["samples_per_checkpoint: 0"], "", "sample", None),
        (["use_lpips: true"], "", "losses", LPIPS),
        (["freeze: compressor"], "", "model", {"train": "decoder"}),
        ([], GIVEN, "datasets", {"caption_prefix": "style anime", "caption_dropout_rate": 0.1}),
        ([], SHARDS, "datasets", {"url": ["hf://datasets/a/b/*.tar"], "webdataset": OF_SHARDS, "folder_path": None}),
    ],
)  # fmt: skip
def test_a_key_of_a_step_becomes_one_of_its_process(
    lines, data: str, section: str, expected: dict | None, read
) -> None:
    (process,) = read(
        step("train_vae: true", *lines, **({"data": data} if data else {}))
    ).steps
    found = process.get(section)
    found = found[0] if isinstance(found, list) else found
    assert (found and {key: found.get(key) for key in expected or ()}) == expected


def test_a_step_inherits_from_training_what_it_does_not_say_but_not_what_is_trained(
    read,
) -> None:
    text = (
        "data: {data_path: images}\ntraining:\n  train_vae: true\n  lr: 3e-5\n  batch_size: 7\n  gan_training: true\n"
        "  pipeline:\n    defaults: {lr: 2e-5, kl_beta: 0.5}\n    steps:\n      - {name: a, n_epochs: 2}\n"
        "      - {name: b, train_diff_full: true, lr: 1e-5}\n"
    )
    first, second = read(text).steps
    assert (first["type"], first["train"]["lr"], first["train"]["batch_size"]) == (
        "vae_trainer",
        2e-5,
        7,
    )
    assert (first["losses"]["kl"], "discriminator" in first) == (0.5, True)
    assert (second["type"], second["train"]["lr"]) == ("flow_trainer", 1e-5)
    # a discriminator of `training` makes no joint step
    assert "autoencoder" not in second


def test_without_any_rate_there_is_a_note(read) -> None:
    found = read(step("train_vae: true"))
    assert found.steps[0]["train"]["lr"] == 5e-7
    assert "step 'one' has no 'lr'" in found.warnings[0]
    assert not read(step("train_vae: true", "optimizers: {vae: {lr: 1e-4}}")).warnings


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            step("train_vae: true", "lr: 1e-5", "use_fp16: true"),
            f"10:9: {AT}.use_fp16: bfloat16 is used: so.",
        ),
        (
            step("train_vae: true", "lr: 1e-5", "freeze_flow: true"),
            "freeze_flow: Freezing flow: step 'one' does not load it.",
        ),
        (
            joint("lr: 1e-5", model="{tokenizer_name: distilbert-base-uncased}"),
            "tokenizer_name: has no effect without 'pretrained_bert_model'",
        ),
    ],
)
def test_what_is_otherwise_here_is_told(
    text: str, warning: str, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fluxflow, "half_precision", lambda: ("bfloat16", "bfloat16 is used: so.")
    )
    found = read(text)
    (told,) = (line for line in found.warnings if warning in line)
    assert "use_fp16" not in told or found.steps[0]["train"]["dtype"] == "bfloat16"
    assert all(
        "tokenizer" not in process["model"].get("text_encoder", {})
        for process in found.steps
    )


# ------------------------------------------------------------ datasets


@pytest.mark.parametrize(
    "switch", ["use_webdataset: true", "use_tt2m: true, tt2m_token: hf_abc"]
)
def test_the_default_set_has_its_own_keys(switch: str, read) -> None:
    found = read(step("train_vae: true", "lr: 1e-5", data=f"{{{switch}}}"))
    (dataset,) = found.steps[0]["datasets"]
    assert dataset["url"] == fluxflow.DEFAULT_SHARDS
    assert dataset["webdataset"]["image_key"] == ["jpg"]
    old = "tt2m" in switch
    assert dataset["webdataset"].get("token") == ("hf_abc" if old else None)
    told = [line.split(": ", 1)[1] for line in found.warnings]
    assert sum("the rate stays as it is" in line for line in told) == 1
    renamed = {
        "data.use_tt2m: is an old name. Write 'use_webdataset'.",
        "data.tt2m_token: is an old name. Write 'webdataset_token'.",
    }
    assert (renamed <= set(told)) is old


def test_the_rate_stays_where_a_stream_has_no_length(read) -> None:
    (process,) = read(
        step("train_vae: true", "lr: 1e-5", data="{use_webdataset: true}")
    ).steps
    assert (
        process["train"]["lr_scheduler"]
        == process["optimizers"]["vae"]["lr_scheduler"]
        == "constant"
    )
    # refused later, as its length is not known
    own = "schedulers: {vae: {type: CosineAnnealingLR}}"
    (process,) = read(
        step("train_vae: true", "lr: 1e-5", own, data="{use_webdataset: true}")
    ).steps
    assert process["optimizers"]["vae"]["lr_scheduler"] == "CosineAnnealingLR"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("{use_webdataset: true, webdataset_size: 77}", ()),
        ("{use_webdataset: true}", ("max_steps: 9",)),
    ],
)
def test_the_rate_falls_where_the_length_of_a_stream_is_known(
    data: str, lines: tuple[str, ...], read
) -> None:
    found = read(step("train_vae: true", "lr: 1e-5", *lines, data=data))
    assert (
        found.steps[0]["train"]["lr_scheduler"] == "CosineAnnealingLR"
        and not found.warnings
    )


def test_the_number_of_batches_is_the_length_of_a_step(read) -> None:
    found = read(step("train_vae: true", "n_epochs: 3", "max_steps: 9"))
    [line] = [line for line in found.warnings if "n_epochs" in line]
    assert line.endswith("has no effect: 'max_steps: 9' is the length of step 'one'.")


def test_each_step_may_have_a_dataset_of_its_own(read) -> None:
    text = """
training:
  lr: 1e-5
  pipeline:
    default_dataset: faces
    datasets:
      faces: {type: local, image_folder: images, captions_file: captions.txt, batch_size: 3}
      web: {type: webdataset, webdataset_url: "x_*.tar", workers: 6}
    steps:
      - {name: a, train_vae: true}
      - {name: b, train_vae: true, dataset: web}
"""
    first, second = read(text).steps
    assert (first["datasets"][0]["folder_path"], first["train"]["batch_size"]) == (
        "images",
        3,
    )
    assert (second["datasets"][0]["url"], second["datasets"][0]["num_workers"]) == (
        ["x_*.tar"],
        6,
    )
    assert second["train"]["batch_size"] == 2


def test_a_dataset_of_another_kind_is_a_mistake() -> None:
    text = """training:
  lr: 1e-5
  pipeline:
    default_dataset: faces
    datasets: {faces: {type: lokal, image_folder: images}}
    steps: [{name: a, train_vae: true}]
"""
    told = "'lokal' is not a kind of dataset. Write local or webdataset."
    assert any(line.endswith(told) for line in faults(text)), faults(text)


def test_keys_that_only_the_repositorys_examples_have(read) -> None:
    data = "{data_path: images, img_size: 128, channels: 3, reduced_min_sizes: [64, 96], dataloader_max_retries: 5}"
    more = (
        "output: {sample_sizes: [64, [96, 64], 128x96], sample_captions: [a], "
        "log_file: null}\nmodel_checkpoint: null\n"
    )
    found = read(joint("lr: 1e-5").replace("{data_path: images}", data) + f"\n{more}")
    vae, flow = found.steps
    assert vae["datasets"][0]["resolution"] == [64, 96, 128]
    samples = flow["sample"]["samples"]
    assert [(each["width"], each["height"]) for each in samples] == [
        (64, 64),
        (96, 64),
        (128, 96),
    ]
    assert [line for line in found.warnings if "no effect: images have three" in line]
    assert not [line for line in found.warnings if "log_file" in line]
    (quiet,) = read(
        step("train_vae: true", "lr: 1e-5", more="output: {no_samples: true}")
    ).steps
    assert "sample" not in quiet


# ------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("train_vae: 'true'",), f"8:20: {AT}.train_vae: 'true': write it without quotes."),
        (("train_vae: true", "n_epochs: 0"), f"9:19: {AT}.n_epochs: 0 is out of range: must be >= 1."),
        (("train_vae: true", "n_epoch: 2"), f"9:9: {AT}.n_epoch: unknown key. Did you mean 'n_epochs'?"),
        (("train_vae: true", "vae_dim: 32"), f"9:9: {AT}.vae_dim: unknown key. It belongs in 'model'."),
        (("train_vae: true", "lr: fast"), f"9:13: {AT}.lr: 'fast' is not a number."),
        (("train_vae: true", "batch_size: 1.5"), f"9:21: {AT}.batch_size: 1.5 is not a whole number. Write 1 or 2."),
        (
            ("train_vae: true", "freeze_vae: true"),
            f"9:21: {AT}.freeze_vae: Cannot freeze and train the same component. Remove one.",
        ),
        (
            ("train_vae: true", "freeze: [compressor, expander]"),
            f"9:18: {AT}.freeze[0]: Cannot freeze and train the same component. Remove one.",
        ),
        (
            ("train_vae: true", "freeze: [D_img]"),
            f"9:18: {AT}.freeze[0]: 'D_img' cannot be frozen by itself. Freeze 'vae' or 'compressor', or leave it out.",
        ),
        (
            ("n_epochs: 3",),
            f"7:9: {AT}: step 'one' trains nothing. Give 'train_vae: true', 'gan_training: true' or "
            "'train_diff_full: true'.",
        ),
        (
            ("train_vae: true", "stop_condition: {loss_name: loss_recon}"),
            f"9:25: {AT}.stop_condition.threshold: is required.",
        ),
        (
            ("train_vae: true", "transition_on: {mode: epoch}"),
            f"9:9: {AT}.transition_on: unknown key. Write "
            "'stop_condition: {loss_name: loss_recon, threshold: 0.02}'.",
        ),
        (
            ("train_vae: true", "model_type: baseline"),
            f"9:9: {AT}.model_type: chooses among architectures of FluxFlow, and there are none here. Remove it.",
        ),
        (
            ("train_vae: true", "sample_sizes: [256, wide]"),
            f"9:23: {AT}.sample_sizes: a list: give sizes in pixels, such as 512 or [768, 512].",
        ),
        (
            ("train_vae: true", "train_diff: true", "train_diff_full: false"),
            f"10:9: {AT}.train_diff_full: 'train_diff_full' and 'train_diff' mean the same, but false and true were "
            "given. Remove one of them.",
        ),
        (("train_vae: true", "dataset: web"), f"9:18: {AT}.dataset: 'web' is not a dataset of the pipeline. "
         "There is no 'training.pipeline.datasets'."),
    ],
)  # fmt: skip
def test_mistakes_in_a_step_have_their_place(
    lines: tuple[str, ...], expected: str, read
) -> None:
    found = faults(step(*lines))
    assert expected in found


@pytest.mark.parametrize(
    "work", ["train_vae: true", "gan_training: true", "train_diff_full: true"]
)
def test_what_a_step_without_work_is_to_be_given_is_work(work: str, read) -> None:
    """A flow model needs an autoencoder, which a step before it trains."""
    before = step("train_vae: true", "lr: 1e-5", "n_epochs: 1")
    read(f"{before}      - name: two\n        lr: 1e-5\n        {work}\n")


NO_STEPS = "No pipeline steps defined. Give 'training.pipeline.steps', a list with at least one entry."
OF_DATA = (
    "is required: a folder of images, or 'use_webdataset: true' with 'webdataset_url'."
)
BROKEN = "{model_checkpoint: nope.safetensors}"


def pipeline(text: str) -> str:
    return f"data: {{data_path: images}}\ntraining: {{pipeline: {text}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (pipeline("{}"), f"2:22: training.pipeline: {NO_STEPS}"),
        (pipeline("{steps: []}"), f"2:30: training.pipeline.steps: {NO_STEPS}"),
        (pipeline("{steps: {}}"), f"2:30: training.pipeline.steps: {NO_STEPS}"),
        (pipeline("{defaults: {}}"), f"2:22: training.pipeline: {NO_STEPS}"),
        *(
            (
                pipeline(
                    f"{{{key}: [1], steps: [{{name: a, train_vae: true, lr: 1e-5}}]}}"
                ),
                f"training.pipeline.{key}: a list is not a mapping of keys and values.",
            )
            for key in ("defaults", "datasets")
        ),
        *(
            (
                step(
                    "train_vae: true",
                    "lr: 1e-5",
                    more=f"output: {{output_path: {path}}}",
                ),
                f"'{path}' has no name. Give a folder, such as outputs/run1.",
            )
            for path in ("/", ".", "..", "a/..")
        ),
        (
            step("train_vae: true", "lr: 1e-5", data="{}")
            + "      - {name: two, train_vae: true, lr: 1e-5}\n",
            f"1:7: data.data_path: {OF_DATA}",
        ),
        (
            step("train_diff: true", "lr: 1e-5"),
            f"7:9: {AT}: step 'one' has no autoencoder",
        ),
        (  # which it would train along
            step(
                "train_diff: true", "lr: 1e-5", "train_vae: true", "freeze: compressor"
            ),
            f"7:9: {AT}: step 'one' has no autoencoder",
        ),
        (
            after_autoencoder(
                "train_diff: true", "lr: 1e-4", "freeze_text_encoder: true"
            ),
            "11:30: training.pipeline.steps[1].freeze_text_encoder: a text encoder with random weights is to learn",
        ),
        *(  # a flow step says nothing of what the checkpoint would have brought
            (
                step(f"{trained}: true", "lr: 1e-4", model=BROKEN),
                "2:27: model.model_checkpoint: 'nope.safetensors' does not exist (working directory:",
            )
            for trained in ("train_vae", "train_diff")
        ),
    ],
)
def test_a_mistake_is_one_line(text: str, expected: str, read) -> None:
    (line,) = faults(text)
    assert expected in line


def test_a_step_without_a_name_or_with_one_of_another_folder(read) -> None:
    text = (
        "data: {data_path: images}\ntraining:\n  lr: 1e-5\n  pipeline:\n    steps:\n      - train_vae: true\n"
        "      - {name: graph, train_vae: true}\n      - {name: a/b, train_vae: true}\n      - 3\n"
    )
    assert [line.split(": ", 1)[1] for line in faults(text)] == [
        "training.pipeline.steps[0].name: is required: it names the step's folder and files.",
        "training.pipeline.steps[1].name: 'graph' is the name of another folder of the results. Take another.",
        "training.pipeline.steps[2].name: 'a/b' cannot be the name of a folder and of files. Leave out '/', '\\' and "
        "control characters.",
        "training.pipeline.steps[3]: 3 is not a mapping. Write '- name: vae_warmup' and its keys.",
    ]


def test_two_output_paths_that_differ_name_both(read) -> None:
    text = (
        step("train_vae: true", "lr: 1e-5", more="output: {output_path: a/b}")
        + "  output_path: a/c\n"
    )
    (line,) = faults(text)
    assert line.endswith(
        "'training.output_path' and 'output.output_path' mean the same, but 'a/c' and 'a/b' were given. "
        "Remove one of them."
    )
    assert read(text.replace("a/c", "a/b")).job["config"]["name"] == "b"


def test_keys_at_the_top_are_sent_where_they_belong(read) -> None:
    found = faults(step("train_vae: true", more="vae_dim: 3\ntrainin: {}"))
    assert [line.split(": ", 1)[1] for line in found] == [
        "vae_dim: unknown key. It belongs in 'model'.",
        "trainin: unknown key. Did you mean 'training'? Known names: data, model, output, training.",
    ]


def test_only_the_decoder_learns_where_the_compressor_is_frozen(read) -> None:
    lines = ("train_vae: true", "train_diff: true", "lr: 1e-5", "freeze: compressor")
    assert read(after_autoencoder(*lines)).steps[1]["autoencoder"]["train"] == "decoder"
    assert (
        read(step("train_vae: true", "lr: 1e-5", "freeze: compressor")).steps[0][
            "model"
        ]["train"]
        == "decoder"
    )


# ------------------------------------------------------------ checkpoints


@pytest.fixture
def checkpoint(read, tmp_path: Path) -> Callable[..., str]:
    """A file of the guide's name with this header, and the folder of an autoencoder
    beside it."""

    def write(header: dict[str, Any], folder: bool = True) -> str:
        path = tmp_path / "outputs" / "old" / "flxflow_final.safetensors"
        path.parent.mkdir(parents=True)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        if folder:
            (path.parent / "train" / "train").mkdir(parents=True)
            config = {"_class_name": "AutoencoderKL", **sized(16)}
            (path.parent / "train" / "train" / "config.json").write_text(
                json.dumps(config), encoding="utf-8"
            )
        (path.parent / "lr_sav.json").write_text('{"vae": 3e-6}', encoding="utf-8")
        return "outputs/old/flxflow_final.safetensors"

    return write


OURS = {
    "__metadata__": {"parts": json.dumps({"folder": "train/train", "parts": ["vae"]})}
}


def test_a_checkpoint_leads_to_the_folder_beside_it(checkpoint, read) -> None:
    path = checkpoint(OURS)
    (process,) = read(
        step("train_vae: true", "lr: 1e-5", model=f"{{model_checkpoint: {path}}}")
    ).steps
    assert process["model"] == {"name_or_path": "outputs/old/train/train"}


def test_saved_rates_replace_those_of_the_file(checkpoint, read) -> None:
    model = f"{{model_checkpoint: {checkpoint(OURS)}}}"
    text = step("train_vae: true", "lr: 1e-5", model=model) + "  preserve_lr: true\n"
    assert read(text).steps[0]["optimizers"]["vae"]["lr"] == 3e-6
    assert (
        "lr"
        not in read(text.replace("preserve_lr: true", "preserve_lr: false")).steps[0][
            "optimizers"
        ]["vae"]
    )


def test_another_vae_dim_than_the_checkpoints_is_told(checkpoint, read) -> None:
    path = checkpoint(OURS)
    found = read(
        step(
            "train_vae: true",
            "lr: 1e-5",
            model=f"{{model_checkpoint: {path}, vae_dim: 64}}",
        )
    )
    assert "vae_dim: has no effect: the autoencoder of" in found.warnings[0]
    assert not read(
        step(
            "train_vae: true",
            "lr: 1e-5",
            model=f"{{model_checkpoint: {path}, vae_dim: 16}}",
        )
    ).warnings


@pytest.mark.parametrize(
    ("header", "folder", "expected"),
    [
        (
            {"compressor.a": {}, "flow_processor.b": {}}, True,
            "holds weights of FluxFlow's own architecture (compressor, flow_processor), which differs: train them "
            "again.",
        ),
        ({"weights": {}}, True, "was not written by a step of this program: give the folder of a model."),
        (
            OURS, False,
            "belongs to the folder 'outputs/old/train/train', which is not there: restore it, or give a folder.",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_a_start(
    header, folder: bool, expected: str, checkpoint
) -> None:
    path = checkpoint(header, folder)
    (line,) = faults(
        step("train_vae: true", "lr: 1e-5", model=f"{{model_checkpoint: {path}}}")
    )
    assert line == f"2:27: model.model_checkpoint: '{path}' {expected}"


def test_a_jobs_own_checkpoint_means_that_it_goes_on(checkpoint, read) -> None:
    model = f"{{model_checkpoint: {checkpoint(OURS)}}}"
    found = read(
        step(
            "train_vae: true",
            "lr: 1e-5",
            model=model,
            more="output: {output_path: outputs/old}",
        )
    )
    assert "class_name" in found.steps[0]["model"]
    assert found.warnings[0].endswith(
        "is this job's own result: the same job goes on from its last state."
    )

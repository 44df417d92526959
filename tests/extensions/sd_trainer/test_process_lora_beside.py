"""LoRA files beside the trained network in whole jobs: the assistant, and that of the
samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.running import lines, losses, run_job
from toolkit.errors import UserError
from toolkit.models.tiny import TinySpec, write_tiny_model

OUTPUTS = {
    "transformer_blocks.0.attn.to_out.0": 64,
    "transformer_blocks.0.img_mod.1": 384,
    "proj_out": 64,
}
"""Layers of the tiny model that have 64 inputs, with their outputs."""

SAMPLE = {
    "samples": [{"prompt": "a fox"}],
    "width": 64,
    "height": 64,
    "sample_steps": 2,
    "guidance_scale": 1,
}


def write_lora(file: Path, seed: int = 0, inputs: int = 64, size: float = 0.5) -> Path:
    """A LoRA of the tiny model in the spelling of Qwen-Image-Lightning; of another
    model with other inputs."""
    random, weights = torch.Generator().manual_seed(seed), {}
    for layer, outputs in OUTPUTS.items():
        weights[f"{layer}.lora_down.weight"] = (
            torch.randn((2, inputs), generator=random) * size
        )
        weights[f"{layer}.lora_up.weight"] = (
            torch.randn((outputs, 2), generator=random) * size
        )
        weights[f"{layer}.alpha"] = torch.tensor(2.0)
    save_file(weights, file)
    return file


@pytest.fixture
def run(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch
) -> Callable[..., Path]:
    """Runs a job with these keys of `train` and of the section, beside two LoRA files;
    returns its folder."""
    photos = make_pictures(tmp_path / "photos", "a", "b", "c")
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("assistant", "other")):
        write_lora(tmp_path / f"{name}.safetensors", seed)

    def run(
        folder: str,
        train: dict | None = None,
        model: dict | None = None,
        allow_change: bool = False,
        **keys: object,
    ) -> Path:
        section = trainer(
            photos,
            **{
                "training_folder": folder,
                "validation": {"fraction": 0.34, "every": 0},
                **keys,
            },
            train={
                "steps": 2,
                "lr": 0.02,
                "max_grad_norm": 0,
                "skip_first_sample": False,
                **(train or {}),
            },
        )
        run_job(
            write_job({**section, "model": {**section["model"], **(model or {})}}),
            allow_change=allow_change,
        )
        return tmp_path / folder / "job"

    return run


@pytest.mark.slow
def test_the_assistant_is_on_in_training_and_off_in_what_the_run_shows_and_saves(
    run,
) -> None:
    plain, with_it = (
        run("plain", sample=SAMPLE),
        run("with", {"assistant": "assistant.safetensors"}, sample=SAMPLE),
    )
    assert losses(plain)[0] != losses(with_it)[0]
    first = [
        json.loads((folder / "validation.jsonl").read_text().splitlines()[0])
        for folder in (plain, with_it)
    ]
    images = [
        (folder / "samples" / "000000000_0.jpg").read_bytes()
        for folder in (plain, with_it)
    ]
    # before step 1 the network changes nothing
    assert first[0] == first[1] and images[0] == images[1]
    assert (
        load_file(plain / "job.safetensors").keys()
        == load_file(with_it / "job.safetensors").keys()
    )
    with safe_open(with_it / "job.safetensors", "pt") as file:
        assert json.loads(file.metadata()["assistant"]) == {
            "file": "assistant.safetensors",
            "multiplier": 1.0,
        }


MOD = {
    "type": "lora",
    "linear": 4,
    "linear_alpha": 4,
    "network_kwargs": {"only_if_contains": ["attn", "img_mod"]},
}


@pytest.mark.parametrize(
    ("train", "model", "network"),
    [
        ({"gradient_checkpointing": True}, {"modulation_table": True}, MOD),
        pytest.param(
            {"gradient_checkpointing": "cheap"},
            {"quantize": True, "qtype": "int8"},
            {"type": "dora", "linear": 4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_with_the_assistant_is_training_on_the_model_with_it_merged(
    run, train, model, network
) -> None:
    given = {"path": "assistant.safetensors", "multiplier": 0.5}
    keys = {"network": network, "validation": None}
    beside = run("beside", {**train, "assistant": given}, model, **keys)
    merged = run("merged", train, {**model, "base_loras": [given]}, **keys)
    alone = run("alone", {**train, "steps": 1}, model, **keys)
    effect = abs(losses(alone)[0] - losses(merged)[0])
    assert losses(beside) == pytest.approx(losses(merged), abs=effect / 20)


@pytest.mark.slow
def test_a_resume_knows_the_assistant_by_its_content(run, tmp_path: Path) -> None:
    whole = run("whole", {"assistant": "assistant.safetensors"}, validation=None)
    run("halves", {"steps": 1, "assistant": "assistant.safetensors"}, validation=None)
    with pytest.raises(UserError, match=r"train\.assistant"):
        run("halves", {"assistant": "other.safetensors"}, validation=None)
    (tmp_path / "assistant.safetensors").rename(tmp_path / "moved.safetensors")
    halves = run("halves", {"assistant": "moved.safetensors"}, validation=None)
    weights = [load_file(folder / "job.safetensors") for folder in (whole, halves)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


REFUSED: list[tuple[dict, str]] = [
    (
        {"assistant": "none.safetensors"},
        r"assistant: .none\.safetensors. does not exist",
    ),
    (
        {"assistant": "wide.safetensors"},
        r"train\.assistant: wide\.safetensors is of another model",
    ),
    (
        {"assistant": "text.safetensors"},
        r"train\.assistant: .text\.safetensors. cannot be read",
    ),
    (
        {"assistant": "nan.safetensors"},
        r"train\.assistant: nan\.safetensors: .* not finite",
    ),
    (
        {"assistant": "zero.safetensors"},
        r"train\.assistant: zero\.safetensors changes no layer",
    ),
    (
        {"assistant": "odd.safetensors"},
        r"train\.assistant: odd\.safetensors: .* no known form",
    ),
    (
        {"assistant": {"path": "assistant.safetensors", "multiplier": 0}},
        "0 switches the file off",
    ),
]


@pytest.mark.slow
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_written(
    run, tmp_path: Path
) -> None:
    write_lora(tmp_path / "wide.safetensors", inputs=32)
    write_lora(tmp_path / "zero.safetensors", size=0)
    write_lora(tmp_path / "nan.safetensors", size=float("nan"))
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"something": torch.ones(2)}, tmp_path / "odd.safetensors")
    for train, message in REFUSED:
        with pytest.raises(UserError, match=message):
            run("output", train)
            pytest.fail(f"{train} is taken")
    with pytest.raises(UserError, match="'full' trains the weights"):
        run(
            "output",
            {"assistant": "assistant.safetensors"},
            network={"type": "full"},
        )
    assert not (tmp_path / "output" / "job" / "run.json").exists()


@pytest.mark.slow
def test_samples_are_generated_with_their_file_and_nothing_else_is(
    run, tmp_path: Path
) -> None:
    """Before step 1, when the network changes nothing, that is what `base_loras`
    changes."""
    sample = {**SAMPLE, "format": "png"}
    lora = {"path": "other.safetensors", "multiplier": 0.5}
    plain = run("plain", sample=sample)
    beside = run("beside", sample={**sample, "lora": lora})
    merged = run("merged", model={"base_loras": [lora]}, sample=sample)
    assert losses(beside) == losses(plain)
    for name in ("job.safetensors", "validation.jsonl"):
        assert without_times(beside / name) == without_times(plain / name)
    assert difference(beside, merged, 0) < 0.05 < difference(beside, plain, 0)
    assert difference(beside, plain, 2) > 0.05


def without_times(file: Path) -> object:
    if file.suffix == ".jsonl":
        return [{**line, "time": ""} for line in lines(file)]
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def difference(folder: Path, other: Path, step: int) -> float:
    """The mean difference of the sample of two runs, of 255."""
    images = [
        np.asarray(Image.open(run / "samples" / f"{step:09d}_0.png"), float)
        for run in (folder, other)
    ]
    return float(np.abs(images[0] - images[1]).mean())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen-Image-2.1. Read only."""
    folder = tmp_path_factory.mktemp("models") / "base"
    write_tiny_model(folder, TinySpec(arch="qwen_image_2"))
    return folder


def test_the_file_that_changes_a_bias_the_model_lacks_is_named(
    run, base: Path, tmp_path: Path
) -> None:
    save_file(
        {"diffusion_model.img_in.diff_b": torch.ones(64)},
        tmp_path / "biased.safetensors",
    )
    for train, sample, key in (
        ({"assistant": "biased.safetensors"}, SAMPLE, r"train\.assistant"),
        (
            {},
            {**SAMPLE, "lora": "biased.safetensors"},
            r"sample\.lora",
        ),
    ):
        with pytest.raises(
            UserError,
            match=rf"{key}: biased\.safetensors: the bias of img_in is changed\. This model",
        ):
            run(
                "output",
                train,
                {"name_or_path": str(base)},
                sample=sample,
                validation=None,
            )

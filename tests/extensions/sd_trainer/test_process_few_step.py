"""LoRA files beside the trained network in whole jobs: the assistant, few-step samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.diffusers_reference import rewrite_json
from tests.running import losses, run_job
from toolkit.config.sections.dataset import LOSS, loss_in
from toolkit.errors import UserError
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.train.run_reader import list_samples

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
        "0 switches the assistant off",
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


ALSO = [
    {"name": "fast", "lora": "other.safetensors", "steps": 1},
    {
        "lora": "assistant.safetensors",
        "steps": 3,
        "cfg": 2,
        "flow_shift": 3,
        "weight": 0.5,
    },
]


@pytest.mark.slow
def test_samples_are_also_generated_in_the_ways_that_are_named(
    run, tmp_path: Path
) -> None:
    sample = {
        **SAMPLE,
        "samples": [{"prompt": "a fox"}, {"prompt": "a hat", "seed": 5}],
        "format": "png",
    }
    plain = run("plain", sample=sample)
    also = run(
        "also", {"assistant": "assistant.safetensors"}, sample={**sample, "also": ALSO}
    )
    names = [
        path.name.partition("_")[2]
        for path in sorted((also / "samples").glob("000000000_*"))
    ]
    assert names == [
        "0.png",
        "1.png",
        "2_fast.png",
        "3_fast.png",
        "4_assistant.png",
        "5_assistant.png",
    ]
    first = [
        (folder / "samples" / "000000000_0.png").read_bytes()
        for folder in (plain, also)
    ]
    assert first[0] == first[1]
    # What the file changes is what `base_loras` changes.
    merged = run(
        "merged",
        model={"base_loras": ["other.safetensors"]},
        sample={**sample, "sample_steps": 1},
    )
    images = [Image.open(folder / "samples" / name) for folder, name in
              ((also, "000000000_2_fast.png"), (merged, "000000000_0.png"), (also, "000000000_0.png"))]  # fmt: skip
    near, far = (
        np.abs(np.asarray(images[0], float) - np.asarray(image, float)).mean()
        for image in images[1:]
    )
    assert near < 0.05 < far
    samples = list_samples(also)
    assert [sample.index for sample in samples if sample.step == 2] == [*range(6)]
    assert samples[2].prompt == "a fox [fast, 1 steps]"
    last = json.loads((also / "validation.jsonl").read_text().splitlines()[-1])
    assert len({last[LOSS], last[loss_in("fast")], last[loss_in("assistant")]}) == 3


@pytest.fixture(scope="module")
def turbo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen-Image-2.1, `base`, and another one with its encoders that is
    distilled, `turbo`, with the scheduler of the published Turbo. Read only."""
    folder = tmp_path_factory.mktemp("turbo_models")
    base, other = folder / "base", folder / "turbo"
    for seed, model in enumerate((base, other)):
        write_tiny_model(model, TinySpec(arch="qwen_image_2", seed=seed))
    for part in base.iterdir():
        if part.name not in ("transformer", "model_index.json", "scheduler"):
            shutil.rmtree(other / part.name, ignore_errors=True)
            (other / part.name).unlink(missing_ok=True)
            (other / part.name).symlink_to(part)
    rewrite_json(other / "model_index.json", sample_sigmas=[1.0, 0.8, 0.3])
    rewrite_json(
        other / "scheduler/scheduler_config.json",
        use_dynamic_shifting=False,
        shift=1.0,
        shift_terminal=None,
    )
    return folder


@pytest.fixture
def turbo(turbo_models: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Both, in the working directory."""
    for model in turbo_models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    return tmp_path / "base", tmp_path / "turbo"


@pytest.mark.slow
def test_samples_of_another_model_are_those_of_the_lora_on_it(
    run, turbo: tuple[Path, Path]
) -> None:
    """At its noise levels; what is trained, and the other samples, are the same as
    without it."""
    base, other = map(str, turbo)
    model = {"quantize": True, "qtype": "int8"}
    keys = {
        "validation": None,
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
    }
    sample, on_base = (
        {**SAMPLE, "format": "png", "sample_every": 1},
        {**model, "name_or_path": base},
    )
    plain = run("plain", model=on_base, sample=sample, **keys)
    also = run(
        "also",
        model=on_base,
        sample={**sample, "also": [{"model": other}, {"levels": [1.0, 0.6]}]},
        **keys,
    )
    assert losses(plain) == losses(also)
    assert (plain / "job.safetensors").read_bytes() == (
        also / "job.safetensors"
    ).read_bytes()
    for step in range(3):
        first = [
            (folder / "samples" / f"{step:09d}_0.png").read_bytes()
            for folder in (plain, also)
        ]
        assert first[0] == first[1]
    assert [sample.prompt for sample in list_samples(also)][1:3] == [
        "a fox [turbo, 3 steps]",
        "a fox [also, 2 steps]",
    ]
    lora = {**keys["network"], "pretrained_lora_path": str(also / "job.safetensors")}
    sample = {**sample, "sample_steps": None}
    there = run(
        "there",
        {"steps": 1},
        {**model, "name_or_path": other},
        sample=sample,
        validation=None,
        network=lora,
    )
    images = [
        (also / "samples" / "000000002_1_turbo.png"),
        there / "samples" / "000000000_0.png",
    ]
    assert images[0].read_bytes() == images[1].read_bytes()


@pytest.mark.slow
def test_a_way_of_sampling_that_cannot_be_is_refused(
    run, turbo, tmp_path: Path
) -> None:
    write_lora(tmp_path / "wide.safetensors", inputs=32)
    for also, message in (
        (
            [{"lora": "none.safetensors"}],
            r"sample\.also\[0\]\.lora: 'none\.safetensors' does not exist",
        ),
        (
            [{"lora": "wide.safetensors"}],
            r"sample\.also\[0\]\.lora: wide\.safetensors is of another model",
        ),
        (
            [*ALSO, ALSO[0]],
            r"also\[2\]\.name: another entry has the name 'fast' too",
        ),
        (
            [{"lora": "other.safetensors", "weight": 0}],
            r"also\[0\]\.weight: 0 switches the LoRA off",
        ),
        (
            [{"steps": 4}],
            r"also\[0\]\.lora: is required\. Or give 'model', or 'levels'",
        ),
        ([{"levels": [0.5, 0.5]}], r"also\[0\]\.levels: have to fall"),
        (
            [{"model": "none"}],
            r"also\[0\]\.model: 'none' is neither a folder nor a hub id",
        ),
        (
            [{"model": "base", "lora": "other.safetensors"}],
            r"also\[0\]\.lora: .* is not supported",
        ),
        (
            [{"model": "base"}],
            r"also\[0\]\.model: base is Qwen-Image-2\.1, which Qwen-Image-Ed",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run("output", sample={**SAMPLE, "also": also})
            pytest.fail(f"{also} is taken")


def test_the_file_that_changes_a_bias_the_model_lacks_is_named(
    run, turbo, tmp_path: Path
) -> None:
    save_file(
        {"diffusion_model.img_in.diff_b": torch.ones(64)},
        tmp_path / "biased.safetensors",
    )
    for train, sample, key in (
        ({"assistant": "biased.safetensors"}, SAMPLE, r"train\.assistant"),
        (
            {},
            {**SAMPLE, "also": [{"lora": "biased.safetensors"}]},
            r"sample\.also\.0\.lora",
        ),
    ):
        with pytest.raises(
            UserError,
            match=rf"{key}: biased\.safetensors: the bias of img_in is changed\. This model",
        ):
            run(
                "output",
                train,
                {"name_or_path": "base"},
                sample=sample,
                validation=None,
            )

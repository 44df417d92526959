"""Whole jobs: what they leave, that they are continued to the same bytes, and that they
learn."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertModel, PreTrainedTokenizerFast

from extensions.from_scratch.latent_flow.model import LatentFlowModel
from extensions.from_scratch.latent_flow.text import load_text_encoder, make_tokenizer
from tests.extensions.from_scratch.conftest import (
    SMALL,
    TEXT,
    TRANSFORMERS,
    Planned,
    load_pixels_of,
    write_measured_vae,
    write_vae,
)
from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.failing_programs import ERRORS, NAME, programs
from tests.running import lines
from toolkit.contracts.data import PromptEmbeds
from toolkit.errors import DataErrors, RunError, UserError
from toolkit.files.run_files import METRICS
from toolkit.flow.loss import INTERPOLANTS
from toolkit.models.families import ModelLoadOptions

SAMPLE = {
    "sample_every": 2,
    "width": 64,
    "height": 64,
    "sample_steps": 2,
    "samples": [{"prompt": "a red square"}],
}


@pytest.fixture
def of_diffusers() -> Iterator[BufferingHandler]:
    """What diffusers logs."""
    handler = BufferingHandler(1000)
    logging.getLogger("diffusers").addHandler(handler)
    yield handler
    logging.getLogger("diffusers").removeHandler(handler)


SD3, QWEN, QWEN_21 = TRANSFORMERS
ONE_AND_ANOTHER = [SD3, pytest.param(QWEN_21, marks=pytest.mark.slow)]
"""The third is in most of the other tests."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_AND_ANOTHER)
def test_what_a_run_leaves(
    start,
    flow_job,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    of_diffusers: BufferingHandler,
    kind: str,
) -> None:
    folder = start(
        flow_job(
            pictures,
            kind,
            save={"save_every": 2},
            sample={
                **SAMPLE,
                "overview": True,
                "samples": [{"prompt": "a red square"}, {"prompt": "a blue circle"}],
            },
            validation={"fraction": 0.4, "every": 2},
            train={"ema_config": {"use_ema": True}},
        )
    )
    final, said = folder / "job", capsys.readouterr().out
    assert [record.getMessage() for record in of_diffusers.buffer] == []
    assert {"job_000000002", "job_000000004", "job_best", "samples", "start"} <= {
        p.name for p in folder.iterdir()
    }
    averages = load_file(folder / "state" / "step_000000004" / "ema.safetensors")
    transformer = getattr(diffusers, kind).from_pretrained(final / "transformer")
    assert all(
        torch.equal(p, averages[f"flow/{name}"])
        for name, p in transformer.named_parameters()
    )
    encoder, info = BertModel.from_pretrained(
        final / "text_encoder", add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(
        torch.equal(p, averages[f"text_encoder/encoder.{name}"])
        for name, p in encoder.named_parameters()
    )
    diffusers.AutoencoderKL.from_pretrained(final / "vae")
    diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(final / "scheduler")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(final / "tokenizer")
    assert (
        tokenizer.decode(
            tokenizer("naïve 猫")["input_ids"], skip_special_tokens=True
        ).strip()
        == "naïve 猫"
    )
    metrics = lines(folder / "metrics.jsonl")
    assert metrics[0]["loss_flow"] == metrics[0]["loss"] == metrics[0]["loss/flow"]
    assert {"lr/text_encoder", "grad_norm/text_encoder", "t_mean"} <= set(metrics[0])
    assert metrics[0]["lr/text_encoder"] == pytest.approx(1e-4)
    assert "validation/loss" in lines(folder / "validation.jsonl")[0]
    drawn = sorted((folder / "samples").glob("*.jpg"))
    assert len(drawn) == 6 and {Image.open(path).size for path in drawn} == {(64, 64)}
    assert drawn[-1].read_bytes() != drawn[-2].read_bytes(), "of another prompt"
    assert Image.open(folder / "samples" / "overview.png").width == 6 + 3 * (64 + 6)
    assert (
        "Auto-created text_encoder: BertModel with hidden_size=16" in said
        and "Freezing vae" in said
    )


@pytest.mark.slow
def test_it_learns_which_caption_belongs_to_which_image(
    start, flow_job, tmp_path: Path
) -> None:
    """Two images, two captions: from pure noise the right caption leads to the right
    one. In v; test_flow_process_references.py has one that learns the flow."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name, colour in (("red", (230, 20, 20)), ("blue", (20, 20, 230))):
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} wall")
    vae = write_measured_vae(tmp_path / "measured", sorted(folder.glob("*.png")))
    train = {"steps": 60, "batch_size": 4, "lr": 8e-3, "timestep_type": "uniform"}
    dataset = {"folder_path": str(folder), "resolution": 32, "num_repeats": 2}
    run = start(
        flow_job(
            folder,
            train=train,
            model={"prediction": "v", "vae": str(vae)},
            datasets=[dataset],
        )
    )
    losses = [row["loss_flow"] for row in lines(run / "metrics.jsonl")]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    options = ModelLoadOptions(
        folder=run / "job", device=torch.device("cpu"), dtype=torch.float32
    )
    model, mix = LatentFlowModel(options), INTERPOLANTS["v"].mix
    levels, noise = (
        torch.ones(8),
        torch.randn((8, 4, 16, 16), generator=torch.Generator().manual_seed(1)),
    )
    errors = {}
    with torch.no_grad():
        prompts = {
            name: model.encode_prompt(f"a {name} wall", ()) for name in ("red", "blue")
        }
        for name in prompts:
            pixels = load_pixels_of(folder / f"{name}.png")
            x_t, target = mix(
                model.encode_images(pixels).expand(8, -1, -1, -1), noise, levels
            )
            for asked, prompt in prompts.items():
                predicted = model.predict_velocity(
                    x_t, levels, PromptEmbeds.stack([prompt] * 8), [()] * 8
                )
                errors[name, asked] = (predicted - target).square().mean().item()
    assert errors["red", "red"] < 0.7 * errors["red", "blue"]
    assert errors["blue", "blue"] < 0.7 * errors["blue", "red"]


# ------------------------------------------------------------ resume


def assert_same_bytes(whole: Path, again: Path) -> None:
    """Of two folders of runs with four steps: states, final files, samples."""
    files = [
        f"state/step_000000004/{name}.safetensors"
        for name in ("weights", "ema", "optimizer")
    ]
    files += [
        "job/transformer/diffusion_pytorch_model.safetensors",
        "job/text_encoder/model.safetensors",
    ]
    files += [
        "job/tokenizer/tokenizer.json",
        "job/vae/diffusion_pytorch_model.safetensors",
        "job/model_index.json",
    ]
    files += ["job/text_encoder/projection.safetensors", "samples/000000004_0.jpg"]
    assert [
        file
        for file in files
        if (whole / file).read_bytes() != (again / file).read_bytes()
    ] == []


TO_RESUME = {
    "model": {
        "prediction": "v",
        "text_encoder": {"config": TEXT, "projection_dim": 12},
    },
    "optimizers": {"text_encoder": {"lr": 1e-3, "every": 3}},
    "save": {"save_every": 2},
    "sample": {**SAMPLE, "guidance_scale": 3},
    "train": {"steps": 4, "ema_config": {"use_ema": True}, "gradient_accumulation": 2},
}
"""Both roles, one of them not in each step, with an average, a projection, guidance and v."""  # fmt: skip


def to_resume(flow_job, folder: Path, **changes: object) -> dict:
    section = flow_job(folder, **{**TO_RESUME, **changes})
    section["datasets"][0] |= {"caption_dropout_rate": 0.3, "shuffle_tokens": True}
    return section


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes(
    start, flow_job, pictures: Path, tmp_path: Path
) -> None:
    whole = start(to_resume(flow_job, pictures)).rename(tmp_path / "whole")
    start(to_resume(flow_job, pictures, train={**TO_RESUME["train"], "steps": 2}))
    assert_same_bytes(whole, start(to_resume(flow_job, pictures)))


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    run_ranks, write_job, flow_job, pictures: Path, tmp_path: Path
) -> None:
    """Each takes one of the two micro-batches of a step, and embeds its own
    captions."""
    jobs = [
        write_job(to_resume(flow_job, pictures, training_folder=name), name=name)
        for name in ("one", "two")
    ]
    for processes, job in enumerate(jobs, start=1):
        run_ranks(processes, job)
    one, two = (
        lines(tmp_path / name / name / "metrics.jsonl") for name in ("one", "two")
    )
    for key in ("loss", "loss_flow", "loss/text_encoder", "grad_norm/flow"):
        ours, theirs = ([row[key] for row in rows if key in row] for rows in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-4) and ours
    before, after = (
        load_file(tmp_path / n / n / n / "text_encoder/model.safetensors")
        for n in ("one", "two")
    )
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_tokenizer_and_needs_what_it_began_with(
    start, flow_job, pictures: Path, tmp_path: Path
) -> None:
    vae = write_vae(tmp_path / "own")

    def section(steps: int, **more: object) -> dict:
        train, save = {"steps": steps}, {"save_every": 2}
        return flow_job(
            pictures, model={"vae": str(vae)}, train=train, save=save, **more
        )

    folder = start(section(2))
    tokenizer = (folder / "job" / "tokenizer" / "tokenizer.json").read_bytes()
    (pictures / "a.txt").write_text("entirely other words, entirely other words")
    start(section(3))
    state = str(folder / "state/step_000000003")
    moved = start(section(4, resume=state), name="moved")
    for again in (folder / "job", moved / "moved"):
        assert (again / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer
    weights = "diffusion_pytorch_model.safetensors"
    for file, message in (
        (vae / weights, r"another base model: model\.vae differs"),
        (
            folder / "start/vae" / weights,
            r"another base model: start/vae differs\. Restore the model",
        ),
        (
            folder / "start/transformer/config.json",
            r"start/transformer.*Restore the folder, or add --restart",
        ),
    ):
        kept = file.read_bytes()
        if file.suffix == ".json":
            file.unlink()
        else:
            file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises((UserError, RunError), match=message):
            start(section(4))
        file.write_bytes(kept)


# ------------------------------------------------------------ parts that are given


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of small text encoders with tokenizers, as transformers writes them."""
    import transformers

    root = tmp_path_factory.mktemp("encoders")
    shape = {"vocab_size": 400, "pad_token_id": 0}
    configs = {
        "bert": transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, **shape
        ),
        "t5": transformers.T5Config(
            d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, **shape
        ),
        "clip": transformers.CLIPTextConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            eos_token_id=2,
            **shape,
        ),
    }
    classes = {
        "bert": transformers.BertForMaskedLM,  # as published: with a head, and without
        "t5": transformers.T5EncoderModel,
        "clip": transformers.CLIPTextModel,
    }

    def write(kind: str) -> Path:
        if not (root / kind).is_dir():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                classes[kind](configs[kind]).save_pretrained(root / kind)
            make_tokenizer(["a photo of a cat"], 77).save_pretrained(root / kind)
        return root / kind

    return write


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5", "clip")),
    ],
)
def test_a_text_encoder_of_a_folder_is_trained(
    start, flow_job, encoders, pictures: Path, kind: str
) -> None:
    text = {"name_or_path": str(encoders(kind)), "train": True, "projection_dim": 6}
    folder = start(flow_job(pictures, model={"text_encoder": text}, train={"steps": 1}))
    before, after = (
        {name.removeprefix("bert."): tensor for name, tensor in load_file(file).items()}
        for file in (
            folder / name / "text_encoder/model.safetensors"
            for name in ("start", "job")
        )
    )
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    final = folder / "job" / "text_encoder"
    assert load_file(final / "projection.safetensors")["weight"].shape == (6, 8)
    embeds_BLE = load_text_encoder(final, torch.float32)(torch.tensor([[1, 5, 2]]))
    assert embeds_BLE.shape == (1, 3, 6)


@pytest.mark.slow
def test_a_further_run_goes_on_from_the_folder_with_another_autoencoder(
    start, flow_job, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes of one job: the second begins with the weights of the first, the third
    trains the text encoder too."""
    one = flow_job(
        pictures,
        "QwenImageTransformer2DModel",
        name="one",
        model={"prediction": "v"},
        train={"steps": 1},
    )
    model = {
        "name_or_path": str(tmp_path / "output/job/one/one"),
        "vae": str(write_vae(tmp_path / "other")),
    }
    two = {**one, "name": "two", "model": model, "train": {**one["train"], "lr": 0}}
    asked = {"name_or_path": model["name_or_path"], "text_encoder": {"train": True}}
    start(one, two, {**one, "name": "three", "model": asked})
    job = tmp_path / "output" / "job"
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        before, after = (
            load_file(job / name / name / f"{part}.safetensors")
            for name in ("one", "two")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    index = json.loads((job / "two" / "two" / "model_index.json").read_text())
    assert (index["prediction"], index["vae"]) == ("v", ["diffusers", "AutoencoderKL"])
    metrics = lines(job / "two" / "metrics.jsonl")[0]
    assert "loss/text_encoder" not in metrics  # frozen, as it is not random any more
    learned = load_file(job / "three" / "three" / "text_encoder/model.safetensors")
    assert learned.keys() == before.keys()
    assert any(not torch.equal(tensor, before[n]) for n, tensor in learned.items())


@pytest.mark.slow
def test_an_autoencoder_of_an_earlier_process(
    start, flow_job, pictures: Path, tmp_path: Path
) -> None:
    kind = "AutoencoderKLQwenImage"
    first = {
        "type": "vae_trainer", "name": "vae", "device": "cpu", "training_seed": 1, "save": {"save_every": 0},
        "model": {"class_name": kind, "config": SMALL[kind]}, "train": {"steps": 1, "dtype": "fp32"},
        "losses": {"kl": 0}, "datasets": [{"folder_path": str(pictures), "resolution": 32}],
    }  # fmt: skip
    model = {"vae": str(tmp_path / "output/job/vae/vae")}
    start(
        first,
        flow_job(pictures, name="flow", model=model, train={"steps": 1}, sample=SAMPLE),
    )
    folder = tmp_path / "output/job/flow"
    written = diffusers.AutoencoderKLQwenImage.from_pretrained(
        folder / "flow" / "vae"
    ).config
    own = json.loads((tmp_path / "output/job/vae/vae/config.json").read_text())
    assert all(
        list(written[k]) == v if isinstance(v, list) else written[k] == v
        for k, v in own.items()
        if k[0] != "_"
    )
    assert len(lines(folder / "metrics.jsonl")) == 1


# ------------------------------------------------------------ what others do with it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "network"),
    [(QWEN_21, {"type": "lora", "linear": 2}), (SD3, {"type": "full"})],
)
def test_a_lora_or_all_of_it_is_trained_on_such_a_folder(
    start, pictures: Path, tmp_path: Path, kind: str, network: dict
) -> None:
    model = write_flow_model(tmp_path / "model", kind, "v")
    section = {
        "type": "sd_trainer", "training_folder": "output", "device": "cpu", "training_seed": 1,
        "model": {"name_or_path": str(model)}, "network": network,
        "train": {"steps": 2, "batch_size": 2, "dtype": "fp32", "lr": 1e-2}, "save": {"save_every": 0, "dtype": "fp32"},
        "sample": {"sample_every": 0, "width": 64, "height": 64, "sample_steps": 2, "samples": [{"prompt": "a cat"}]},
        "validation": {"fraction": 0.4, "every": 1},
        "datasets": [{"folder_path": str(pictures), "resolution": 32}],
    }  # fmt: skip
    folder = start(section)
    losses = [row["validation/loss"] for row in lines(folder / "validation.jsonl")]
    assert losses[-1] != losses[0]
    if network["type"] == "lora":
        weights = load_file(folder / "job.safetensors")
        assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
        return
    index = json.loads((folder / "job" / "model_index.json").read_text())
    assert index["prediction"] == "v"
    getattr(diffusers, kind).from_pretrained(folder / "job" / "transformer")


@pytest.mark.slow
def test_new_model_makes_another_and_a_lora_is_trained_on_it_quantized(
    start, pictures: Path, tmp_path: Path
) -> None:
    model = write_flow_model(tmp_path / "model")
    new = {"type": "new_model", "name": "new", "path": "new", "base": str(model), "transformer": {"num_layers": 1,
           "num_attention_heads": 2, "attention_head_dim": 32}}  # fmt: skip
    quantized = {
        "name_or_path": "new",
        "quantize": True,
        "quantize_te": True,
        "qtype": "int8",
        "qtype_te": "int8",
    }
    lora = {
        "type": "sd_trainer", "name": "lora", "training_folder": "output", "device": "cpu", "training_seed": 1,
        "model": quantized, "network": {"type": "lora", "linear": 2},
        "train": {"steps": 2, "batch_size": 2, "dtype": "fp32"}, "save": {"save_every": 0},
        "datasets": [{"folder_path": str(pictures), "resolution": 32}],
    }  # fmt: skip
    folder = start(new, lora)
    assert len(lines(folder / "lora" / "metrics.jsonl")) == 2
    weights = load_file(folder / "lora" / "lora.safetensors")
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    assert (
        diffusers.SD3Transformer2DModel.from_pretrained(
            "new/transformer"
        ).config.num_layers
        == 1
    )


# ------------------------------------------------------------ ways to compute


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_AND_ANOTHER)
def test_checkpointing_changes_no_bit(
    start, flow_job, pictures: Path, kind: str
) -> None:
    def weights(level: str) -> list[bytes]:
        folder = start(
            flow_job(
                pictures, kind, train={"steps": 2, "gradient_checkpointing": level}
            ),
            name=level,
        )
        return [
            path.read_bytes()
            for path in sorted((folder / level).glob("t*/*.safetensors"))
        ]

    assert weights("none") == weights("full")


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (
            {
                "fused_backward_pass": True,
                "num_timestep_buckets": 2,
                "timestep_type": "model_shift",
                "weighting_scheme": "cosmap",
            },
            {"train": False, "allow_random": True},
        ),
        pytest.param(
            {
                "dtype": "bf16",
                "full_bf16": True,
                "loss_type": "huber",
                "min_timestep": 200,
            },
            {},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_keys_of_the_lora_trainer_work_here(
    start, flow_job, pictures: Path, train: dict, text: dict
) -> None:
    model = {"text_encoder": {"config": TEXT, **text}}
    folder = start(
        flow_job(pictures, train={"steps": 2, **train}, model=model, sample=SAMPLE)
    )
    assert all(
        row["loss"] > 0 and row["grad_norm"] > 0
        for row in lines(folder / "metrics.jsonl")
    )
    before, after = (
        load_file(folder / name / "transformer/diffusion_pytorch_model.safetensors")
        for name in ("start", "job")
    )
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    if text:  # it is frozen
        start_of, end_of = (
            (folder / name / "text_encoder/model.safetensors").read_bytes()
            for name in ("start", "job")
        )
        assert start_of == end_of


# ------------------------------------------------------------ before anything expensive


def test_images_that_are_larger_than_the_positions_are_named(
    start, flow_job, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "transformer": {
            "config": {**TRANSFORMERS["SD3Transformer2DModel"], "pos_embed_max_size": 4}
        }
    }
    with pytest.raises(
        DataErrors,
        match=r"a\.png: at 32x32 pixels it is longer than the 16 that the model has",
    ):
        start(flow_job(pictures, model=small))
    sample = {**SAMPLE, "width": 128}
    with pytest.raises(
        DataErrors,
        match=r"sample\.samples\[0\]: at 128x64 pixels it is longer than the 64",
    ):
        start(flow_job(pictures, sample=sample))
    model = write_flow_model(tmp_path / "model", positions=4)
    lora = {
        "type": "sd_trainer", "device": "cpu", "model": {"name_or_path": str(model)}, "sample": sample,
        "datasets": [{"folder_path": str(pictures), "resolution": 32}], "train": {"dtype": "fp32"},
    }  # fmt: skip
    with pytest.raises(DataErrors, match=r"longer than the 16"):
        start(lora)


@pytest.mark.slow
def test_a_dry_run_says_what_is_made_frozen_and_trained(
    planned: Planned, vae: Path
) -> None:
    for line in (
        "Auto-created transformer: SD3Transformer2DModel with num_layers=2, num_attention_heads=2",
        "Auto-created text_encoder: BertModel with hidden_size=16",
        "Auto-created tokenizer from the captions",
        f"Freezing vae ({vae})",
        "flow: lion, learning rate 0.001, constant",
        "text_encoder: lion, learning rate 0.0001, constant",
        "starts from output/flow/one/one, which an earlier process of the job writes",
        "Freezing text_encoder (output/flow/one/one)",
    ):
        assert line in planned.printed, line


@pytest.mark.slow
def test_compiled_blocks_that_fail_leave_what_uncompiled_ones_make(
    start, flow_job, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU as if `auto` compiled there; two roles learn from one loss."""
    found = {}
    for name, compiled in (("eager", False), ("auto", True)):
        monkeypatch.setattr(
            "extensions.from_scratch.flow_process.decide_compiling",
            lambda *_, answer=compiled: answer,
        )
        section = flow_job(
            pictures, sample=SAMPLE, train={"steps": 2, "compile": {"backend": NAME}}
        )
        with programs(
            lambda kind, tensors: ERRORS[0] if kind == "backward" else None, factor=1.5
        ):
            folder = start(section, name=name)
        rows = [
            {k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")}
            for row in lines(folder / METRICS)
        ]
        weights = load_file(
            folder / name / "transformer" / "diffusion_pytorch_model.safetensors"
        )
        samples = [path.read_bytes() for path in sorted((folder / "samples").iterdir())]
        found[name] = (
            rows,
            {key: tensor.tolist() for key, tensor in weights.items()},
            samples,
        )
    assert found["auto"] == found["eager"]
    assert len(found["auto"][0]) == 2 and found["auto"][2]

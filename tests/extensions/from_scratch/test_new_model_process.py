"""A model from nothing: its folder, and a pipeline that trains it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

from tests.running import run_job
from toolkit.config.sections.model_files import ModelFolder
from toolkit.errors import UserError
from toolkit.models.qwen_image.new import new_transformer, rope_axes
from toolkit.system.seeding import global_generator

SMALL = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}


@pytest.fixture
def section(tiny_model: Path, tmp_path: Path) -> dict:
    return {
        "type": "new_model",
        "path": "new",
        "base": str(tiny_model),
        "transformer": SMALL,
    }


def test_the_folder_has_the_other_parts_and_a_transformer_that_fits_them(
    write_job,
    section: dict,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_job(write_job(section))
    new = tmp_path / "new"
    model = QwenImageTransformer2DModel.from_pretrained(new / "transformer")
    config = model.config
    assert (
        config.num_layers,
        config.in_channels,
        config.out_channels,
        config.joint_attention_dim,
    ) == (1, 64, 16, 64)
    assert tuple(config.axes_dims_rope) == (4, 6, 6)
    for part in ("vae", "text_encoder"):
        for file in (tiny_model / part).iterdir():
            assert (new / part / file.name).read_bytes() == file.read_bytes()
    counted = sum(p.numel() for p in model.parameters())
    assert any(f"{counted:,} random parameters (seed 0)" in line for line in said)


def test_the_seed_decides_and_a_second_run_leaves_it(
    write_job,
    section: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def weights(path: str, **changes: object) -> dict[str, torch.Tensor]:
        run_job(write_job({**section, "path": path, **changes}))
        return load_file(
            tmp_path / path / "transformer/diffusion_pytorch_model.safetensors"
        )

    first, again, other = weights("new"), weights("again"), weights("other", seed=1)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in other.items())
    run_job(write_job(section), restart=True)
    assert any("is there already" in line for line in said)
    with pytest.raises(
        UserError, match=r"new holds another model\. Give another folder"
    ):
        run_job(write_job({**section, "seed": 2}, name="changed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layer": 2}, r"transformer\.num_layer: .*Did you mean 'num_layers'"),
        (
            {"attention_head_dim": 18},
            r"transformer\.attention_head_dim: 18 is not a multiple of 4",
        ),
        (
            {"axes_dims_rope": [4, 4, 3]},
            "transformer: QwenImageTransformer2DModel cannot be made of it: ",
        ),
    ],
)
def test_arguments_that_make_no_transformer(
    tiny_model: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        new_transformer(tiny_model, arguments)


def test_an_autoencoder_of_another_shape_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    for part, config in (
        ("vae", {"z_dim": 8, "dim_mult": [1, 2, 4]}),
        ("text_encoder", {"hidden_size": 64}),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="vae: its latents have 8 channels and 4 pixels along a side"
    ):
        new_transformer(tmp_path, SMALL)


def test_axes_are_even_and_fill_the_head() -> None:
    for head_dim in (8, 12, 16, 24, 32, 64, 128):
        axes = rope_axes(head_dim)
        assert sum(axes) == head_dim and not any(axis % 2 for axis in axes), head_dim
    assert axes == (16, 56, 56), "of the published model"


@pytest.mark.slow
def test_a_pipeline_trains_an_autoencoder_and_then_a_model_on_it(
    run_py, write_job, trainer, section: dict, make_pictures, tmp_path: Path
) -> None:
    """The second start goes on where nothing is left to do."""
    pictures = make_pictures(tmp_path / "data", "a", "b")
    shared = {
        "training_folder": "output",
        "device": "cpu",
        "training_seed": 3,
        "save": {"save_every": 0},
        "datasets": [{"folder_path": str(pictures), "resolution": 64}],
    }
    train = {"steps": 2, "lr": 1e-3, "dtype": "fp32"}
    vae = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    job = write_job(
        {
            "type": "vae_trainer",
            "name": "vae",
            "model": {"class_name": "AutoencoderKLQwenImage", "config": vae},
            "train": train,
            **shared,
        },
        {**section, "path": "output/job/start", "vae": "output/job/vae/vae"},
        {
            "type": "sd_trainer",
            "name": "flow",
            "model": {"name_or_path": "output/job/start"},
            "network": {"type": "full"},
            "train": train,
            **shared,
        },
    )
    result = run_py(job)
    assert result.returncode == 0, result.stderr
    trained = load_file(
        tmp_path / "output/job/vae/vae/diffusion_pytorch_model.safetensors"
    )
    used = load_file(
        tmp_path / "output/job/flow/flow/vae/diffusion_pytorch_model.safetensors"
    )
    assert all(torch.equal(used[name], tensor) for name, tensor in trained.items())
    scale = json.loads((tmp_path / "output/job/flow/flow/vae/config.json").read_text())
    assert (
        scale["latents_std"]
        == json.loads((tmp_path / "output/job/vae/vae/config.json").read_text())[
            "latents_std"
        ]
    )
    assert ModelFolder(tmp_path / "output/job/flow/flow").learned_sizes() == [(64, 64)]
    later = trainer(pictures, model={"name_or_path": "output/job/flow/flow"})
    later["datasets"][0]["resolution"] = 128
    assert (
        "the model was trained on sides of 64 to 64 pixels"
        in run_py(write_job(later, name="a"), "--dry-run").stderr
    )
    again = run_py(job, "--restart-from", "vae", "--dry-run")
    assert "flow: a new run; the old one is moved aside" in again.stdout
    again = run_py(job, "--restart-from", "vae")
    assert again.returncode == 0, again.stderr
    for old in ("vae.old-1/vae", "start.old-1/transformer", "flow.old-1/flow"):
        assert (tmp_path / "output/job" / old).is_dir()
    anew = load_file(
        tmp_path / "output/job/vae/vae/diffusion_pytorch_model.safetensors"
    )
    assert all(torch.equal(anew[name], tensor) for name, tensor in trained.items())
    assert "flow: finished before" in run_py(job).stdout
    shutil.rmtree(tmp_path / "output/job/vae/vae")
    (tmp_path / "output/job/job_state.json").unlink()
    assert run_py(job).returncode == 0  # it is written again from the run's state
    found = load_file(
        tmp_path / "output/job/vae/vae/diffusion_pytorch_model.safetensors"
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_a_new_transformer_starts_as_the_identity(tiny_model: Path) -> None:
    with global_generator(0, "test"):
        transformer = new_transformer(tiny_model, SMALL)
    block = transformer.transformer_blocks[0]
    streams = [torch.randn(1, tokens, transformer.inner_dim) for tokens in (4, 3)]
    rotary = transformer.pos_embed(
        [[(1, 2, 2)]], max_txt_seq_len=3, device=torch.device("cpu")
    )
    text, image = block(*streams, None, torch.randn(1, transformer.inner_dim), rotary)
    assert torch.equal(image, streams[0]) and torch.equal(text, streams[1])
    assert not transformer.proj_out.weight.any() and not transformer.proj_out.bias.any()
    assert all(
        layer.weight.any()
        for layer in (transformer.img_in, block.attn.to_q, block.img_mlp.net[2])
    )


# ------------------------------------------------------------ tiny models


LAYOUT = {
    *("model_index.json", "scheduler/scheduler_config.json", "tiny_model.json"),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"),
    *(f"text_encoder/{name}" for name in ("config.json", "generation_config.json", "model.safetensors")),
    *(f"{part}/{name}" for part in ("processor", "tokenizer")
      for name in ("added_tokens.json", "merges.txt", "tokenizer_config.json", "vocab.json")),
    "processor/preprocessor_config.json",
}  # fmt: skip
"""Files but the transformer's shards."""


@pytest.fixture
def write(write_job, tmp_path: Path) -> Callable[..., Path]:
    """Runs the job in this process; the model folder."""

    def run(folder: str = "model", **section: object) -> Path:
        run_job(
            write_job({"type": "tiny_model", "path": str(tmp_path / folder), **section})
        )
        return tmp_path / folder

    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_layout_is_the_published_one(tiny_model: Path) -> None:
    names = set(bytes_of(tiny_model))
    shards = {
        name
        for name in names - LAYOUT
        if name.startswith("transformer/diffusion_pytorch_model-")
    }
    assert names - shards == LAYOUT
    assert len(shards) >= 2
    index = json.loads(
        (
            tiny_model / "transformer/diffusion_pytorch_model.safetensors.index.json"
        ).read_text()
    )
    assert {f"transformer/{name}" for name in index["weight_map"].values()} == shards
    parts = {
        name
        for name, value in json.loads(
            (tiny_model / "model_index.json").read_text()
        ).items()
        if value[0] != "_"
    }
    assert {p.name for p in tiny_model.iterdir() if p.is_dir()} <= parts
    assert sum(len(contents) for contents in bytes_of(tiny_model).values()) < 10e6


def test_the_libraries_own_loaders_read_every_part(tiny_model: Path) -> None:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    def load(kind, part: str):
        loaded = kind.from_pretrained(
            tiny_model, subfolder=part, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
        assert not any(
            info[problem]
            for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")
        ), part
        return model

    transformer = load(QwenImageTransformer2DModel, "transformer")
    assert (len(transformer.transformer_blocks), transformer.config.in_channels) == (
        2,
        64,
    )
    assert load(AutoencoderKLQwenImage, "vae").config.z_dim == 16
    encoder = load(Qwen2_5_VLForConditionalGeneration, "text_encoder")
    assert (
        encoder.config.text_config.hidden_size == transformer.config.joint_attention_dim
    )
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
        tiny_model, subfolder="scheduler"
    )
    assert (scheduler.config.max_image_seq_len, scheduler.config.shift_terminal) == (
        8192,
        0.02,
    )
    tokenizer = Qwen2Tokenizer.from_pretrained(
        tiny_model / "tokenizer", local_files_only=True
    )
    text = "<|im_start|>user\na cup of coffee, Ünïcode<|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (
        tokenizer.convert_tokens_to_ids("<|image_pad|>")
        == encoder.config.image_token_id
    )


@pytest.mark.slow
def test_settings_decide_the_bytes_and_a_folder_is_replaced_where_that_is_asked_for(
    write,
) -> None:
    folder = write("one")
    one, times = bytes_of(folder), times_of(folder)
    assert bytes_of(write("same")) == one
    other = bytes_of(write("other", seed=1))
    changed = {name for name in one if one[name] != other.get(name)}
    for part in (
        "text_encoder/model",
        "vae/diffusion_pytorch_model",
        "transformer/diffusion_pytorch_model-",
    ):
        assert any(name.startswith(part) for name in changed), part
    assert times_of(write("one")) == times, "what is there already is kept"
    with pytest.raises(
        UserError, match=r"process\[0\]\.path: .*holds another model.*overwrite: true"
    ):
        write("one", seed=1)
    assert bytes_of(folder) == one
    assert bytes_of(write("one", seed=1, overwrite=True)) == other


def test_the_size_of_the_transformer_can_be_chosen(write) -> None:
    config = json.loads(
        (write(layers=1, heads=3) / "transformer" / "config.json").read_text()
    )
    assert (config["num_layers"], config["num_attention_heads"]) == (1, 3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_folder_is_never_touched(
    write, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    (tmp_path / "model" / "transformer" / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"path: '.*model' was not made by this program"
    ):
        write(overwrite=overwrite)
    assert bytes_of(tmp_path / "model") == {"transformer/config.json": b"{}"}

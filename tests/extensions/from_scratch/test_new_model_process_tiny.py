"""`type: tiny_model`: a folder in the published layout, the same bytes for the same settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import run_job
from toolkit.errors import UserError

LAYOUT = {
    "model_index.json",
    "processor/added_tokens.json",
    "processor/merges.txt",
    "processor/preprocessor_config.json",
    "processor/tokenizer_config.json",
    "processor/vocab.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    "text_encoder/model.safetensors",
    "tiny_model.json",
    "tokenizer/added_tokens.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
"""Files but the transformer's shards."""


@pytest.fixture
def write(write_job, tmp_path: Path) -> Callable[..., Path]:
    """Runs the job in this process; the model folder."""

    def run(folder: str = "model", **section: object) -> Path:
        run_job(write_job({"type": "tiny_model", "path": str(tmp_path / folder), **section}))
        return tmp_path / folder

    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_layout_is_the_published_one(tiny_model: Path) -> None:
    names = set(bytes_of(tiny_model))
    shards = {name for name in names - LAYOUT if name.startswith("transformer/diffusion_pytorch_model-")}
    assert names - shards == LAYOUT
    assert len(shards) >= 2
    index = json.loads((tiny_model / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert {f"transformer/{name}" for name in index["weight_map"].values()} == shards
    parts = {
        name for name, value in json.loads((tiny_model / "model_index.json").read_text()).items() if value[0] != "_"
    }
    assert {p.name for p in tiny_model.iterdir() if p.is_dir()} <= parts
    assert sum(len(contents) for contents in bytes_of(tiny_model).values()) < 10e6


def test_the_libraries_own_loaders_read_every_part(tiny_model: Path) -> None:
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    def load(kind, part: str):
        loaded = kind.from_pretrained(tiny_model, subfolder=part, local_files_only=True, output_loading_info=True)
        model, info = loaded
        assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), part
        return model

    transformer = load(QwenImageTransformer2DModel, "transformer")
    assert (len(transformer.transformer_blocks), transformer.config.in_channels) == (2, 64)
    assert load(AutoencoderKLQwenImage, "vae").config.z_dim == 16
    encoder = load(Qwen2_5_VLForConditionalGeneration, "text_encoder")
    assert encoder.config.text_config.hidden_size == transformer.config.joint_attention_dim
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tiny_model, subfolder="scheduler")
    assert (scheduler.config.max_image_seq_len, scheduler.config.shift_terminal) == (8192, 0.02)
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny_model / "tokenizer", local_files_only=True)
    text = "<|im_start|>user\na cup of coffee, Ünïcode<|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == encoder.config.image_token_id


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(write) -> None:
    one, same, other = bytes_of(write("one")), bytes_of(write("same")), bytes_of(write("other", seed=1))
    assert one == same
    changed = {name for name in one if one[name] != other.get(name)}
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model", "transformer/diffusion_pytorch_model-"):
        assert any(name.startswith(part) for name in changed), part


def test_the_size_of_the_transformer_can_be_chosen(write) -> None:
    config = json.loads((write(layers=1, heads=3) / "transformer" / "config.json").read_text())
    assert (config["num_layers"], config["num_attention_heads"]) == (1, 3)


def test_what_is_there_already_is_kept(write) -> None:
    before = times_of(write())
    assert times_of(write()) == before


def test_other_settings_do_not_replace_a_model_unasked(write, tmp_path: Path) -> None:
    before = bytes_of(write())
    with pytest.raises(UserError, match=r"process\[0\]\.path: .*holds another model.*overwrite: true"):
        write(seed=1)
    assert bytes_of(tmp_path / "model") == before
    assert bytes_of(write(seed=1, overwrite=True)) == bytes_of(write("fresh", seed=1))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_folder_is_never_touched(write, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    (tmp_path / "model" / "transformer" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"path: '.*model' was not made by this program"):
        write(overwrite=overwrite)
    assert bytes_of(tmp_path / "model") == {"transformer/config.json": b"{}"}

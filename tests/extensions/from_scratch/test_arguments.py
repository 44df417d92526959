"""Arguments that a job gives freely to classes of diffusers and transformers."""

from __future__ import annotations

import inspect
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from extensions.from_scratch.arguments import (
    SOURCES,
    autoencoder_fault,
    faults,
    file_fault,
)
from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.latent_flow.family import FAMILY
from tests.extensions.from_scratch.conftest import SMALL, TEXT, TRANSFORMERS, write_vae
from tests.extensions.from_scratch.flow_models import write_flow_model
from tests.quantized import mark
from toolkit.config.reading.process import JobContext

BASES: dict[str, dict[str, Any]] = {**SMALL, **TRANSFORMERS, "BertConfig": TEXT}
KL, QWEN_VAE, TINY = "AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderTiny"
SD3, QWEN, BERT = "SD3Transformer2DModel", "QwenImageTransformer2DModel", "BertConfig"


@pytest.mark.parametrize(
    ("class_name", "name", "value", "said"),
    [
        (KL, "block_out_channels", 32, "32 is not a list."),
        (KL, "block_out_channels", [8, "16"], "'16' is not a whole number."),
        (
            KL,
            "block_out_channels",
            [-8, 16],
            "-8 is out of range: must be from 1 to 1,048,576.",
        ),
        (
            KL,
            "block_out_channels",
            [10, 16],
            "10 is not a multiple of norm_num_groups, which is 4.",
        ),
        (KL, "block_out_channels", [], "has 0 entries: must be from 1 to 10."),
        (KL, "block_out_channels", [8] * 40, "has 40 entries: must be from 1 to 10."),
        (KL, "block_out_channels", None, "null is not a list."),
        (
            KL,
            "down_block_types",
            ["DownEncoderBlock2D"],
            "has 1 entries, block_out_channels 2. Give it 2.",
        ),
        (
            KL,
            "up_block_types",
            ["UpDecoderBlock"] * 2,
            "'UpDecoderBlock' is unknown. Did you mean 'UpDecoderBlock2D'?",
        ),
        (
            KL,
            "down_block_types",
            ["CrossAttnDownBlock2D"] * 2,
            "'CrossAttnDownBlock2D' is unknown.",
        ),
        (KL, "down_block_types", "DownEncoderBlock2D", "is not a list."),
        (KL, "latent_channels", "4", "'4' is not a whole number."),
        (KL, "latent_channels", 4.5, "4.5 is not a whole number."),
        (KL, "latent_channels", 0, "0 is out of range"),
        (KL, "latent_channels", True, "true is not a whole number."),
        (
            KL,
            "latent_chanels",
            4,
            "AutoencoderKL has no such argument. Did you mean 'latent_channels'?",
        ),
        (
            KL,
            "layers_per_block",
            10**9,
            "1000000000 is out of range: must be from 1 to 200.",
        ),
        (KL, "norm_num_groups", 0, "0 is out of range"),
        (KL, "act_fn", "sillu", "'sillu' is unknown. Did you mean 'silu'?"),
        (KL, "in_channels", 4, "4: only 3 is possible. Leave it out."),
        (KL, "scaling_factor", 0, "0 is out of range"),
        (KL, "scaling_factor", float("nan"), "NaN is not a finite number."),
        (KL, "mid_block_add_attention", "yes", "'yes' is neither true nor false."),
        (QWEN_VAE, "dim_mult", [1, 2, 4], "has 1 entries, dim_mult 3. Give it 2."),
        (QWEN_VAE, "dim_mult", [1, 0], "0 is out of range"),
        (QWEN_VAE, "base_dim", -4, "-4 is out of range"),
        (QWEN_VAE, "attn_scales", [1.0], "[1.0]: only [] is possible."),
        (QWEN_VAE, "dropout", 1.5, "1.5 is out of range: must be from 0 to 0.99."),
        (
            TINY,
            "encoder_block_out_channels",
            [8, 16],
            "AutoencoderTiny has the same channels at each level.",
        ),
        (
            TINY,
            "num_decoder_blocks",
            [1],
            "has 1 entries, decoder_block_out_channels 2.",
        ),
        (TINY, "upsampling_scaling_factor", 3, "3: only 2 is possible."),
        (TINY, "upsample_fn", "neerest", "Did you mean 'nearest'?"),
        (SD3, "num_layers", 0, "0 is out of range"),
        (SD3, "num_layers", "2", "'2' is not a whole number."),
        (SD3, "num_layers", 10**9, "1000000000 is out of range"),
        (SD3, "num_layers", {"a": 1}, "a mapping is not a whole number."),
        (SD3, "num_attention_heads", 0, "0 is out of range"),
        (SD3, "attention_head_dim", 7, "7 by 2 heads is 14: must be a multiple of 4."),
        (SD3, "pos_embed_max_size", "16", "'16' is not a whole number."),
        (
            SD3,
            "pos_embed_max_size",
            10**6,
            "1000000 is out of range: must be from 1 to 1,024.",
        ),
        (SD3, "patch_size", 0, "0 is out of range: must be from 1 to 16."),
        (SD3, "sample_size", 1, "1 is smaller than patch_size, which is 2."),
        (
            SD3,
            "joint_attention_dim",
            32,
            "follows from the latents and the text encoder. Leave it out.",
        ),
        (SD3, "dual_attention_layers", [0, 2], "names layer 2 of 2 (from 0)."),
        (SD3, "qk_norm", "rmsnorm", "Did you mean 'rms_norm'?"),
        (
            SD3,
            "num_heads",
            2,
            "SD3Transformer2DModel has no such argument. Did you mean 'num_attention_heads'?",
        ),
        (QWEN, "attention_head_dim", 6, "6 is not a multiple of 4 of at least 8."),
        (
            QWEN,
            "axes_dims_rope",
            [2, 2, 2],
            "must be even numbers whose sum is attention_head_dim, which is 8.",
        ),
        (QWEN, "axes_dims_rope", [4, 4], "is required."),
        (QWEN, "patch_size", 1, "1: only 2 is possible."),
        (QWEN, "use_additional_t_cond", True, "True: only False is possible."),
        (BERT, "hidden_size", "16", "'16' is not a whole number."),
        (
            BERT,
            "hidden_size",
            17,
            "17 is not a multiple of num_attention_heads, which is 2.",
        ),
        (BERT, "num_hidden_layers", -1, "-1 is out of range"),
        (BERT, "num_hidden_layers", 10**9, "1000000000 is out of range"),
        (BERT, "num_attention_heads", 0, "0 is out of range"),
        (BERT, "vocab_size", 1, "1 is out of range: must be from 259 to 1,048,576."),
        (BERT, "hidden_act", "gelo", "Did you mean 'gelu'?"),
        (
            BERT,
            "hiden_size",
            16,
            "BertConfig has no such argument. Did you mean 'hidden_size'?",
        ),
        (BERT, "layer_norm_eps", 1, "1 is out of range"),
        (BERT, "pad_token_id", -1, "-1 is out of range"),
    ],
)
def test_what_a_class_cannot_be_made_of_or_run_with_is_told(
    class_name: str, name: str, value: Any, said: str
) -> None:
    assert any(
        said in message
        for _, message in faults(class_name, {**BASES[class_name], name: value})
    )


@pytest.mark.parametrize("class_name", SOURCES)
def test_the_source_says_what_the_class_says(class_name: str) -> None:
    from extensions.from_scratch.arguments import _parameters

    assert not list(faults(class_name, BASES[class_name]))
    read = {
        name: field.default
        for name, field in _parameters(class_name).model_fields.items()
    }
    assert not list(faults(class_name, read, of_file=True))
    found = getattr(
        import_module("transformers" if class_name == BERT else "diffusers"), class_name
    )
    parameters = inspect.signature(found).parameters
    assert {name: parameters[name].default for name in read} == read


def test_a_file_may_hold_names_of_other_versions() -> None:
    config = {
        "_class_name": SD3,
        "_diffusers_version": "9",
        "new": 1,
        "in_channels": 4,
        **BASES[SD3],
    }
    assert file_fault(Path("config.json"), config) == ""
    said = file_fault(Path("config.json"), config | {"num_layers": "2"})
    assert said == "config.json: num_layers: '2' is not a whole number."


WEIGHTS = "diffusion_pytorch_model.safetensors"


def without(file: Path) -> None:
    file.unlink()


def as_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_text(text: str) -> Any:
    return lambda file: file.write_text(text)


def with_keys(**keys: Any) -> Any:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("config.json", without, "No such file"),
        ("config.json", as_a_pipe, "it is not a file"),
        ("config.json", with_text("[1, 2]"), "does not say of what class it is"),
        (
            "config.json",
            with_text("[" * 10**5),
            "not readable (maximum recursion depth",
        ),
        (
            "config.json",
            with_keys(_class_name="UNet2DModel"),
            "is a UNet2DModel. What can be trained",
        ),
        (
            "config.json",
            with_keys(block_out_channels=32),
            "config.json: block_out_channels: 32 is not a list.",
        ),
        (WEIGHTS, without, "has no weights"),
        (WEIGHTS, halved, "damaged weights (it is cut off)"),
        (WEIGHTS, with_text("{}"), "damaged weights (its header is cut off)"),
    ],
)
def test_a_damaged_autoencoder_is_told_without_loading_it(
    tmp_path: Path, file: str, damage: Any, said: str
) -> None:
    damage(write_vae(tmp_path / "vae") / file)
    section = AutoencoderConfig(name_or_path=str(tmp_path / "vae"))
    found = [one.message for one in section.check(JobContext("job"))] or [
        autoencoder_fault(section)
    ]
    assert said in found[0] and "\n" not in found[0]


@pytest.mark.parametrize(
    ("file", "keys", "said"),
    [
        (
            "transformer/config.json",
            {"num_layers": "2"},
            "num_layers: '2' is not a whole number.",
        ),
        (
            "vae/config.json",
            {"layers_per_block": 10**9},
            "layers_per_block: 1000000000 is out of range",
        ),
        (
            "text_encoder/config.json",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers: 1000000000 is not a number",
        ),
    ],
)
def test_a_damaged_flow_model_is_told_without_loading_it(
    tmp_path: Path, file: str, keys: dict, said: str
) -> None:
    folder = write_flow_model(tmp_path / "model")
    assert FAMILY.config_error(folder) == ""
    with_keys(**keys)(folder / file)
    assert FAMILY.config_error(folder).startswith(f"{folder / file}: {said}")


def test_quantized_parts_are_refused_without_loading_them(tmp_path: Path) -> None:
    said = "is quantized by sdnq (uint4), which is not read. Give the bf16 model that it was made from."
    section = AutoencoderConfig(name_or_path=str(write_vae(tmp_path / "own")))
    assert autoencoder_fault(section) == ""
    place = mark(tmp_path / "own" / "config.json")
    assert autoencoder_fault(section) == f"{place}the vae {said}"
    folder = write_flow_model(tmp_path / "model")
    place = mark(folder / "text_encoder" / "config.json")
    assert FAMILY.config_error(folder) == f"{place}the text_encoder {said}"

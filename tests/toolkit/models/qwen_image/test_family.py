"""What a step of Qwen-Image-Edit-2511 takes beyond one of 2509."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from tests.diffusers_reference import open_tiny
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.memory.quantization import quantizer
from toolkit.models.families import ModelLoadOptions, family_for
from toolkit.models.folder_family import BYTES_PER_WEIGHT
from toolkit.models.qwen_image import loading
from toolkit.models.qwen_image.family import EDIT_2511, FAMILY
from toolkit.models.qwen_image.loading import TEXT_ENCODER
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.models.vl_prompts import load_text_model
from toolkit.networks.lora import LoraNetwork
from toolkit.number_types import QTYPES


def units_of_a_step(folder: Path, zero_cond_t: bool) -> tuple[float, float]:
    """Tensors alive at once in a training step and in a forward pass, in units of
    tokens x width elements a block."""
    spec = TinySpec(layers=3, heads=4, zero_cond_t=zero_cond_t)
    write_tiny_model(folder, spec)
    model = FAMILY.of_folder(folder).open(
        ModelLoadOptions(folder, torch.device("cpu"), torch.float32)
    )
    LoraNetwork(list(model.lora_targets()), 1, 1, dropout=0.0, seed=0).attach(
        model.network_module
    )
    x_BCHW, prompts = (
        torch.randn(1, 16, 32, 32),
        PromptEmbeds.stack([torch.randn(2, 64)]),
    )

    def forward() -> torch.Tensor:
        return model.predict_velocity(
            x_BCHW, torch.tensor([0.5]), prompts, [[x_BCHW[0]]]
        )

    forward()  # fills the tables of positions
    taken = []
    for grad, work in ((True, lambda: forward().sum().backward()), (False, forward)):
        gc.collect()
        with torch.set_grad_enabled(grad), LiveBytes() as live:
            live.phase("step")
            before = live.device
            work()
        taken.append(
            (live.phases["step"].device - before)
            / (4 * 512 * model.network_module.inner_dim)
        )
    return taken[0] / spec.layers, taken[1]


@pytest.mark.slow
def test_modulation_of_each_token_is_planned(tmp_path: Path) -> None:
    of_2509, of_2511 = (
        units_of_a_step(tmp_path / str(zero), zero) for zero in (False, True)
    )
    assert (
        family_for(ModelConfig(name_or_path="qwen/qwen-image-edit-2511")) is EDIT_2511
    )
    planned, plain = EDIT_2511.activation_units["lora"], KINDS["lora"].units
    assert (
        abs(of_2511[0] - of_2509[0] - (planned.everything[1] - plain.everything[1]))
        < 0.5
    )
    assert abs(of_2511[1] - of_2509[1] - (planned.forward[1] - plain.forward[1])) < 0.5


# ------------------------------------------------------------ sizes of all parts


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_encoders_have_as_many_weights_as_are_loaded(tiny_model: Path) -> None:
    facts = FAMILY.footprint(tiny_model)
    text = load_text_model(tiny_model / "text_encoder", TEXT_ENCODER, torch.float32)
    linears = [
        m
        for m in text.language_model.layers.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    assert facts.text.linear_params == sum(m.weight.numel() for m in linears)
    assert facts.text.linear_params + facts.text.other_params == count(text)
    assert facts.vae.other_params == count(
        loading.load_vae(tiny_model / "vae", torch.float32)
    )


def test_the_blocks_have_as_many_weights_as_are_stored(tiny_model: Path) -> None:
    facts = FAMILY.footprint(tiny_model)
    assert facts.linear_params + facts.other_params == sum(
        FAMILY.modules(tiny_model).values()
    )
    # 12 numbers per channel and block come from img_mod and txt_mod.
    assert facts.row_numbers == 12 * facts.width * facts.blocks
    assert len(facts.modulation_layers) == 2 * facts.blocks


def test_without_files_the_sizes_are_the_published_ones(tmp_path: Path) -> None:
    """20.43 B weights, of which 6.8 B a table can stand for; 8.29 B of the text encoder
    with its head."""
    facts = FAMILY.footprint(tmp_path / "none")
    assert round((facts.linear_params + facts.other_params) / 1e9, 2) == 20.43
    assert round(facts.tabulated_weights / 1e9, 2) == 6.79
    assert (
        facts.text.linear_params + facts.text.other_params + facts.text.unused
        == 8_292_166_656
    )
    assert (facts.width, facts.blocks) == (3072, 60)


@pytest.mark.parametrize(
    ("file", "content", "remedy"),
    [
        (
            "vae/diffusion_pytorch_model.safetensors",
            b"\xff" * 20,
            "Copy or download the model again",
        ),
        (
            "text_encoder/model.safetensors",
            b"version https://git-lfs.github.com/spec/v1",
            "Run 'git lfs pull'",
        ),
        ("vae/config.json", b"{", "Copy or download the model again"),
        ("transformer/config.json", b"[1]", "Copy or download the model again"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_instead_of_the_published_sizes(
    tmp_path: Path, file: str, content: bytes, remedy: str
) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{re.escape(str(tmp_path / file))}: .*{remedy}"
    ):
        FAMILY.footprint(tmp_path)


# ------------------------------------------------------------ layers


def test_layers_and_shapes_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    model = open_tiny(tiny_model)
    loaded = {
        name: (module.in_features, module.out_features)
        for name, module in model.network_module.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith("transformer_blocks.")
    }
    assert FAMILY.linear_layers(tiny_model) == loaded
    assert list(model.lora_targets()) == list(FAMILY.linear_layers(tiny_model))


@pytest.mark.parametrize("qtype", QTYPES)
def test_bytes_of_every_type_are_those_of_its_layers(qtype: str) -> None:
    """At the published width."""
    layer = torch.nn.Sequential(
        torch.nn.Linear(3072, 3072, bias=False, dtype=torch.bfloat16)
    )
    quantizer(qtype)(layer, "block")
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    assert stored / 3072**2 == pytest.approx(BYTES_PER_WEIGHT[qtype], rel=0.01)


def test_a_model_that_is_not_here_yet_is_the_published_one(tmp_path: Path) -> None:
    assert len(FAMILY.linear_layers(tmp_path)) == 60 * 14
    assert sum(FAMILY.modules(tmp_path).values()) == pytest.approx(20.43e9, rel=1e-3)


def test_the_config_decides(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 32}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert len(FAMILY.linear_layers(tmp_path)) == 3 * 14
    assert FAMILY.linear_layers(tmp_path)[
        "transformer_blocks.2.img_mlp.net.0.proj"
    ] == (96, 384)

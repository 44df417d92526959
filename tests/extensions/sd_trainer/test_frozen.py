"""A quantized base with what makes it exact again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from extensions.sd_trainer.frozen import block_quantizer
from tests.diffusers_reference import open_tiny, relative
from toolkit.config.model import ModelConfig
from toolkit.contracts import PromptEmbeds
from toolkit.errors import UserError
from toolkit.memory.quantize import quantize_weight, quantizer
from toolkit.memory.stored import Recovered, RowScaled

RANK = 24


def recovery_tensors(model_folder: Path, qtype: str) -> dict[str, Tensor]:
    """A LoRA file's tensors: of each attention layer the best change of `RANK` that undoes its quantization."""
    adapter = open_tiny(model_folder)
    tensors = {}
    for target in adapter.lora_targets():
        if ".attn." in target:
            weight_OI = adapter.network_module.get_submodule(target).weight.detach()
            u, s, vh = torch.linalg.svd(weight_OI - quantize_weight(weight_OI, qtype).dequantize())
            tensors[f"transformer.{target}.lora_A.weight"] = vh[:RANK].contiguous()
            tensors[f"transformer.{target}.lora_B.weight"] = (u[:, :RANK] * s[:RANK]).contiguous()
    return tensors


def section(model_folder: Path, **keys) -> SimpleNamespace:
    return SimpleNamespace(model=ModelConfig(name_or_path=str(model_folder), quantize=True, **keys))


@pytest.fixture
def ask(tiny_model: Path):
    """The quantizer of a section with these keys, and what it said."""

    def ask(**keys):
        notes = []
        made = block_quantizer(section(tiny_model, **keys), notes.append)
        return made(keys.get("qtype", "int8")), notes

    return ask


@torch.no_grad()
def test_a_recovery_adapter_brings_the_output_closer(tiny_model: Path, ask, tmp_path: Path) -> None:
    file = tmp_path / "recovery.safetensors"
    save_file(recovery_tensors(tiny_model, "int2"), file)
    transform, notes = ask(qtype="int2", accuracy_recovery_adapter=str(file))
    plain = open_tiny(tiny_model)
    without = open_tiny(tiny_model, transform_block=mixed_quantizer(plain.lora_targets()))
    recovered = open_tiny(tiny_model, transform_block=transform)
    prompt = PromptEmbeds.stack([plain.encode_prompt("a cat", [])])
    x_BCHW = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(0))
    exact, before, after = (
        adapter.predict_velocity(x_BCHW, torch.tensor([0.5]), prompt, [()]) for adapter in (plain, without, recovered)
    )
    assert relative(after, exact) < 0.7 * relative(before, exact)
    block = recovered.blocks()[0]
    assert type(block.attn.to_q.weight) is Recovered and type(block.img_mlp.net[2].weight) is RowScaled
    assert notes == [
        "accuracy-recovery adapter recovery.safetensors: added to 16 layers of int2, never trained and never saved; "
        "the other 12 are int8"
    ]


def mixed_quantizer(targets):
    """int2 for attention, int8 for the rest: the base of the recovery adapter, without it."""

    def transform(block: nn.Module, name: str) -> None:
        quantizer("int2", recovery={f"{name}.{layer}": NOTHING for layer in ATTENTION})(block, name)

    return transform


ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
             "attn.add_v_proj", "attn.to_add_out")  # fmt: skip
NOTHING = (torch.zeros(64, 1), torch.zeros(1, 64))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"some.layer.lora_A.weight": torch.ones(4, 64)}, "1 keys are of layers that this model does not have"),
        ({}, "recovery.safetensors changes no layer of this model."),
        (
            {
                "transformer_blocks.0.attn.to_q.lokr_w1": torch.ones(2, 2),
                "transformer_blocks.0.attn.to_q.lokr_w2": torch.ones(32, 32),
            },
            "recovery.safetensors is no plain LoRA (transformer_blocks.0.attn.to_q).",
        ),
        (
            {
                "transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 32),
                "transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(32, 4),
            },
            "transformer_blocks.0.attn.to_q",
        ),
    ],
    ids=["unknown", "empty", "another kind", "another size"],
)
def test_a_file_of_no_use_is_refused(ask, tmp_path: Path, keys: dict[str, Tensor], words: str) -> None:
    file = tmp_path / "recovery.safetensors"
    save_file(keys, file)
    with pytest.raises(UserError) as caught:
        ask(qtype="int4", accuracy_recovery_adapter=str(file))
    assert words in str(caught.value)


def test_a_file_of_the_hub_is_brought(ask, tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    from extensions.sd_trainer import frozen

    file = tmp_path / "recovery.safetensors"
    save_file(recovery_tensors(tiny_model, "int4"), file)
    asked = []
    monkeypatch.setattr(frozen, "download_file", lambda name, key, note: asked.append((name, key)) or file)
    ask(qtype="int4", accuracy_recovery_adapter="owner/repo/recovery.safetensors")
    assert asked == [("owner/repo/recovery.safetensors", "model.accuracy_recovery_adapter")]


def test_an_unquantized_model_has_no_quantizer(tiny_model: Path) -> None:
    plain = SimpleNamespace(model=ModelConfig(name_or_path=str(tiny_model)))
    assert block_quantizer(plain, print) is None


def test_a_job_trains_on_a_recovered_base_and_saves_its_own_lora_alone(
    run_py, write_job, trainer, make_pictures, tiny_model: Path, tmp_path: Path
) -> None:
    save_file(recovery_tensors(tiny_model, "int4"), tmp_path / "recovery.safetensors")
    model = {"name_or_path": str(tiny_model), "quantize": True, "qtype": "int4|recovery.safetensors"}
    result = run_py(write_job(trainer(make_pictures(tmp_path / "photos", "a", "b"), model=model)))
    assert result.returncode == 0, result.stderr
    assert "added to the frozen int4 model: recovery.safetensors" in result.stdout
    assert "added to 16 layers of int4, never trained and never saved; the other 12 are int8" in result.stdout
    (file,) = (tmp_path / "output").glob("*/*.safetensors")
    with safe_open(file, framework="pt") as stored:
        ranks = {stored.get_slice(key).get_shape()[0] for key in stored.keys() if "lora_A" in key}  # noqa: SIM118
        moved = [bool(stored.get_tensor(key).any()) for key in stored.keys() if "lora_B" in key]  # noqa: SIM118
        assert stored.metadata()["accuracy_recovery_adapter"] == "recovery.safetensors"
    assert ranks == {4} and sum(moved) > len(moved) / 2
    losses = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2

"""Adapters that are not read are refused by the name of their kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lycoris.modules.norms import NormModule
from lycoris.modules.tlora import TLoraModule
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors.torch import load_file
from torch import nn

from toolkit.errors import UserError
from toolkit.networks.adapter_settings import CONFIG_FILE, FIELDS
from toolkit.networks.lora_formats import load_adapter_file, parse_adapter_tensors
from toolkit.networks.unread_kinds import unread_kind

READ_BY_PEFT_PREFIX = {"lora_", "hada_", "lokr_", "oft_", "boft_"}


def test_every_prefix_of_the_installed_peft_has_a_name() -> None:
    prefixes = set(PEFT_TYPE_TO_PREFIX_MAPPING.values()) - READ_BY_PEFT_PREFIX
    assert len(prefixes) > 30
    assert [
        prefix
        for prefix in prefixes
        if not unread_kind(f"base_model.model.to_q.{prefix}A.weight")
    ] == []


TARGETS: dict[str, Any] = {"target_modules": ["to_q"]}
SAVED: dict[str, tuple[Callable[[], PeftConfig], str]] = {
    "ia3": (
        lambda: peft.IA3Config(feedforward_modules=[], **TARGETS),
        "an IA3 of peft",
    ),
    "vera": (lambda: peft.VeraConfig(r=4, **TARGETS), "a VeRA of peft"),
    "pvera": (lambda: peft.PveraConfig(r=4, **TARGETS), "a PVeRA of peft"),
    "hra": (lambda: peft.HRAConfig(**TARGETS), "an HRA of peft"),
    "miss": (lambda: peft.MissConfig(r=8, **TARGETS), "a MiSS of peft"),
    "delora": (lambda: peft.DeloraConfig(**TARGETS), "a DeLoRA of peft"),
    "randlora": (lambda: peft.RandLoraConfig(**TARGETS), "a RandLoRA of peft"),
    "adalora": (lambda: peft.AdaLoraConfig(total_step=10, **TARGETS), "an AdaLoRA"),
    "glora": (
        lambda: peft.GloraConfig(**TARGETS),
        "a GLoRA of peft, which is another kind than that of LyCORIS",
    ),
    "fourierft": (
        lambda: peft.FourierFTConfig(n_frequency=10, **TARGETS),
        "a FourierFT of peft",
    ),
    "road": (lambda: peft.RoadConfig(**TARGETS), "a RoAd of peft"),
    "shira": (lambda: peft.ShiraConfig(r=2, **TARGETS), "a SHiRA of peft"),
    "vblora": (
        lambda: peft.VBLoRAConfig(vector_length=16, **TARGETS),
        "a VB-LoRA of peft",
    ),
    "c3a": (lambda: peft.C3AConfig(block_size=16, **TARGETS), "a C3A of peft"),
    "kasa": (lambda: LoraConfig(kasa_config=peft.KasaConfig(), **TARGETS), "a KaSA"),
    "velora": (
        lambda: LoraConfig(velora_config=peft.VeloraConfig(), **TARGETS),
        "a VeLoRA",
    ),
    "monteclora": (
        lambda: LoraConfig(monteclora_config=peft.MontecloraConfig(), **TARGETS),
        "a MonteCLoRA",
    ),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_q(x)


@pytest.mark.parametrize("name", SAVED)
def test_a_kind_of_peft_is_refused_by_its_settings_and_without_them_by_its_keys(
    name: str, tmp_path: Path
) -> None:
    config, words = SAVED[name]
    get_peft_model(Net(), config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    kind = config().peft_type.value
    by_settings = (
        f"says peft_type {kind}, a kind that is not read"
        if kind not in FIELDS
        else words
    )
    with pytest.raises(UserError, match=by_settings):
        load_adapter_file(file, ["to_q"])
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match=f"{words}|its keys are peft's"):
        load_adapter_file(file, ["to_q"])
    tensors = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in load_file(file).items()
    }
    with pytest.raises(
        UserError, match=rf"holds {words}.* Only LoRA, .* and whole changes can be"
    ):
        parse_adapter_tensors(tensors, ["to_q"], "file")


def test_a_t_lora_is_refused_by_name() -> None:
    module = TLoraModule("lora", nn.Linear(16, 16))
    tensors = {
        f"lycoris_to_q.{name}": tensor.detach() + 1
        for name, tensor in module.state_dict().items()
    }
    with pytest.raises(
        UserError,
        match="holds a T-LoRA, which adds its difference from a start that is in no file",
    ):
        parse_adapter_tensors(tensors, ["to_q"], "file")


def test_norms_of_lycoris_are_refused_by_name() -> None:
    tensors = {
        f"lycoris_norm.{name}": one
        for name, one in NormModule("lora", nn.LayerNorm(8)).state_dict().items()
    }
    with pytest.raises(UserError, match=r"holds changes of norms"):
        parse_adapter_tensors(tensors, ["norm"], "file")


def test_a_name_of_a_layer_is_no_kind() -> None:
    assert unread_kind("road_blocks.0.shadow_mlp.proj.lora_A.weight") == ""
    assert unread_kind("transformer_blocks.0.attn.to_q.anything") == ""

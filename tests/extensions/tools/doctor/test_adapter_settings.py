"""`run.py doctor` on files with the settings of peft and diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from tests.running import run_tool
from tests.toolkit.networks.test_adapter_settings import (
    LAYERS,
    TARGETS,
    put_settings,
    saved_by_peft,
)
from toolkit.errors import RunError, UserError
from toolkit.networks import adapter_settings
from toolkit.networks.adapter_settings import CONFIG_FILE, HEADER_METADATA


def test_doctor_names_the_setting_that_the_training_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    put_settings(tmp_path, init_lora_weights="pissa")
    with pytest.raises((UserError, RunError)) as error:
        run_tool("doctor", [tmp_path / "adapter_model.safetensors"])
    said = f"{error.value} {capsys.readouterr().out}"
    assert (
        'adapter_config.json says init_lora_weights: "pissa": the start of this adapter was subtracted'
        in said
    )


def test_doctor_reports_settings_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(RunError, match="settings_missing"):
        run_tool("doctor", [tmp_path / "adapter_model.safetensors"])
    assert (
        "Their strength is in adapter_config.json, which is missing."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "header", ["[" * 100_000, "3", "null", "[1]", '"transformer."']
)
def test_doctor_outlives_a_header_that_is_no_mapping(
    header: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {
        f"transformer.{LAYERS[0]}.lora_{matrix}.weight": torch.ones(1, 1)
        for matrix in "AB"
    }
    save_file(tensors, file, metadata={HEADER_METADATA: header})
    with pytest.raises(RunError, match="bad_header"):
        run_tool("doctor", [file])


def test_doctor_names_the_file_whose_patterns_take_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_settings, "MATCH_SECONDS", 0.0)
    file = tmp_path / "x.safetensors"
    tensors = {f"{LAYERS[0]}.lora_{matrix}.weight": torch.ones(1, 1) for matrix in "AB"}
    save_file(
        tensors,
        file,
        metadata={HEADER_METADATA: json.dumps({"r": 1, "alpha_pattern": {".*x": 3}})},
    )
    with pytest.raises(
        UserError, match=r"x\.safetensors: .*its 1 patterns are not done"
    ):
        run_tool("doctor", [file])

"""A LoRA of another model is told by its header, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.config.sections.model import ModelConfig
from toolkit.models.adapter_origin import origin_findings, unreadable, width_findings
from toolkit.models.families import family_for

TO_Q = "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight"
OF_21 = ["diffusion_model.transformer_blocks.1.img_mlp.gate_layer.lora_A.weight", TO_Q]
FUSED_21 = ["lora_unet_transformer_blocks_1_img_mlp_gate_up.lora_down.weight"]
OF_20B = ["lora_unet_transformer_blocks_12_img_mlp_net_0_proj.lora_down.weight", TO_Q]
NOT_QWEN = [
    "double_blocks.0.img_attn.qkv.lora_A.weight",  # FLUX.2 has such a layer, too
    "double_blocks.0.img_mod.lin.lora_A.weight",
]
SDXL = ["lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"]
FLUX = ["transformer.single_transformer_blocks.3.proj_mlp.lora_A.weight"]
EDIT, LATEST, TEXT = (
    "Qwen/Qwen-Image-Edit-2509",
    "Qwen/Qwen-Image-2.1",
    "Qwen/Qwen-Image",
)


def says(**metadata: str) -> dict[str, str]:
    return {key.replace("__", "."): value for key, value in metadata.items()}


@pytest.mark.parametrize(
    ("keys", "metadata", "model", "severity", "words"),
    [
        (
            OF_21,
            {},
            EDIT,
            "error",
            "a LoRA of Qwen-Image-2.1, and this model is Qwen-Image-Edit-2509",
        ),
        (FUSED_21, {}, EDIT, "error", "a LoRA of Qwen-Image-2.1"),
        (
            OF_20B,
            {},
            LATEST,
            "error",
            "or Qwen-Image-Layered, and this model is Qwen-Image-2.1",
        ),
        (
            [TO_Q],
            says(modelspec__architecture="Qwen-Image-2.1/lora"),
            EDIT,
            "error",
            "a LoRA of Qwen-Image-2.1",
        ),
        (
            [TO_Q],
            says(ss_base_model_version="qwen_image_2"),
            EDIT,
            "error",
            "a LoRA of Qwen-Image-2.1",
        ),
        (
            [TO_Q],
            says(modelspec__architecture="Qwen-Image-Edit/loha"),
            LATEST,
            "error",
            "a LoRA of Qwen-Image-Edit",
        ),
        (
            OF_20B,
            says(modelspec__architecture="Qwen-Image/lora"),
            EDIT,
            "warning",
            "was trained on Qwen-Image, and",
        ),
        (
            OF_20B,
            says(ss_base_model_version="qwen_image_layered"),
            LATEST,
            "error",
            "a LoRA of Qwen-Image-Layered",
        ),
        (
            OF_20B,
            says(modelspec__architecture="Qwen-Image-Layered/lora"),
            EDIT,
            "warning",
            "on Qwen-Image-Layered, and",
        ),
        (
            OF_20B,
            says(modelspec__architecture="Qwen-Image-Edit-Plus/lora"),
            EDIT,
            None,
            "",
        ),
        (OF_20B, {}, TEXT, None, ""),
        (OF_21, says(modelspec__architecture="Qwen-Image-2.1/dora"), LATEST, None, ""),
        (FUSED_21, {}, LATEST, None, ""),
        (
            NOT_QWEN,
            {},
            LATEST,
            "error",
            "is a LoRA of FLUX.1: Qwen-Image-2.1 has no layer 'double_blocks.0.img_attn.qkv'",
        ),
        (
            SDXL,
            {},
            EDIT,
            "error",
            "is a LoRA of Stable Diffusion: Qwen-Image-Edit-2509 ",
        ),
        (
            [TO_Q, *FLUX],
            {},
            EDIT,
            "error",
            "is a LoRA of FLUX.1: Qwen-Image-Edit-2509 has no layer 'transformer.single_",
        ),
        (["a.b.lora_A.weight"], {}, EDIT, "error", "is of another model: "),
        ([TO_Q, "a.b.lora_A.weight"], {}, EDIT, None, ""),  # said when it is read
    ],
)
def test_the_file_is_refused_by_the_name_of_its_model(
    keys, metadata, model: str, severity: str | None, words: str, tmp_path: Path
) -> None:
    save_file(
        {key: torch.ones(1, 2) for key in keys},
        tmp_path / "a.safetensors",
        metadata or None,
    )
    section = ModelConfig(name_or_path=model)
    found = list(
        origin_findings(
            "lora.0", str(tmp_path / "a.safetensors"), section, section.files_folder()
        )
    )
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all(words in one.message and one.key[0] == "lora" for one in found)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "lora_unet_"])
@pytest.mark.parametrize(("own", "other"), [(LATEST, EDIT), (EDIT, LATEST)])
def test_every_layer_of_a_file_without_metadata_is_known(
    own: str, other: str, prefix: str, tmp_path: Path
) -> None:
    layers = family_for(ModelConfig(name_or_path=own)).linear_layers(tmp_path)
    names = [
        name.replace(".", "_") if prefix.endswith("_") else name for name in layers
    ]
    save_file(
        {f"{prefix}{name}.lora_A.weight": torch.ones(1) for name in names},
        tmp_path / "a.safetensors",
    )
    for model, errors in ((own, 0), (other, 1)):
        section = ModelConfig(name_or_path=model)
        assert (
            len(
                list(
                    origin_findings(
                        "lora", str(tmp_path / "a.safetensors"), section, tmp_path
                    )
                )
            )
            == errors
        )


def test_of_a_file_that_cannot_be_read_that_alone_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x05\x00")
    section = ModelConfig(name_or_path=EDIT)
    for path in ("", "no.safetensors", "broken.safetensors"):
        for findings in (origin_findings, width_findings):
            assert not list(findings("lora", str(tmp_path / path), section, tmp_path))


def test_what_is_no_whole_safetensors_file_is_told_by_what_it_is(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({TO_Q: torch.ones(4, 64)}, whole)
    torch.save({}, tmp_path / "pickle")
    kinds = {
        b"<!DOCTYPE html>": "it is a web page",
        b"version https://git-lfs.github.com/spec/v1": "it is what Git LFS has",
        (tmp_path / "pickle").read_bytes(): "it is a pickle of torch",
        whole.read_bytes()[:-9]: "it is cut off",
        whole.read_bytes()[:20]: "its header is cut off",
        b"": "its header is cut off",
    }
    for content, words in kinds.items():
        (tmp_path / "a.safetensors").write_bytes(content)
        assert (
            f"safetensors' cannot be read as a safetensors file ({words}"
            in unreadable(str(tmp_path / "a.safetensors"))
        )
    assert unreadable(str(whole)) == unreadable(str(tmp_path / "none")) == ""


@pytest.mark.parametrize(
    "key",
    [f"transformer.{TO_Q.partition('.')[2]}", TO_Q, "lora_unet_" + OF_20B[0][10:]],
)
def test_a_lora_of_a_wider_model_is_known_by_its_header(
    key: str, tmp_path: Path
) -> None:
    file, section = tmp_path / "a.safetensors", ModelConfig(name_or_path=EDIT)
    for inputs, errors in ((3072, 0), (4096, 1)):
        save_file({key: torch.ones(1, inputs)}, file)
        found = list(width_findings("lora", str(file), section, section.files_folder()))
        assert [one.severity for one in found] == ["error"] * errors
        assert all(
            "has 4096 inputs, and the layer of this model 3072" in one.message
            for one in found
        )

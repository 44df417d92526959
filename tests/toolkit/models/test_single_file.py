"""`model.transformer_path`: a transformer in one file gives the weights of its folder, or one line says why not."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.config.model import ModelConfig
from toolkit.memory.quantization import quantizer
from toolkit.models.families import transformer_fault
from toolkit.models.loading import ShardReader, base_hashes, load_model
from toolkit.models.tiny import TinySpec, write_tiny_model

Weights = dict[str, torch.Tensor]
PREFIX = "model.diffusion_model."
ARCHS = ("qwen_image", "qwen_image_edit", "qwen_image_edit_plus", "qwen_image_2")
LINEAR = "transformer_blocks.1.attn.to_k.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {arch: tmp_path_factory.mktemp("model") for arch in ARCHS}
    for arch, folder in made.items():
        write_tiny_model(folder, TinySpec(arch=arch))
    return made


def weights_of(folder: Path) -> Weights:
    with ExitStack() as stack:
        reader = ShardReader(folder / "transformer", stack)
        return {name: reader.take(name).clone() for name in sorted(reader.names)}


def as_comfyui(weights: Weights) -> Weights:
    """With its prefix, and with gate and up in one where the model has them."""
    named = {}
    for name, weight in weights.items():
        if ".img_mlp.gate_layer." in name:
            weight = torch.cat([weight, weights[name.replace("gate_layer", "proj")]])
            name = name.replace("gate_layer", "gate_up")
        if ".img_mlp.proj." not in name:
            named[PREFIX + name] = weight.contiguous()
    return named


def loaded(folder: Path, file: Path | None = None) -> Weights:
    section = ModelConfig(name_or_path=str(folder), transformer_path=file and str(file))
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    return dict(model.network_module.state_dict())


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("names", [dict, as_comfyui])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_bf16_file_gives_the_bits_of_its_folder(
    arch: str, names: Callable[[Weights], Weights], folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "t.safetensors"
    save_file(names({name: weight.bfloat16() for name, weight in weights_of(folders[arch]).items()}), file)
    assert_equal(loaded(folders[arch], file), loaded(folders[arch]))


@pytest.mark.parametrize("scaled", ["", "tensor", "rows", "blocks"])
@pytest.mark.parametrize("ends", [(".scale_weight", ".scale_input"), (".weight_scale", ".input_scale")])
def test_fp8_weights_are_multiplied_by_their_scales(
    scaled: str, ends: tuple[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    stored, expected = {"scaled_fp8": torch.zeros(0)}, {}
    for name, weight in weights_of(folders["qwen_image_edit_plus"]).items():
        expected[name] = stored[PREFIX + name] = weight.bfloat16()
        if weight.ndim != 2 or "transformer_blocks" not in name:
            continue
        count = {"": 1, "tensor": 1, "rows": len(weight), "blocks": 2 * len(weight)}[scaled]
        parts = weight.view(count, -1).float()
        scale = parts.abs().amax(1, keepdim=True) / 448 if scaled else torch.ones(1, 1)
        rounded = (parts / scale).to(torch.float8_e4m3fn)
        expected[name] = (rounded.float() * scale).view(weight.shape).bfloat16()
        stored[PREFIX + name] = rounded.view(weight.shape)
        if scaled:
            shape = {"tensor": (), "rows": (-1, 1), "blocks": (len(weight), 2, 1)}[scaled]
            stored[PREFIX + name.removesuffix(".weight") + ends[0]] = scale.view(shape)
            stored[PREFIX + name.removesuffix(".weight") + ends[1]] = torch.ones(())
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[PREFIX + name.removesuffix(".weight") + ".comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    save_file(stored, tmp_path / "t.safetensors")
    assert_equal(loaded(folders["qwen_image_edit_plus"], tmp_path / "t.safetensors"), expected)


def other_format(weights: Weights) -> None:
    weights["img_in.comfy_quant"] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(LINEAR), f"missing weights: {LINEAR}. Give the whole"),
        (lambda w: w.update({"more.weight": torch.zeros(2)}), "a Qwen-Image-Edit-2509 does not have: more"),
        (lambda w: w.update({LINEAR: torch.zeros(3, 3)}), f"{LINEAR} is (3, 3), this model has ("),
        (lambda w: w.update({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}), "this is FLUX.1. Give a file of"),
        (lambda w: w.update({"__index_timestep_zero__": torch.zeros(0)}), "this is Qwen-Image-Edit-2511. Give a"),
        (lambda w: w.update({LINEAR: w[LINEAR].to(torch.uint8)}), "has weights in U8, which is not read. Give"),
        (lambda w: w.update({"img_in.weight.absmax": torch.zeros(2)}), "is in nf4 or another type of bitsandbytes"),
        (lambda w: w.update({"img_in.scale_weight": torch.zeros(3)}), "img_in.scale_weight is (3,), which is no scale"),
        (lambda w: w.update({"img_in.comfy_quant": torch.zeros(1, dtype=torch.uint8)}), "img_in is in '\\x00', which"),
        (other_format, "img_in is in 'nvfp4', which is not read"),
    ],
)
def test_another_file_is_answered_in_one_line(
    change: Callable[[Weights], object], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image_edit_plus"], tmp_path / "t.safetensors"
    weights = weights_of(folder)
    change(weights)
    save_file(weights, file)
    fault = transformer_fault(ModelConfig(name_or_path=str(folder), transformer_path=str(file)), folder)
    assert said in fault and "\n" not in fault


def test_what_is_no_safetensors_file_is_told_by_its_first_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    file.write_bytes(b"GGUF" + bytes(100))
    fault = transformer_fault(ModelConfig(name_or_path=str(folder), transformer_path=str(file)), folder)
    assert fault == f"{file} is a GGUF file, which is not read. Give the bf16 file, or one in fp8 (e4m3fn)."


def test_a_file_that_is_cut_off_is_damaged(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    save_file(weights_of(folder), file)
    file.write_bytes(file.read_bytes()[:-8])
    fault = transformer_fault(ModelConfig(name_or_path=str(folder), transformer_path=str(file)), folder)
    assert fault == f"{file}: damaged weights (it is cut off). Copy or download the model again."


def test_the_transformer_of_another_family_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file(as_comfyui(weights_of(folders["qwen_image_2"])), tmp_path / "t.safetensors")
    section = ModelConfig(name_or_path=str(folders["qwen_image"]), transformer_path=str(tmp_path / "t.safetensors"))
    assert "this is Qwen-Image-2.1. Give a file of Qwen-Image." in transformer_fault(section, folders["qwen_image"])


def test_the_file_counts_for_the_hash_of_the_transformer_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    section = ModelConfig(name_or_path=str(folder), transformer_path=str(file))
    weights = weights_of(folder)
    save_file(weights, file)
    before = base_hashes(section)
    save_file(weights | {LINEAR: weights[LINEAR] + 1}, file)
    after = base_hashes(section)
    assert [part for part in before if before[part] != after[part]] == ["transformer"]

"""`run.py ara` and `accuracy_recovery_adapter: auto` on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import readme_commands
from tests.layer_files import write_layers
from tests.running import run_tool, section_of
from toolkit.config.sections.model import AUTO_RANK, ModelConfig
from toolkit.errors import ConfigErrors
from toolkit.files.safetensors_io import read_metadata
from toolkit.memory.quantization import WithRecoveryLora
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.train.base_model import load_base_model

CPU = torch.device("cpu")
WRAPPED = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "gate_layer",
    "img_mlp.proj",
    "img_mlp.out",
)


def weights(model: ModelConfig, folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_base_model(model, CPU, torch.float32, training_folder=str(folder))
    layers = dict(loaded.network_module.named_modules())
    return {
        name: layer.weight.dequantize()
        for name, layer in layers.items()
        if isinstance(getattr(layer, "weight", None), WithRecoveryLora)
    }


@pytest.mark.slow
def test_the_commands_of_the_page_make_adapters_that_help(
    tiny_model: Path,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("extensions.tools.ara.process.SIDE", 64)
    monkeypatch.setattr("extensions.tools.ara.process.STEPS", 2)
    make_pictures(tmp_path / "datasets" / "my_char", "a", "b")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "tiny-qwen-edit").symlink_to(tiny_model)
    plain, calibrated = readme_commands("extensions/tools/ara/README.md", "ara")
    small = [
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--resolution",
        "64",
        "--rank",
        "2",
    ]
    found = {}
    for command in (plain, calibrated):
        said.clear()
        run_tool("ara", [*command, *small])
        metadata = read_metadata(tmp_path / command[4])
        layers, means = (
            json.loads(metadata["errors"]),
            json.loads(metadata["mean_errors"]),
        )
        assert metadata["qtype"] == "int4" and metadata["rank"] == "2"
        assert all(after < before for before, after in layers.values())
        assert means["image"][1] < means["image"][0]
        assert any(line.startswith("image: error ") for line in said)
        found[command[4]] = layers
    one, other = found.values()
    assert one.keys() == other.keys() and one != other
    with pytest.raises(ConfigErrors, match="exists already"):
        section_of("ara", [*plain, *small])

    # The file is what a job reads; that of the same rank which `auto` makes is the
    # same, now and from the cache.
    path = tmp_path / "full.safetensors"
    command = [*plain[:4], str(path), *small, "--rank", "32", "--measure", "false"]
    run_tool("ara", command)
    model = {"name_or_path": str(tiny_model), "quantize": True, "qtype": "int4"}
    from_file = weights(
        ModelConfig(**model, accuracy_recovery_adapter=str(path)), tmp_path
    )
    said.clear()
    auto = ModelConfig(**model, accuracy_recovery_adapter="auto")
    made = weights(auto, tmp_path)
    kept = weights(auto, tmp_path)
    assert sum("auto: making one of rank 32" in line for line in said) == 1
    assert len(list((tmp_path / "_cache" / "ara").glob("int4_*.safetensors"))) == 1
    assert from_file.keys() == made.keys() == kept.keys() and len(made) == len(one)
    for name, weight in made.items():
        torch.testing.assert_close(weight, from_file[name])
        assert torch.equal(weight, kept[name])


@pytest.mark.slow
def test_an_adapter_of_layers_is_calibrated_on_images_with_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It generates no image from text to measure with."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_layered"))
    write_layers(tmp_path / "images", 2)
    command = [
        "--model",
        "model",
        "--qtype",
        "int4",
        "--rank",
        "2",
        "--resolution",
        "64",
    ]
    command += ["--dtype", "float32", "--device", "cpu", "--calibrate", "images"]
    with pytest.raises(ConfigErrors) as refused:
        section_of("ara", ["a.safetensors", *command])
    assert [error.message for error in refused.value.errors] == [
        "Qwen-Image-Layered generates no image from text alone, to compare with. Give --measure false."
    ]
    run_tool("ara", ["a.safetensors", *command, "--measure", "false"])
    errors = json.loads(read_metadata(tmp_path / "a.safetensors")["errors"])
    assert errors and all(after < before for before, after in errors.values())


def test_auto_brings_every_quantized_layer_of_2_1_back(tmp_path: Path) -> None:
    """As near as its rank can (Eckart and Young); these layers have no biases."""
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_2"))
    model = {"name_or_path": str(tmp_path / "model")}
    exact = load_base_model(
        ModelConfig(**model), CPU, torch.float32, training_folder=str(tmp_path)
    ).network_module
    quantized = {**model, "quantize": True, "qtype": "uint3"}
    plain = load_base_model(
        ModelConfig(**quantized), CPU, torch.float32, training_folder=str(tmp_path)
    ).network_module
    found = weights(
        ModelConfig(**quantized, accuracy_recovery_adapter="auto"), tmp_path
    )
    assert (
        found.keys()
        == {name for name in dict(exact.named_modules()) if name.endswith(WRAPPED)}
        and len(found) == 14
    )
    for name, weight in found.items():
        whole, lost = (module.get_submodule(name).weight for module in (exact, plain))
        singular = torch.linalg.svdvals(lost.dequantize() - whole)
        assert float((weight - whole).norm()) == pytest.approx(
            float(singular[AUTO_RANK:].norm()), rel=1e-3
        )

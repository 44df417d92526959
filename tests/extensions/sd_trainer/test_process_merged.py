"""`model.base_loras` and `network.pretrained_lora_path` in one whole job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.diffusers_reference import open_tiny, relative
from toolkit.files.safetensors_io import read_metadata
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.adapter import dequantized_weight
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.networks.merge import LoraMerger, read_base_loras


def lora(path: Path, layers: dict[str, tuple[int, int]], seed: int) -> Path:
    """A LoRA file of rank 3 and alpha 6 on these layers: name -> (inputs, outputs)."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in layers.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        down_RI = torch.randn(3, inputs, generator=random)
        up_OR = 0.05 * torch.randn(outputs, 3, generator=random)
        tensors[f"{stem}.lora_down.weight"] = down_RI
        tensors[f"{stem}.lora_up.weight"] = up_OR
        tensors[f"{stem}.alpha"] = torch.tensor(6.0)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.mark.slow
@torch.no_grad()
def test_a_dora_goes_on_from_a_lora_on_a_merged_and_quantized_model(
    run_py: Callable[..., subprocess.CompletedProcess],
    write_job,
    trainer,
    make_pictures,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """At a rate of 0, so that what must be in the file is known: the given LoRA, and
    nothing of the merged one."""
    layers = FAMILY.linear_layers(tiny_model)
    every = FAMILY.every_linear_layer(tiny_model)
    base = lora(tmp_path / "private" / "style.safetensors", every, seed=1)
    given = lora(tmp_path / "private" / "given.safetensors", every, seed=2)
    section = trainer(
        make_pictures(tmp_path / "photos", "a"), train={"steps": 1, "lr": 0}
    )
    section["network"] = {
        "type": "dora",
        "linear": 4,
        "linear_alpha": 4,
        "pretrained_lora_path": str(given),
    }
    section["model"] |= {
        "base_loras": [{"path": str(base), "multiplier": 0.5}],
        "quantize": True,
        "qtype": "int8",
    }
    result = run_py(write_job(section), "-v")
    assert result.returncode == 0, result.stderr
    for said in (
        "merged into the model before training: style.safetensors times 0.5",
        "merged into the model: style.safetensors times 0.5 into 34 layers",
        "started from 28 layers of the given file; 6 of its layers are not trained here",
    ):
        assert said in result.stdout

    given_base = [SimpleNamespace(path=str(base), multiplier=0.5)]
    merged = open_tiny(
        tiny_model,
        merge_fn=lambda: LoraMerger(read_base_loras(given_base, every)),
        transform_block=quantizer("int8"),
    ).network_module
    file = tmp_path / "output" / "job" / "job.safetensors"
    trained = load_adapter_file(file, layers)
    start = load_adapter_file(given, every)
    assert trained.keys() == layers.keys()
    for name, change in trained.items():
        assert relative(change.delta(), start[name].delta()) < 1e-5
        weight_OI = dequantized_weight(merged.get_submodule(name))
        norms_I = (weight_OI + change.delta()).norm(dim=0)
        assert relative(change.magnitude[0], norms_I) < 1e-5
    metadata = {key: str(text) for key, text in read_metadata(file).items()}
    assert json.loads(metadata["base_loras"]) == [
        {"file": "style.safetensors", "multiplier": 0.5}
    ]
    assert not any(str(tmp_path) in text for text in metadata.values())

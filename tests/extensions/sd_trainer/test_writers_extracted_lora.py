"""`save.also: [merged_lora]` and `model.base_loras` in a whole job, and what a stop
makes of the former."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from extensions.sd_trainer.writers import LoraWriter
from tests.diffusers_reference import open_tiny, relative
from tests.running import lines
from toolkit.contracts.training import TrainState
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.adapter import dequantized_weight
from toolkit.networks.lora import DoraNetwork
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.networks.merge import LoraMerger, read_base_loras
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


def lora(path: Path, layers: dict[str, tuple[int, int]], seed: int) -> Path:
    """A LoRA file of rank 3 and alpha 6 on these layers: name -> (inputs, outputs)."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in layers.items():
        tensors[f"lora_unet_{name.replace('.', '_')}.lora_down.weight"] = torch.randn(
            3, inputs, generator=random
        )
        tensors[f"lora_unet_{name.replace('.', '_')}.lora_up.weight"] = (
            0.05 * torch.randn(outputs, 3, generator=random)
        )
        tensors[f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(6.0)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.slow
@torch.no_grad()
def test_a_dora_goes_on_from_a_lora_on_a_merged_and_quantized_model(
    run_py: Callable[..., subprocess.CompletedProcess],
    write_job,
    trainer,
    make_pictures,
    tiny_model,
    tmp_path: Path,
) -> None:
    """At a rate of 0, so that what must be in the files is known: the given LoRA, and
    nothing of the merged one."""
    layers, every = (
        FAMILY.linear_layers(tiny_model),
        FAMILY.every_linear_layer(tiny_model),
    )
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
    section["save"] |= {"also": ["merged_lora"], "merged_lora_rank": 5}
    section["model"] |= {
        "base_loras": [{"path": str(base), "multiplier": 0.5}],
        "quantize": True,
        "qtype": "int8",
    }

    result = run_py(write_job(section))
    assert result.returncode == 0, result.stderr
    assert (
        "merged into the model before training: style.safetensors times 0.5"
        in result.stdout
    )
    assert (
        "merged into the model: style.safetensors times 0.5 into 34 layers"
        in result.stdout
    )
    assert (
        "started from 28 layers of the given file; 6 of its layers are not trained here"
        in result.stdout
    )
    assert (
        "job_lora.safetensors: the nearest LoRA of rank 5; relative error"
        in result.stdout
    )

    main, plain = (
        tmp_path / "output" / "job" / name
        for name in ("job.safetensors", "job_lora.safetensors")
    )
    merged = open_tiny(
        tiny_model,
        merge_fn=lambda: LoraMerger(
            read_base_loras([SimpleNamespace(path=str(base), multiplier=0.5)], every)
        ),
        transform_block=quantizer("int8"),
    ).network_module
    trained, lora_beside = (
        load_adapter_file(main, layers),
        load_adapter_file(plain, layers),
    )
    start = load_adapter_file(given, every)
    assert trained.keys() == lora_beside.keys() == layers.keys()
    for name, change in trained.items():
        assert relative(change.delta(), start[name].delta()) < 1e-5
        weight_OI = dequantized_weight(merged.get_submodule(name))
        assert (
            relative(change.magnitude[0], (weight_OI + change.delta()).norm(dim=0))
            < 1e-5
        )
        assert relative(lora_beside[name].delta(), start[name].delta()) < 1e-4
    assert json.loads(metadata_of(main)["base_loras"]) == [
        {"file": "style.safetensors", "multiplier": 0.5}
    ]
    about = metadata_of(plain)
    assert json.loads(about["base_loras"]) == json.loads(
        metadata_of(main)["base_loras"]
    )
    assert (about["network_type"], about["rank"], about["ss_network_dim"]) == (
        "lora",
        "5",
        "5",
    )
    assert json.loads(about["merged_from"]) == {
        "network_type": "dora",
        "rank": "4",
        "alpha": "4.0",
    }
    assert float(about["error_worst"]) < 1e-4
    assert not any(
        str(tmp_path) in value
        for path in (main, plain)
        for value in metadata_of(path).values()
    )
    events = lines(tmp_path / "output" / "job" / "events.jsonl")
    [event] = [event for event in events if event["event"] == "merged_lora"]
    assert (event["file"], event["rank"]) == ("job_lora.safetensors", 5)
    [saved] = [event for event in events if event["event"] == "save"]
    assert saved["files"] == ["job.safetensors", "job_lora.safetensors"]


class Dora:
    """A DoRA on one layer in a run that keeps an average of its weights."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.network = DoraNetwork(["layer"], 2, 2.0, 0.0, seed=1)
        self.network.attach(nn.ModuleDict({"layer": nn.Linear(6, 5)}))
        self.run = Run("toy", folder, 10, 1, seed=1, roles={}, state=TrainState(step=3))
        parameters = self.network.parameters()
        role = Role(
            parameters, torch.optim.SGD(parameters.values()), 0.1, lambda step: 1.0
        )
        self.average = {name: p.detach().clone() for name, p in parameters.items()}
        role.eval_weights = lambda: self.average
        self.run.roles[NETWORK] = role
        save = SimpleNamespace(
            merged_lora_rank=5, dtype="float32", also=["merged_lora"]
        )
        self.writer = LoraWriter(self.network, SimpleNamespace(save=save), {})


@pytest.fixture
def dora(tmp_path: Path) -> Dora:
    return Dora(tmp_path)


def test_it_holds_the_average_as_it_was_when_the_save_began(dora: Dora) -> None:
    dora.average["layer.lora_B.weight"] += 0.1
    weight_OI = dequantized_weight(dora.network.layers["layer"].base_layer)
    changed_OI = (
        weight_OI
        + dora.average["layer.lora_B.weight"] @ dora.average["layer.lora_A.weight"]
    )
    expected_OI = (
        changed_OI * (weight_OI.norm(dim=0) / changed_OI.norm(dim=0)) - weight_OI
    )
    write = dora.writer.snapshot(dora.run, 3)
    for tensors in (dora.average, dora.network.parameters()):
        for tensor in tensors.values():
            tensor.data += 1  # the training goes on
    [_, file] = write()
    assert file.name == "toy_000000003_lora.safetensors"
    assert (
        relative(load_adapter_file(file, ["layer"])["layer"].delta(), expected_OI)
        < 1e-5
    )


def test_a_stop_leaves_it_out_but_at_the_end_of_the_run(
    said: list[str], dora: Dora, tmp_path: Path
) -> None:
    dora.run.should_stop = lambda: True
    assert [path.name for path in dora.writer.snapshot(dora.run, 3)()] == [
        "toy_000000003.safetensors"
    ]
    assert said == [
        "toy_000000003_lora.safetensors is left out: the run is asked to stop"
    ]
    assert not (tmp_path / "toy_000000003_lora.safetensors").exists()
    assert len(dora.writer.snapshot(dora.run, None)()) == 2


def test_a_best_file_has_none(dora: Dora) -> None:
    assert [path.name for path in dora.writer.snapshot(dora.run, "best")()] == [
        "toy_best.safetensors"
    ]

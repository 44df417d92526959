"""Whole jobs: how the blocks are run changes no file, and may change between a run and its resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.counted import count_trained
from extensions.sd_trainer.memory import settle
from extensions.sd_trainer.memory_work import work_of
from jobs.job import ExtensionJob
from tests.extensions.sd_trainer.test_parallel_config import several
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.models.qwen_edit.footprint import footprint
from toolkit.models.qwen_edit.tiny import TinySpec, write_tiny_model


@pytest.fixture(scope="module")
def five_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "five"
    write_tiny_model(folder, TinySpec(layers=5))
    return str(folder)


def weights_of(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_auto_hears_of_the_step_and_of_the_optimizers_state(five_blocks: str) -> None:
    section = SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "model": {"name_or_path": five_blocks},
            "datasets": [{"folder_path": "d"}],
            "network": {"type": "dora", "linear": 4},
            "train": {"optimizer": "adamw", "gradient_accumulation": 2},
        }
    )
    heard = {}
    engine = SimpleNamespace(settle=lambda work, **others: heard.update(work=work, **others))
    adapter, network = (
        SimpleNamespace(tokens=lambda batch: 77),
        SimpleNamespace(parameters=lambda: {"a": torch.ones(1)}),
    )
    settle(engine, section, adapter, network, largest=None, gather=sorted)
    trained = count_trained(section)
    assert heard["work"] == work_of(section, footprint(Path(five_blocks)), trained, 77, on_card=False)
    assert (heard["work"].kind, heard["work"].blocks, heard["work"].gradients_wait) == ("dora", 5, True)
    assert (heard["needed"], heard["gather"]) == (8 * trained.weights, sorted)
    settle(engine, section, adapter, network, largest=None, remembered=7 * trained.weights)
    assert heard["needed"] == trained.weights, "a run that goes on has it already"


def test_auto_hears_of_the_blocks_that_are_whole_although_they_are_shared_out(monkeypatch, five_blocks: str) -> None:
    section = SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "model": {"name_or_path": five_blocks},
            "datasets": [{"folder_path": "d"}],
            "network": {"type": "full"},
            "train": {"optimizer": "sgd", "parallel": "fsdp", "dtype": "bf16"},
        }
    )
    heard = []
    engine = SimpleNamespace(settle=lambda work, needed, gather: heard.append((needed, work.gradients)))
    adapter = SimpleNamespace(tokens=lambda batch: 77)
    network = SimpleNamespace(parameters=lambda: {"a": torch.ones(1)})
    facts = footprint(Path(five_blocks))
    for processes in (1, 2):
        with several(monkeypatch, processes):
            settle(engine, section, adapter, network, largest=None)
    (alone, gradients), (shared_out, of_rows) = heard
    assert (alone, shared_out) == (0, facts.linears // 5 * (2 * 2 + 2 + 2 * 4))
    assert of_rows == pytest.approx(gradients - 4 * facts.linears / 2, rel=0.02)  # biases are dealt out, too


def test_a_run_goes_on_with_other_settings_of_memory_in_the_same_bits(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, five_blocks: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_pictures(tmp_path / "photos", "a", "b")

    def run(name: str, level: object, swapped: int, **changes: object) -> tuple[list[float], dict[str, bytes]]:
        section = trainer(
            photos,
            train={"steps": 4, "lr": 1e-3, "gradient_checkpointing": level},
            model={"name_or_path": five_blocks, "quantize": True, "blocks_to_swap": swapped},
            network={"type": "lora", "linear": 4, "linear_alpha": 4, "dropout": 0.1},
            save={"dtype": "float32", "save_every": 2, "max_states_to_keep": 0},
            **changes,
        )
        extensions = discover()
        job = ExtensionJob(load_job(write_job(section, name=name), extensions.find_config), extensions)
        job.run()
        job.cleanup()
        folder = tmp_path / "output" / name
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines], weights_of(folder / f"{name}.safetensors")

    plain = run("job", "auto", 0)
    assert "train.gradient_checkpointing auto: none, " in capsys.readouterr().out
    assert run("job", "full", 3, resume=2) == plain
    assert "model.blocks_to_swap: 0 -> 3" in capsys.readouterr().out
    assert run("other", "cheap", 4) == plain

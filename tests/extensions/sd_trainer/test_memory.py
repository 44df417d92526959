"""Whole jobs: how the blocks are run changes no file, and may change between a run and its resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.job import ExtensionJob
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.models.qwen_edit.tiny import TinySpec, write_tiny_model


@pytest.fixture(scope="module")
def five_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "five"
    write_tiny_model(folder, TinySpec(layers=5))
    return str(folder)


def weights_of(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


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

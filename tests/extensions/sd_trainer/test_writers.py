"""The network files of a run: their names, their weights, their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.writers import LoraWriter
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.output import SaveConfig
from toolkit.config.sections.train import TrainConfig
from toolkit.contracts.training import TrainState
from toolkit.optim.ema import Ema
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


def writer(
    chosen: SdTrainerConfig | None = None, meta: dict | None = None
) -> LoraWriter:
    """Of a network with one matrix, called `up.weight` in files."""
    network = SimpleNamespace(
        export=lambda weights: {
            f"{name}.weight": tensor for name, tensor in weights.items()
        },
        sharded_params=dict,
    )
    chosen = chosen or section()
    return LoraWriter(
        network,
        chosen,
        job_metadata(chosen, meta or {}, "maya", 400, seed=1, optimizer=None),
    )


@pytest.fixture
def run(tmp_path: Path):
    """After 340 steps: the weights are 1, their average (if there is one) is 0.25."""

    def make(ema: bool) -> Run:
        parameters = {"up": nn.Parameter(torch.ones(2, 3))}
        average = Ema(parameters, 0.9) if ema else None
        if average:
            average.averages["up"].fill_(0.25)
        role = Role(
            parameters,
            torch.optim.SGD(parameters.values()),
            0.1,
            lambda step: 1.0,
            ema=average,
        )
        state = TrainState(step=340, epochs_done=2)
        return Run("maya", tmp_path, 400, 1, seed=1, roles={NETWORK: role}, state=state)

    return make


def section(model: str = "Qwen/Qwen-Image-Edit-2509", **save: object):
    return SdTrainerConfig(
        type="sd_trainer",
        model=ModelConfig(name_or_path=model),
        network=NetworkConfig(linear=16, linear_alpha=8.0),
        save=SaveConfig(**save),
        train=TrainConfig(),
        datasets=(DatasetConfig(folder_path="photos"),),
        trigger_word="maya_char",
    )


def read(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["up.weight"]
        return file.get_tensor("up.weight"), file.metadata()


def test_a_step_is_in_the_name_of_its_file_and_the_last_has_none(
    run, tmp_path: Path
) -> None:
    assert writer().snapshot(run(ema=False), 340)() == [
        tmp_path / "maya_000000340.safetensors"
    ]
    assert writer().snapshot(run(ema=False), None)() == [tmp_path / "maya.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "maya.safetensors",
        "maya_000000340.safetensors",
    ]


@pytest.mark.parametrize(("ema", "value"), [(False, 1.0), (True, 0.25)])
def test_the_average_is_what_is_saved_where_there_is_one(
    run, ema: bool, value: float
) -> None:
    [path] = writer().snapshot(run(ema), None)()
    weight, _ = read(path)
    assert torch.equal(weight, torch.full((2, 3), value, dtype=torch.float16))


def test_raw_weights_go_beside_the_average_when_asked_for(run) -> None:
    files = writer(section(also=("raw",), dtype="float32")).snapshot(
        run(ema=True), 340
    )()
    assert [path.name for path in files] == [
        "maya_000000340.safetensors",
        "maya_000000340_raw.safetensors",
    ]
    assert [read(path)[0][0, 0].item() for path in files] == [0.25, 1.0]
    assert read(files[1])[0].dtype == torch.float32


def test_raw_weights_are_not_written_twice_when_there_is_no_average(run) -> None:
    assert len(writer(section(also=("raw",))).snapshot(run(ema=False), 340)()) == 1


def test_the_metadata_tells_what_it_is_and_holds_what_the_user_adds(run) -> None:
    meta = {"author": "${USER}", "tags": ["a", "ü"], "trigger_word": "mine"}
    _, metadata = read(writer(meta=meta).snapshot(run(ema=False), 340)()[0])
    assert json.loads(metadata["training_info"]) == {"step": 340, "epoch": 2}
    assert json.loads(metadata["software"])["name"] == "Atelier"
    assert (metadata["rank"], metadata["alpha"], metadata["network_type"]) == (
        "16",
        "8.0",
        "lora",
    )
    assert (metadata["base_model"], metadata["ss_output_name"]) == (
        "Qwen/Qwen-Image-Edit-2509",
        "maya",
    )
    # never expanded
    assert (metadata["author"], json.loads(metadata["tags"])) == (
        "${USER}",
        ["a", "ü"],
    )
    # what was trained, whatever `meta` says
    assert metadata["trigger_word"] == "maya_char"
    assert len(metadata["sha256"]) == 64


@pytest.mark.parametrize(
    "spelling",
    ["{0}/private/my-model", "~/my-model", "./my-model", "some/private/my-model"],
)
def test_a_folder_gives_only_its_last_name(run, tmp_path: Path, spelling: str) -> None:
    [path] = writer(section(spelling.format(tmp_path))).snapshot(run(ema=False), None)()
    assert read(path)[1]["base_model"] == "my-model"


def test_without_metadata_the_header_holds_what_loading_asks_for_and_the_weights_are_the_same(
    run,
) -> None:
    [told] = writer(meta={"author": "me"}).snapshot(run(ema=False), 340)()
    weight, _ = read(told)
    [untold] = writer(section(no_metadata=True), meta={"author": "me"}).snapshot(
        run(ema=False), None
    )()
    assert read(untold)[1] == {"format": "pt"}
    assert torch.equal(read(untold)[0], weight)

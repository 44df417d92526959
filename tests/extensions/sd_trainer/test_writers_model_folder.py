"""Model folders: complete for diffusers and for this program, cheap on disk, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from extensions.sd_trainer import writers
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.writers import ModelFolderWriter
from tests.diffusers_reference import load_pipeline, open_tiny
from toolkit.errors import RunError
from toolkit.models import parts
from toolkit.networks.full import FullNetwork
from toolkit.optim.ema import Ema
from toolkit.train.flow_step import NETWORK
from toolkit.train.interface import TrainState
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run

PARTS = {"model_index.json", "processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Callable[..., tuple]:
    """A writer, a run after 340 steps in which all weights of one layer have become 0.5, and the model they are in."""

    def make(ema: bool = False, **save) -> tuple:
        model = open_tiny(tiny_model)
        network = FullNetwork(["transformer_blocks.0.attn.to_q", "proj_out"], torch.float32)
        network.attach(model.network_module)
        parameters = network.parameters()
        average = Ema(parameters, 0.9) if ema else None
        with torch.no_grad():
            parameters["proj_out.weight"].fill_(0.5)
        role = Role(parameters, torch.optim.SGD(parameters.values()), 0.1, lambda step: 1.0, ema=average)
        run = Run("maya", tmp_path, 400, 1, seed=1, roles={NETWORK: role}, state=TrainState(step=340, epochs_done=2))
        chosen = section(tiny_model, **save)
        metadata = job_metadata(chosen, {}, run.name, run.steps, run.seed, role.optimizer)
        return ModelFolderWriter(network, chosen, metadata), run, model

    return make


def section(model: Path, **save) -> SdTrainerConfig:
    return SdTrainerConfig(
        type="sd_trainer",
        model={"name_or_path": str(model)},
        network={"type": "full"},
        save={"dtype": "float32", **save},
        datasets=[{"folder_path": "photos"}],
    )


def test_the_folder_is_a_model_for_diffusers_and_for_this_program(trained) -> None:
    writer, run, adapter = trained()
    [folder] = writer.snapshot(run, 340)()
    assert folder == run.folder / "maya_000000340"
    assert {path.name for path in folder.iterdir()} == PARTS | {"atelier.json", "training.json"}
    expected = adapter.network_module.state_dict()
    assert expected["proj_out.weight"].unique().item() == 0.5
    for transformer in (
        QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
        load_pipeline(folder).transformer,
        open_tiny(folder).network_module,
    ):
        found = transformer.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert json.loads(json.loads((folder / "training.json").read_text())["training_info"]) == {"step": 340, "epoch": 2}


def test_the_end_has_no_number_and_the_average_is_what_is_saved(trained) -> None:
    writer, run, _ = trained(ema=True, also=("raw",), dtype="bfloat16")
    assert [path.name for path in writer.snapshot(run, None)()] == ["maya", "maya_raw"]
    weights = [open_tiny(run.folder / name).network_module.proj_out.weight for name in ("maya", "maya_raw")]
    assert [weight.unique().numel() == 1 for weight in weights] == [False, True]


def test_weights_are_copied_when_the_save_begins_or_written_at_once(trained, tmp_path: Path) -> None:
    """Training goes on between `prepare` and the writing; `mem_eff_save` writes the same bytes before it does."""
    found = []
    for mem_eff_save in (False, True):
        writer, run, _ = trained(mem_eff_save=mem_eff_save, dtype="bfloat16")
        run.folder = tmp_path / str(mem_eff_save)
        write = writer.snapshot(run, None)
        assert (run.folder / "maya").exists() is mem_eff_save
        with torch.no_grad():
            run.roles[NETWORK].parameters["proj_out.weight"].fill_(7.0)
        [folder] = write()
        found.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
        assert open_tiny(folder).network_module.proj_out.weight.unique().item() == 0.5
    assert found[0] == found[1]


# ---------------------------------------------------------------- the parts that are not trained


def test_large_files_of_the_base_are_linked_and_small_ones_are_not(trained, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(parts, "LINKED_BYTES", 50_000)
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, 1)()
    vae, tokens = "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"
    assert os.path.samefile(folder / vae, tiny_model / vae)
    assert not os.path.samefile(folder / tokens, tiny_model / tokens)
    assert (folder / tokens).read_bytes() == (tiny_model / tokens).read_bytes()
    assert not os.path.samefile(folder / "model_index.json", tiny_model / "model_index.json")


# ---------------------------------------------------------------- all or nothing


def test_a_save_that_fails_leaves_no_folder_and_an_older_one_as_it_was(trained, monkeypatch) -> None:
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, None)()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with torch.no_grad():
        run.roles[NETWORK].parameters["proj_out.bias"][0] = float("nan")
    for step in (None, 360):
        with pytest.raises(RunError, match=r"maya.*proj_out\.bias is not finite"):
            writer.snapshot(run, step)()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in run.folder.iterdir()] == ["maya"]

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "write_shards", full_disk)
    with pytest.raises(RunError, match=r"maya_000000380: cannot be written: .*No space left"):
        writer.snapshot(run, 380)()
    assert [path.name for path in run.folder.iterdir()] == ["maya"]


def test_what_is_no_model_is_never_replaced(trained) -> None:
    writer, run, _ = trained()
    (run.folder / "maya" / "state").mkdir(parents=True)  # such as the run of another process
    with pytest.raises(RunError, match="maya' was not made by this program"):
        writer.snapshot(run, None)()
    assert (run.folder / "maya" / "state").is_dir()


def test_the_same_step_again_replaces_the_folder_but_not_what_was_added_to_it(trained) -> None:
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, 340)()
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        run.roles[NETWORK].parameters["proj_out.weight"].fill_(2.0)
    assert writer.snapshot(run, 340)() == [folder]
    assert open_tiny(folder).network_module.proj_out.weight.unique().item() == 2.0
    (kept,) = [path for path in run.folder.iterdir() if path != folder]
    assert kept.name == f"{folder.name}.old-1" and (kept / "notes.txt").read_text() == "mine"

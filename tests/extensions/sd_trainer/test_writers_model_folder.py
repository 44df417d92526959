"""Model folders: complete for diffusers and for this program, cheap on disk, all or
nothing."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from extensions.sd_trainer import writers
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.metadata import job_metadata
from extensions.sd_trainer.writers import (
    LoraWriter,
    ModelFolderWriter,
    SingleFileWriter,
)
from tests.diffusers_reference import MEMBERS, load_pipeline, open_tiny
from tests.full_run import run_of_full_network
from tests.processes import in_processes
from tests.quantized import mark
from toolkit.errors import RunError
from toolkit.models import parts
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.full import FullNetwork
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train.collectives import WorkerContext, install_command_handler
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run

PARTS = {
    "model_index.json",
    "processor",
    "scheduler",
    "text_encoder",
    "tokenizer",
    "transformer",
    "vae",
}


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Callable[..., tuple]:
    """A writer, a run after 340 steps in which all weights of one layer have become
    0.5, and the model they are in."""

    def make(ema: bool = False, **save) -> tuple:
        model = open_tiny(tiny_model)
        network, run = run_of_full_network(
            model.network_module,
            ["transformer_blocks.0.attn.to_q", "proj_out"],
            tmp_path,
            with_ema=ema,
        )
        chosen = section(tiny_model, **save)
        optimizer = run.roles[NETWORK].optimizer
        metadata = job_metadata(chosen, {}, run.name, run.steps, run.seed, optimizer)
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
    assert {path.name for path in folder.iterdir()} == PARTS | {
        "atelier.json",
        "training.json",
    }
    expected = adapter.network_module.state_dict()
    assert expected["proj_out.weight"].unique().item() == 0.5
    for transformer in (
        QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
        load_pipeline(folder).transformer,
        open_tiny(folder).network_module,
    ):
        found = transformer.state_dict()
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in found.items()
        )
    assert json.loads(
        json.loads((folder / "training.json").read_text())["training_info"]
    ) == {"step": 340, "epoch": 2}


def test_the_end_has_no_number_and_the_average_is_what_is_saved(trained) -> None:
    writer, run, _ = trained(ema=True, also=("raw",), dtype="bfloat16")
    assert [path.name for path in writer.snapshot(run, None)()] == ["maya", "maya_raw"]
    weights = [
        open_tiny(run.folder / name).network_module.proj_out.weight
        for name in ("maya", "maya_raw")
    ]
    assert [weight.unique().numel() == 1 for weight in weights] == [False, True]


def test_weights_are_copied_when_the_save_begins_or_written_at_once(
    trained, tmp_path: Path
) -> None:
    """Training goes on between `prepare` and the writing; `mem_eff_save` writes the
    same bytes before it does."""
    found = []
    for mem_eff_save in (False, True):
        writer, run, _ = trained(mem_eff_save=mem_eff_save, dtype="bfloat16")
        run.folder = tmp_path / str(mem_eff_save)
        write = writer.snapshot(run, None)
        assert (run.folder / "maya").exists() is mem_eff_save
        with torch.no_grad():
            run.roles[NETWORK].parameters["proj_out.weight"].fill_(7.0)
        [folder] = write()
        found.append(
            {
                p.relative_to(folder): p.read_bytes()
                for p in folder.rglob("*")
                if p.is_file()
            }
        )
        assert open_tiny(folder).network_module.proj_out.weight.unique().item() == 0.5
    assert found[0] == found[1]


class _Sharded(FullNetwork):
    """Has the rows of one rank of every tensor that has rows."""

    def __init__(self, model: torch.nn.Module, rank: int, ranks: int) -> None:
        self.tensors = model.state_dict()
        sharded = {name: t for name, t in self.tensors.items() if t.ndim and ranks > 1}
        self.shards = {
            name: RowShard.of(t.shape, rank, ranks) for name, t in sharded.items()
        }

    def sharded_params(self) -> dict[str, RowShard]:
        return self.shards

    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {
            name: self.tensors[name][shard.start : shard.stop]
            for name, shard in self.shards.items()
        }
        return dict(reversed((self.tensors | own).items()))


def _sharded(
    process_group: ProcessGroup, model: nn.Module, folder: Path
) -> tuple[_Sharded, Run]:
    """A model and a run of it in one of several processes."""
    network = _Sharded(model, process_group.rank, process_group.world_size)
    weight = {"w": nn.Parameter(torch.zeros(1))}
    role = Role(weight, torch.optim.SGD(weight.values()), 0.1, lambda step: 1.0)
    run = Run(
        "maya",
        folder,
        400,
        1,
        seed=1,
        roles={NETWORK: role},
        process_group=process_group,
    )
    install_command_handler(WorkerContext(None, network, run))
    return network, run


def _write_sharded(
    process_group: ProcessGroup, model: Path, folder: Path, kind: type[LoraWriter]
) -> int:
    """The most gathered copies that rank 0 has at a time."""
    network, run = _sharded(process_group, open_tiny(model).network_module, folder)
    copies, most, gather = weakref.WeakSet(), 0, process_group.gather_to_rank0

    def watched(*of: Any) -> Tensor | None:
        nonlocal most
        if (copy := gather(*of)) is not None:
            copies.add(copy)
        most = max(most, len(copies))
        return copy

    process_group.gather_to_rank0 = watched
    if process_group.is_main_process:
        kind(network, section(model), {"who": "maya"}).snapshot(run, None)()
    process_group.all_gather_object("done")
    return most


@pytest.mark.slow
def test_of_a_sharded_model_rank_0_gathers_one_tensor_at_a_time(
    tiny_model: Path, tmp_path: Path
) -> None:
    most = in_processes(3, _write_sharded, tiny_model, tmp_path, ModelFolderWriter)
    assert most == [1, 0, 0]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = (
        load_file(tmp_path / "maya" / weights),
        open_tiny(tiny_model).network_module.state_dict(),
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_2511", [False, True])
def test_a_sharded_model_in_one_file_is_gathered_by_the_rows_of_a_layer(
    tmp_path: Path, is_2511: bool
) -> None:
    """The bytes are those that one process writes: with two layers in one, and with the
    tensor of no elements by which ComfyUI knows the model."""
    base = tmp_path / "base"
    write_tiny_model(
        base,
        MEMBERS["Qwen-Image-Edit-2511"] if is_2511 else TinySpec(arch="qwen_image_2"),
    )
    assert in_processes(
        3, _write_sharded, base, tmp_path / "shared", SingleFileWriter
    ) == [1 if is_2511 else 2, 0, 0]
    assert (
        _write_sharded(ProcessGroup(), base, tmp_path / "alone", SingleFileWriter) == 0
    )
    ours, theirs = (
        tmp_path / folder / "maya.safetensors" for folder in ("shared", "alone")
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert ("__index_timestep_zero__" in load_file(ours)) == is_2511


def _fail_sharded(
    process_group: ProcessGroup, model: Path, folder: Path, kind: type[LoraWriter]
) -> str:
    """Why nothing was written; on all ranks, told by the first one afterwards."""
    transformer = open_tiny(model).network_module
    transformer.img_in.bias.fill_(float("nan"))
    network, run = _sharded(process_group, transformer, folder)
    said = ""
    if process_group.is_main_process:
        with pytest.raises(RunError) as found:
            kind(network, section(model), {}).snapshot(run, None)
        said = str(found.value)
    return process_group.all_gather_object(said)[0]


@pytest.mark.parametrize(
    ("kind", "file"),
    [(ModelFolderWriter, "maya"), (SingleFileWriter, "maya.safetensors")],
)
def test_a_sharded_model_that_cannot_be_written_leaves_no_process_within_it(
    tiny_model: Path, tmp_path: Path, kind: type[LoraWriter], file: str
) -> None:
    """The best weights need not be saved for training to go on."""
    first, second = in_processes(2, _fail_sharded, tiny_model, tmp_path, kind)
    assert (
        first == second
        and first.startswith(f"{tmp_path / file}: ")
        and "img_in.bias is not finite" in first
    )
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the parts that are
# not trained


def test_large_files_of_the_base_are_linked_and_small_ones_are_not(
    trained, tiny_model, monkeypatch
) -> None:
    monkeypatch.setattr(parts, "LINKED_BYTES", 50_000)
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, 1)()
    vae, tokens = "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"
    assert os.path.samefile(folder / vae, tiny_model / vae)
    assert not os.path.samefile(folder / tokens, tiny_model / tokens)
    assert (folder / tokens).read_bytes() == (tiny_model / tokens).read_bytes()
    assert not os.path.samefile(
        folder / "model_index.json", tiny_model / "model_index.json"
    )


# ---------------------------------------------------------------- all or nothing


def test_a_save_that_fails_leaves_no_folder_and_an_older_one_as_it_was(
    trained, monkeypatch
) -> None:
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, None)()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with torch.no_grad():
        run.roles[NETWORK].parameters["proj_out.bias"][0] = float("nan")
    for step in (None, 360):
        with pytest.raises(RunError, match=r"maya.*proj_out\.bias is not finite"):
            writer.snapshot(run, step)()
    assert {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == before
    assert [path.name for path in run.folder.iterdir()] == ["maya"]

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "write_shards_in_turn", full_disk)
    with pytest.raises(
        RunError, match=r"maya_000000380: cannot be written: .*No space left"
    ):
        writer.snapshot(run, 380)()
    assert [path.name for path in run.folder.iterdir()] == ["maya"]


def test_what_is_no_model_is_never_replaced(trained) -> None:
    writer, run, _ = trained()
    # such as the run of another process
    (run.folder / "maya" / "state").mkdir(parents=True)
    with pytest.raises(RunError, match="maya' was not made by this program"):
        writer.snapshot(run, None)()
    assert (run.folder / "maya" / "state").is_dir()


def test_the_same_step_again_replaces_the_folder_but_not_what_was_added_to_it(
    trained,
) -> None:
    writer, run, _ = trained()
    [folder] = writer.snapshot(run, 340)()
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        run.roles[NETWORK].parameters["proj_out.weight"].fill_(2.0)
    assert writer.snapshot(run, 340)() == [folder]
    assert open_tiny(folder).network_module.proj_out.weight.unique().item() == 2.0
    (kept,) = [path for path in run.folder.iterdir() if path != folder]
    assert (
        kept.name == f"{folder.name}.old-1"
        and (kept / "notes.txt").read_text() == "mine"
    )


def test_the_config_does_not_say_that_the_base_was_quantized(
    trained, tiny_model: Path, tmp_path: Path
) -> None:
    """A job may give `transformer_path` beside a folder whose own weights are
    quantized."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = base / "transformer" / "config.json"
    plain = config.read_text()
    mark(config)
    writer, run, _ = trained()
    chosen = section(base)
    of_model = chosen.model.model_copy(
        update={"transformer_path": "transformer.safetensors"}
    )
    chosen = chosen.model_copy(update={"model": of_model})
    writer = ModelFolderWriter(writer.network, chosen, {})
    (written,) = writer.snapshot(run, None)()
    assert json.loads(
        (written / "transformer" / "config.json").read_text()
    ) == json.loads(plain)
    assert "quantization_config" in config.read_text()

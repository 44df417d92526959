"""The state folder: what is in it, which one counts, and that going on from it is exact."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.contracts import TrainState
from toolkit.errors import RunError
from toolkit.optim.ema import Ema
from toolkit.optim.optimizers import build_optimizer
from toolkit.train import checkpoint
from toolkit.train.checkpoint import load_state, newest_state, recorded_seed, recorded_step, save_state
from toolkit.train.run import Role, Run

FILES = ["MANIFEST.json", "ema.safetensors", "optimizer.safetensors", "state.json", "weights.safetensors"]


def make_run(folder: Path, optimizer: str = "adamw", rank: int = 64, ema: bool = True, fill: int = 0) -> Run:
    """Two matrices, the larger one big enough (4096 numbers) for an 8-bit state."""
    generator = torch.Generator().manual_seed(fill)
    parameters = {
        "block.lora_A.weight": nn.Parameter(torch.randn(rank, 80, generator=generator)),
        "block.lora_B.weight": nn.Parameter(torch.randn(4, rank, generator=generator)),
    }
    role = Role(
        parameters,
        build_optimizer(optimizer, parameters.values(), 0.01, {}),
        lr=0.01,
        schedule=lambda step: 1.0,
        ema=Ema(parameters, 0.9) if ema else None,
    )
    return Run("toy", folder, steps=100, accumulation=1, seed=77, roles={"network": role})


def take_steps(run: Run, count: int) -> None:
    role = run.roles["network"]
    for _ in range(count):
        generator = torch.Generator().manual_seed(1000 + run.state.step)
        for parameter in role.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        role.optimizer.step()
        if role.ema:
            role.ema.update()
        run.state.step += 1
        run.state.samples += 3


def saved(folder: Path, *steps: int) -> list[Path]:
    """The state folders of one run at these steps."""
    run, paths = make_run(folder), []
    for step in steps:
        take_steps(run, step - run.state.step)
        paths.append(save_state(run))
    return paths


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of a run, by name."""
    role = run.roles["network"]
    optimizer = {
        f"optimizer/{name}/{entry}": torch.as_tensor(value)
        for name, parameter in role.parameters.items()
        for entry, value in role.optimizer.state[parameter].items()
        if value is not None
    }
    averages = {f"ema/{name}": tensor for name, tensor in role.ema.averages.items()} if role.ema else {}
    return optimizer | averages | {name: p.detach() for name, p in role.parameters.items()}


def assert_same_bits(one: Run, other: Run) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adam", "adafactor", "lion8bit"])
def test_a_state_comes_back_bit_for_bit_and_training_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: str
) -> None:
    run = make_run(tmp_path, optimizer)
    take_steps(run, 3)
    run.state = TrainState(step=3, epoch=2, batch=1, samples=9, skipped=1, extra={"hook": {"seen": [1, 2]}})
    path = save_state(run)

    other = make_run(tmp_path, optimizer, fill=1)
    load_state(path, other)
    assert other.state == TrainState(step=3, epoch=2, batch=1, samples=9, skipped=1, extra={"hook": {"seen": [1, 2]}})
    assert other.roles["network"].ema.updates == 3
    assert_same_bits(run, other)
    if optimizer.endswith("8bit"):
        assert any(t.dtype == torch.uint8 for t in everything(run).values())

    take_steps(run, 2)
    take_steps(other, 2)
    assert_same_bits(run, other)


def test_a_state_folder_says_what_it_is(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 4)
    assert path == tmp_path / "state" / "step_000000004"
    assert sorted(p.name for p in path.iterdir()) == FILES  # safetensors and JSON: nothing that runs code when read
    assert (recorded_step(path), recorded_seed(path)) == (4, 77)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert (manifest["format"], manifest["step"], sorted(manifest["files"])) == (1, 4, FILES[1:])
    assert all(manifest["files"][name]["size"] == (path / name).stat().st_size for name in FILES[1:])


# ------------------------------------------------------------ which one counts


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    file.write_bytes(contents)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_state_is_passed_over_with_the_reason(tmp_path: Path, name: str, damage) -> None:
    older, newer = saved(tmp_path, 2, 4)
    damage(newer / name)
    said: list[str] = []
    assert newest_state(tmp_path, said.append) == older
    assert len(said) == 1
    assert str(newer) in said[0] and name in said[0]


def test_a_manifest_that_is_json_but_no_manifest_is_passed_over(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 2, 4)
    for text in ("[]", "{}", '{"format": 1}', '{"format": 99, "files": {}}', '{"format": 1, "files": ["a"]}'):
        (newer / "MANIFEST.json").write_text(text)
        assert newest_state(tmp_path, lambda _: None) == older


def test_the_highest_step_wins_whatever_the_file_times_and_the_spelling(tmp_path: Path) -> None:
    low, high = saved(tmp_path, 2, 4)
    for path in (high, *high.iterdir()):
        os.utime(path, (1, 1))
    assert newest_state(tmp_path) == high
    # A tenth digit: sorted as text it would come first.
    low.rename(low.with_name("step_999999999"))
    high.rename(high.with_name("step_1000000000"))
    assert newest_state(tmp_path).name == "step_1000000000"


def test_without_a_state_there_is_none(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    (tmp_path / "state").mkdir()
    assert newest_state(tmp_path) is None


def test_a_broken_off_save_is_no_state(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 2)
    path.rename(path.with_name(".tmp-4-99-abcdef01"))
    said: list[str] = []
    assert newest_state(tmp_path, said.append) is None
    assert said == []


def test_the_manifest_is_written_last_and_the_name_given_after_it(tmp_path: Path, monkeypatch) -> None:
    [older] = saved(tmp_path, 2)
    written: list[str] = []
    write_json, replace = checkpoint.write_json, os.replace

    def listing(path: Path, data: object) -> None:
        if path.name == "MANIFEST.json":
            written.extend(sorted(p.name for p in path.parent.iterdir()))
        write_json(path, data)

    def crash(source, target) -> None:
        if Path(target).name.startswith("step_"):
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(checkpoint, "write_json", listing)
    monkeypatch.setattr(checkpoint.os, "replace", crash)
    run = make_run(tmp_path)
    take_steps(run, 4)
    with pytest.raises(OSError, match="power cut"):
        save_state(run)
    assert written == FILES[1:]
    assert [p.name for p in (tmp_path / "state").iterdir()] == [older.name]
    assert newest_state(tmp_path) == older


def test_the_newest_two_stay(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 10, 30)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step_000000010", "step_000000030"]


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 2)
    truncate(path / "weights.safetensors")
    run = make_run(tmp_path)
    take_steps(run, 2)
    assert save_state(run) == path
    assert newest_state(tmp_path) == path


# ------------------------------------------------------------ states that do not fit


@pytest.mark.parametrize("rank", [16, 65])
def test_a_state_of_another_rank_is_refused_by_name(tmp_path: Path, rank: int) -> None:
    [path] = saved(tmp_path, 2)
    with pytest.raises(RunError) as error:
        load_state(path, make_run(tmp_path, rank=rank))
    for word in (str(path), "network/block.lora_A.weight", "linear"):
        assert word in str(error.value)


def test_a_state_of_other_layers_is_refused_by_name(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 2)
    run = make_run(tmp_path)
    run.roles["network"].parameters["other.lora_A.weight"] = nn.Parameter(torch.zeros(2))
    with pytest.raises(RunError, match=r"network/other\.lora_A\.weight"):
        load_state(path, run)


def test_an_average_that_is_switched_on_later_starts_from_the_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, ema=False)
    take_steps(run, 2)
    other = make_run(tmp_path, ema=True, fill=1)
    load_state(save_state(run), other)
    ema = other.roles["network"].ema
    assert ema.updates == 0
    assert all(torch.equal(ema.averages[name], p) for name, p in run.roles["network"].parameters.items())


@pytest.mark.parametrize(("before", "after"), [("adamw", "adamw8bit"), ("adamw8bit", "adamw"), ("adamw", "adafactor")])
def test_another_optimizer_than_the_state_was_made_with_is_refused(tmp_path: Path, before: str, after: str) -> None:
    run = make_run(tmp_path, before)
    take_steps(run, 2)
    path = save_state(run)
    with pytest.raises(RunError, match=r"train\.optimizer"):
        load_state(path, make_run(tmp_path, after))

"""What a state holds comes back bit for bit, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toolkit.train.states import make_run, save_state, saved, take_steps
from toolkit.contracts.training import TrainState
from toolkit.data.batches.epoch_order import epoch_cursor
from toolkit.errors import RunError
from toolkit.train.checkpoint_state import load_state, saved_seed, snapshot_state
from toolkit.train.checkpoint_store import reading_state, step_of
from toolkit.train.run import Run

FILES = [
    "MANIFEST.json",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "weights.safetensors",
]


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of a run, by name."""
    role = run.roles["network"]
    optimizer = {
        f"optimizer/{name}/{entry}": torch.as_tensor(value)
        for name, parameter in role.parameters.items()
        for entry, value in role.optimizer.state[parameter].items()
        if value is not None
    }
    averages = (
        {f"ema/{name}": tensor for name, tensor in role.ema.averages.items()}
        if role.ema
        else {}
    )
    return (
        optimizer | averages | {name: p.detach() for name, p in role.parameters.items()}
    )


def assert_same_bits(one: Run, other: Run) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw8bit", "adam", "adafactor", "lion8bit"]
)
def test_a_state_comes_back_bit_for_bit_and_training_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: str
) -> None:
    run = make_run(tmp_path, optimizer)
    take_steps(run, 3)
    run.state = TrainState(
        step=3,
        epoch=2,
        cursor=epoch_cursor(2, 1),
        samples=9,
        skipped=1,
        extra={"hook": {"seen": [1, 2]}},
    )
    path = save_state(run)

    other = make_run(tmp_path, optimizer, fill=1)
    load_state(path, other)
    assert other.state == TrainState(
        step=3,
        epoch=2,
        cursor=epoch_cursor(2, 1),
        samples=9,
        skipped=1,
        extra={"hook": {"seen": [1, 2]}},
    )
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
    # safetensors and JSON: nothing that runs code when read
    assert sorted(p.name for p in path.iterdir()) == FILES
    assert (step_of(path), saved_seed(path)) == (4, 77)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert (manifest["format"], manifest["step"], sorted(manifest["files"])) == (
        1,
        4,
        FILES[1:],
    )
    assert all(
        manifest["files"][name]["size"] == (path / name).stat().st_size
        for name in FILES[1:]
    )


def test_a_snapshot_does_not_follow_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    take_steps(run, 2)
    before = {
        name: p.detach().clone() for name, p in run.roles["network"].parameters.items()
    }
    run.checkpoint_metadata["compiled"] = {"blocks": True}
    snapshot = snapshot_state(run)
    take_steps(run, 1)
    run.checkpoint_metadata["compiled"]["blocks"] = False
    assert snapshot.step == snapshot.document["state"]["step"] == 2
    assert snapshot.document["compiled"] == {"blocks": True}
    assert snapshot.document["threads"] == torch.get_num_threads()
    for name, tensor in before.items():
        assert torch.equal(snapshot.tensors["weights"][f"network/{name}"], tensor)
        assert not torch.equal(run.roles["network"].parameters[name], tensor)


def test_a_changed_optimizer_may_begin_afresh(tmp_path: Path) -> None:
    run = make_run(tmp_path, "adamw")
    take_steps(run, 2)
    other = make_run(tmp_path, "lion8bit", fill=1)
    load_state(save_state(run), other, fresh_optimizer=True)
    assert other.state.step == 2
    assert not other.roles["network"].optimizer.state
    for name, parameter in run.roles["network"].parameters.items():
        assert torch.equal(other.roles["network"].parameters[name], parameter)


# ------------------------------------------------------------ states that do not fit


def test_what_an_optimizer_raises_of_its_state_never_throws_the_training_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: torch.optim.Optimizer, state: dict) -> None:
        raise KeyError("kind")

    [path] = saved(tmp_path, 2)
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", refuse)
    with pytest.raises(RunError) as error, reading_state(path):
        load_state(path, make_run(tmp_path))
    assert str(error.value) == (
        f"{path}: AdamW cannot load the state that it has saved (no entry 'kind'). The state itself is whole: install "
        "the version of the optimizer's package with which it was saved. Or set train.optimizer to another one and add "
        "--allow-change: the weights go on from here, the optimizer starts fresh."
    )


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
    run.roles["network"].parameters["other.lora_A.weight"] = nn.Parameter(
        torch.zeros(2)
    )
    with pytest.raises(RunError, match=r"network/other\.lora_A\.weight"):
        load_state(path, run)


def test_an_average_that_is_switched_on_later_starts_from_the_weights(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, ema=False)
    take_steps(run, 2)
    other = make_run(tmp_path, ema=True, fill=1)
    load_state(save_state(run), other)
    ema = other.roles["network"].ema
    assert ema.updates == 0
    assert all(
        torch.equal(ema.averages[name], p)
        for name, p in run.roles["network"].parameters.items()
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [("adamw", "adamw8bit"), ("adamw8bit", "adamw"), ("adamw", "adafactor")],
)
def test_another_optimizer_than_the_state_was_made_with_is_refused(
    tmp_path: Path, before: str, after: str
) -> None:
    run = make_run(tmp_path, before)
    take_steps(run, 2)
    path = save_state(run)
    with pytest.raises(RunError, match=r"name, or restore train\.optimizer"):
        load_state(path, make_run(tmp_path, after))
    load_state(path, make_run(tmp_path, before))

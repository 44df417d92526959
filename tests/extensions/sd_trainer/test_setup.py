"""The optimizer of a section: groups of weights with rates of their own, and how they
go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp  # once, not in each process
from safetensors.torch import load_file, save_file
from torch import nn

from extensions.sd_trainer.setup import build_roles, load_pretrained_lora
from tests.processes import in_processes
from tests.running import lines, run_job
from toolkit.config.sections.model import BaseLora, ModelConfig
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.train import TrainConfig
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.memory.fsdp import shard_block_fn
from toolkit.networks.full import FullNetwork
from toolkit.networks.lora import LoraNetwork
from toolkit.networks.merge import read_base_loras
from toolkit.system.distributed import ProcessGroup
from toolkit.train.checkpoint_state import load_state, snapshot_state
from toolkit.train.checkpoint_store import checkpoint_dir, write_checkpoint
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


def run_of(folder: Path, ratio: float = 0, **train) -> Run:
    """A run on three layers with a LoRA each."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(6, 5) for name in "abc"})
    network = LoraNetwork(list(model), 2, 2.0, 0.0, seed=1)
    network.attach(model)
    section = SimpleNamespace(
        train=TrainConfig(lr=0.1, **train),
        network=NetworkConfig(linear=2, loraplus_lr_ratio=ratio),
    )
    return Run(
        "toy",
        folder,
        steps=10,
        grad_accum_steps=1,
        seed=1,
        roles=build_roles(section, network, 10, 1, ProcessGroup()),
    )


def role_of(run: Run) -> Role:
    return run.roles["network"]


def take_steps(run: Run, count: int) -> None:
    role = role_of(run)
    for _ in range(count):
        for index, name in enumerate(sorted(role.parameters)):
            generator = torch.Generator().manual_seed(100 * run.state.step + index)
            role.parameters[name].grad = torch.randn(
                role.parameters[name].shape, generator=generator
            )
        norm = role.optimizer_step.norm(role)
        role.optimizer_step.step(role, run.state.step, norm, torch.isfinite(norm))
        run.state.step += 1


def test_without_groups_all_is_one_group_at_the_rate(tmp_path: Path) -> None:
    role = role_of(run_of(tmp_path))
    assert len(role.optimizer.param_groups) == 1 and role.group_lrs == {}
    assert role.learning_rates() == {}
    assert list(role.parameters) == [
        f"{layer}.lora_{matrix}.weight" for layer in "abc" for matrix in "AB"
    ]


def test_each_group_follows_the_schedule_at_its_own_rate(tmp_path: Path) -> None:
    run = run_of(tmp_path, ratio=4, lr_scheduler="linear")
    take_steps(run, 1)
    rates = {"base": 0.1, "base up": 0.4}
    assert role_of(run).learning_rates() == pytest.approx(rates)
    take_steps(run, 1)
    assert role_of(run).learning_rates() == pytest.approx(
        {name: 0.9 * rate for name, rate in rates.items()}
    )
    assert role_of(run).lr * role_of(run).schedule(1) == pytest.approx(0.09)


def test_weights_are_named_in_the_order_of_the_optimizer(tmp_path: Path) -> None:
    role = role_of(run_of(tmp_path, ratio=4))
    in_optimizer = [p for group in role.optimizer.param_groups for p in group["params"]]
    assert all(
        own is p for own, p in zip(role.parameters.values(), in_optimizer, strict=True)
    )
    assert list(role.parameters)[:3] == [
        "a.lora_A.weight",
        "b.lora_A.weight",
        "c.lora_A.weight",
    ]


def test_frozen_matrices_of_a_kind_are_in_the_checkpoint_and_are_not_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(KINDS["lora"], frozen_names=frozenset({"lora_A.weight"}))
    monkeypatch.setattr(LoraNetwork, "kind", kind)
    run = run_of(tmp_path, ema_config={"use_ema": True})
    take_steps(run, 1)
    ups = [f"{layer}.lora_B.weight" for layer in "abc"]
    assert list(role_of(run).parameters) == list(role_of(run).ema.averages) == ups
    path = write_checkpoint(checkpoint_dir(tmp_path), snapshot_state(run), 1)
    saved = load_file(path / "weights.safetensors")
    names = [
        f"network/{layer}.lora_{matrix}.weight" for layer in "abc" for matrix in "AB"
    ]
    assert sorted(saved) == names
    assert role_of(run).size == sum(tensor.nbytes for tensor in saved.values())
    drawn = saved[names[0]].clone()
    role_of(run).buffers["a.lora_A.weight"].zero_()
    load_state(path, run)
    assert torch.equal(role_of(run).buffers["a.lora_A.weight"], drawn)


def test_prodigys_own_rate_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path, optimizer="prodigy")
    take_steps(run, 3)
    (group,) = role_of(run).optimizer.param_groups
    assert role_of(run).learning_rates() == {"d*lr": group["d"] * group["lr"]}


# ------------------------------------------------------------ a whole job


@pytest.mark.slow
def test_a_job_with_groups_and_a_limit_goes_on_in_the_same_bits(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "photos", "a", "b"),
        network={
            "type": "lora",
            "linear": 4,
            "linear_alpha": 4,
            "loraplus_lr_ratio": 4,
            "scale_weight_norms": 0.01,
        },
        save={"dtype": "float32", "save_every": 2, "max_states_to_keep": 0},
        train={
            "steps": 4,
            "lr": 1e-3,
            "ema_config": {"use_ema": True, "ema_decay": 0.9},
        },
    )

    def run(**changes: object) -> tuple[list[dict], list[bytes]]:
        run_job(write_job({**section, **changes}))
        folder = tmp_path / "output" / "job"
        rows = lines(folder / "metrics.jsonl")
        for line in rows:
            del line["step_s"], line["data_s"], line["time"]
        names = ("job.safetensors", "state/step_000000004/optimizer.safetensors")
        return rows, [(folder / name).read_bytes() for name in names]

    whole = run()
    last = whole[0][-1]
    rates = {"base": 1e-3, "base up": 4e-3}
    assert {name: last[f"lr/{name}"] for name in rates} == pytest.approx(rates)
    assert last["lr"] == 1e-3
    assert last["max_norm/keys_scaled"] > 0
    assert (
        last["max_norm/average_key_norm"]
        <= last["max_norm/max_key_norm"]
        <= 0.01 * (1 + 1e-5)
    )
    assert run(resume=2) == whole


# ------------------------------------------------------------ sharded


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "schedulefree_adamw"])
def test_each_process_holds_its_rows_of_all_that_is_trained_and_no_more(
    optimizer: str,
) -> None:
    """A block of 24 + 4 weights, of which two processes have 14 each; float32, and per
    parameter a few counters."""
    arguments = {"momentum": 0.9} if optimizer == "sgd" else {}
    section = SimpleNamespace(
        train=TrainConfig(
            optimizer=optimizer,
            optimizer_params=arguments,
            ema_config={"use_ema": True},
        ),
        network=NetworkConfig(type="full"),
    )

    def work(process_group: ProcessGroup) -> tuple[int, ...]:
        block = nn.Linear(6, 4)
        shard_block_fn(
            torch.device("cpu"),
            torch.float32,
            process_group.world_size,
            process_group.run_collective,
        )(block, "block")
        network = FullNetwork([""], torch.float32)
        network.attach(block)
        role = build_roles(section, network, 10, 1, process_group)["network"]
        for _ in range(2):
            block(torch.ones(1, 6)).sum().backward()
        norm = role.optimizer_step.norm(role)
        assert norm.item() == pytest.approx(
            (4 * (2 * process_group.world_size) ** 2 * (6 + 1)) ** 0.5
        )
        held = bytes_of(p.grad for p in role.parameters.values())
        role.optimizer_step.step(role, 0, norm, torch.isfinite(norm))
        state = [
            value
            for entries in role.optimizer.state.values()
            for value in entries.values()
        ]
        tensors = [
            value for value in state if isinstance(value, torch.Tensor) and value.dim()
        ]
        return (
            bytes_of(p.to_local() for p in block.parameters()),
            held,
            bytes_of(role.ema.averages.values()),
            bytes_of(tensors) // (len(tensors) // 2),
        )

    ends = in_processes(2, work)
    assert isinstance(ends[0], tuple), ends[0]
    assert ends == [(4 * 14,) * 4] * 2, "weights, gradients, averages, each moment"


def test_a_file_that_no_network_trains_is_refused_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "glora.safetensors"
    shapes = {"a1": (64, 2), "a2": (2, 64), "b1": (64, 2), "b2": (2, 64)}
    stem = "lycoris_transformer_blocks_0_attn_to_q"
    save_file(
        {f"{stem}.{name}.weight": torch.ones(shape) for name, shape in shapes.items()},
        file,
    )
    section = SimpleNamespace(
        network=NetworkConfig(pretrained_lora_path=str(file)),
        model=ModelConfig(name_or_path=str(tiny_model)),
    )
    with pytest.raises(
        UserError,
        match=r"the file is a GLoRA .* Give it as model\.base_loras, or merge it",
    ):
        load_pretrained_lora(section)
    as_base = [BaseLora(path=str(file))]
    [read] = read_base_loras(as_base, {"transformer_blocks.0.attn.to_q": (64, 64)})
    assert read.file == file.name

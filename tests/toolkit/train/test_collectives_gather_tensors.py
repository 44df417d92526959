"""What the first process collects for a file is whole, whoever has the rows of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.processes import in_processes
from toolkit.optim.ema import Ema
from toolkit.system.distributed import ProcessGroup
from toolkit.system.sharded_param import RowShard
from toolkit.train.collectives import WorkerContext, gather_full_tensors, install_command_handler, network_state_dict
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run

WHOLE = {"matrix": torch.arange(10.0).view(5, 2), "bias": torch.tensor([7.0]), "outside": torch.tensor([1.0, 2.0])}
SHARED_OUT = ("matrix", "bias")
FROZEN = torch.arange(3.0)


def run_and_network(process_group: ProcessGroup) -> tuple[Run, SimpleNamespace]:
    """Rows of two weights, another one that is whole, and a frozen weight that is sharded too. Averages are -1."""
    parts = {name: RowShard.of(WHOLE[name].shape, process_group.rank, process_group.world_size) for name in SHARED_OUT}
    parts["frozen"] = RowShard.of(FROZEN.shape, process_group.rank, process_group.world_size)

    def rows(name: str, whole: Tensor) -> Tensor:
        return whole[parts[name].start : parts[name].stop] if name in parts else whole

    parameters = {name: nn.Parameter(rows(name, whole).clone()) for name, whole in WHOLE.items()}
    ema = Ema(parameters, 0.5)
    for average in ema.averages.values():
        average.fill_(-1.0)
    role = Role(parameters, torch.optim.SGD(parameters.values()), 0.1, lambda step: 1.0, ema=ema, sharded=parts)
    frozen = rows("frozen", FROZEN)
    network = SimpleNamespace(export=lambda weights: {"frozen": frozen} | weights, sharded_params=lambda: parts)
    run = Run("toy", Path(), steps=1, grad_accum_steps=1, seed=1, roles={"network": role}, process_group=process_group)
    install_command_handler(WorkerContext(None, network, run))
    return run, network


@pytest.mark.parametrize("raw", [False, True])
def test_a_file_holds_whole_weights(raw: bool) -> None:
    def work(process_group: ProcessGroup) -> list:
        run, network = run_and_network(process_group)
        found = (
            network_state_dict(run, network, "network", torch.bfloat16, raw) if process_group.is_main_process else {}
        )
        process_group.all_gather_object("done")
        return [(name, tensor.dtype, tensor.tolist()) for name, tensor in found.items()]

    first, *others = in_processes(3, work)
    assert others == [[], []]
    expected = {"frozen": FROZEN} | {name: t if raw else torch.full_like(t, -1.0) for name, t in WHOLE.items()}
    assert first == [(name, torch.bfloat16, tensor.tolist()) for name, tensor in expected.items()]


def test_what_is_whole_is_copied_by_the_first_process_alone() -> None:
    """Nothing is exchanged, so nobody has to wait."""

    def work(process_group: ProcessGroup) -> dict | None:
        found = (
            {name: t.tolist() for name, t in gather_full_tensors(process_group, WHOLE, {}).items()}
            if process_group.is_main_process
            else None
        )
        process_group.all_gather_object("done")  # one that leaves at once is missed by one that is still connecting
        return found

    assert in_processes(2, work) == [{name: tensor.tolist() for name, tensor in WHOLE.items()}, None]

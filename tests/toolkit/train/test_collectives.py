"""What the first process orders is done by all, whatever exchange they wait in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.processes import in_processes
from tests.toolkit.train.conftest import Toy
from toolkit.data.types import PromptEmbeds
from toolkit.system.distributed import ProcessGroup
from toolkit.train.collectives import WorkerContext, install_command_handler, leading, using_eval_weights


class Adapter:
    """Counts its passes, each of which needs all processes."""

    hidden_size = 7

    def __init__(self, process_group: ProcessGroup) -> None:
        self.process_group = process_group
        self.seen: list[tuple[list[float], tuple[int, ...]]] = []

    def predict_velocity(self, x_B: Tensor, t_B: Tensor, prompts: PromptEmbeds, references: list) -> Tensor:
        result_B = x_B * t_B + sum(latents.sum() for slots in references for latents in slots)
        self.process_group.all_reduce_sum([result_B])
        self.seen.append((result_B.tolist(), prompts.lengths))
        return result_B


def test_the_others_make_each_pass_of_the_first() -> None:
    def work(process_group: ProcessGroup) -> tuple:
        adapter = Adapter(process_group)
        install_command_handler(WorkerContext(adapter, network=None, run=SimpleNamespace(process_group=process_group)))
        if process_group.is_main_process:
            predict = leading(adapter, process_group)
            prompts = PromptEmbeds(torch.zeros(1, 2, 1), (2,))
            result_B = predict(torch.tensor([1.0]), torch.tensor([3.0]), prompts, [(torch.ones(4),)])
            assert result_B.tolist() == [14.0], "of two processes"
            predict(torch.tensor([2.0]), torch.tensor([0.5]), prompts, [()])
        told = process_group.all_gather_object(f"value of {process_group.rank}")
        return adapter.seen, told, process_group.any(False)

    first, second = in_processes(2, work)
    assert first == second == ([([14.0], (2,)), ([2.0], (2,))], ["value of 0", "value of 1"], False)


def test_all_hold_the_average_while_the_first_one_evaluates(tmp_path: Path) -> None:
    """The first one has trained to 4, the second to 8; passes show what each holds then."""

    def work(process_group: ProcessGroup) -> tuple:
        toy = Toy(tmp_path)
        run = toy.run(1, ema_decay=0.75)
        run.process_group = process_group
        weight_D = toy.weight(run)
        with torch.no_grad():
            weight_D.fill_(4.0 * (1 + process_group.rank))
        run.roles["network"].ema.update()
        seen: list[list[float]] = []
        adapter = SimpleNamespace(predict_velocity=lambda x_B: seen.append(weight_D.tolist()))
        install_command_handler(WorkerContext(adapter, network=None, run=run))
        if process_group.is_main_process:
            predict = leading(adapter, process_group)
            for _ in range(2):
                with using_eval_weights(run):
                    predict(torch.zeros(1))
                predict(torch.zeros(1))
        process_group.all_gather_object("done")
        return seen, weight_D.tolist()

    first, second = in_processes(2, work)
    assert first == ([[1.0] * 3, [4.0] * 3] * 2, [4.0] * 3)
    assert second == ([[2.0] * 3, [8.0] * 3] * 2, [8.0] * 3)


def test_where_weights_are_whole_the_first_one_evaluates_alone(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    run = toy.run(1, ema_decay=0.5)
    with torch.no_grad():
        toy.weight(run).fill_(2.0)
    with using_eval_weights(run):
        assert toy.weight(run).tolist() == [0.0] * 3
    assert toy.weight(run).tolist() == [2.0] * 3

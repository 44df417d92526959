"""Passes that the first process asks for are made by all, whatever exchange they wait in."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.processes import in_processes
from toolkit.contracts import PromptEmbeds
from toolkit.parallel import Team
from toolkit.train.lockstep import LeadingAdapter, follow


class Adapter:
    """Counts its passes, each of which needs all processes."""

    width = 7

    def __init__(self, team: Team) -> None:
        self.team = team
        self.seen: list[tuple[list[float], tuple[int, ...]]] = []

    def predict_velocity(self, x_B: Tensor, t_B: Tensor, prompts: PromptEmbeds, references: list) -> Tensor:
        result_B = x_B * t_B + sum(latents.sum() for slots in references for latents in slots)
        self.team.add_up([result_B])
        self.seen.append((result_B.tolist(), prompts.lengths))
        return result_B


def test_the_others_make_each_pass_of_the_first() -> None:
    def work(team: Team) -> tuple:
        adapter = Adapter(team)
        follow(adapter, team)
        if team.is_first:
            leading = LeadingAdapter(adapter, team)
            assert leading.width == 7
            prompts = PromptEmbeds(torch.zeros(1, 2, 1), (2,))
            result_B = leading.predict_velocity(torch.tensor([1.0]), torch.tensor([3.0]), prompts, [(torch.ones(4),)])
            assert result_B.tolist() == [14.0], "of two processes"
            leading.predict_velocity(torch.tensor([2.0]), torch.tensor([0.5]), prompts, [()])
        told = team.gather(f"value of {team.rank}")
        return adapter.seen, told, team.any(False)

    first, second = in_processes(2, work)
    assert first == second == ([([14.0], (2,)), ([2.0], (2,))], ["value of 0", "value of 1"], False)

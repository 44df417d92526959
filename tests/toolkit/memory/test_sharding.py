"""Blocks of which each process keeps a share compute what whole blocks do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.processes import in_processes
from toolkit.memory.sharding import block_sharing
from toolkit.parallel import Team


class Block(nn.Module):
    """A frozen linear layer, and a trained one that is added later."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(6, 6)

    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.tanh(self.frozen(x_BD) + self.added(x_BD))


def passes(blocks: list[Block], row: int, between: Callable[[], None] = lambda: None) -> tuple[list, list]:
    """Output and gradients of one backward pass, after one without gradients; `between` is called before it."""
    x_BD = torch.linspace(0, 1, 12).view(2, 6)[row : row + 1]
    for seed, block in enumerate(blocks):
        torch.manual_seed(50 + seed)
        block.added = nn.Linear(6, 6)
    with torch.no_grad():
        for block in blocks:
            block(x_BD)
    between()
    for block in blocks:
        x_BD = block(x_BD)
    x_BD.sum().backward()
    return x_BD.tolist(), [block.added.weight.grad.tolist() for block in blocks]


def test_each_process_keeps_half_and_computes_the_same() -> None:
    def work(team: Team) -> tuple:
        share = block_sharing(torch.device("cpu"), team.size)
        blocks = [Block(seed) for seed in (0, 1)]
        for block in blocks:
            share(block, "block")
        kept = []

        def look() -> None:
            kept.extend(block.frozen.weight.to_local().shape for block in blocks)

        look()
        found = passes(blocks, team.rank, between=look)
        look()
        return kept, blocks[0].frozen.weight.requires_grad, found

    for rank, (kept, learns, found) in enumerate(in_processes(2, work)):
        assert kept == [(3, 6)] * 6, "nothing stays gathered"
        assert not learns
        assert found == passes([Block(seed) for seed in (0, 1)], rank)

"""What the exchanged dataclasses promise."""

from __future__ import annotations

import pytest
import torch

from toolkit.contracts import Batch, BatchSpec, PromptEmbeds


def batch(count: int) -> Batch:
    """Items that carry their number everywhere; item i has i + 1 text tokens and i references."""
    return Batch(
        latents_BCHW=torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 2, 4, 4),
        prompts=PromptEmbeds.stack([torch.full((i + 1, 3), float(i)) for i in range(count)]),
        references=tuple(tuple(torch.full((2, 4, 4), float(i)) for _ in range(i)) for i in range(count)),
        spec=BatchSpec(7, tuple(range(10, 10 + count)), tuple(range(20, 20 + count))),
        names=tuple(f"{i}.png" for i in range(count)),
        loss_weight_B=torch.arange(count, dtype=torch.float32),
        loss_mask_B1HW=torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, 4, 4),
    )


def test_prompts_are_padded_to_the_longest() -> None:
    prompts = PromptEmbeds.stack([torch.ones(2, 3), torch.ones(4, 3)])
    assert prompts.embeds_BLD.shape == (2, 4, 3)
    assert prompts.lengths == (2, 4)


def test_selected_prompts_are_padded_only_as_far_as_they_need() -> None:
    chosen = PromptEmbeds.stack([torch.ones(2, 3), torch.ones(4, 3)]).select([0])
    assert chosen.embeds_BLD.shape == (1, 2, 3)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (4, [2, 2])])
def test_halves_hold_every_item_once_with_all_that_belongs_to_it(count: int, sizes: list[int]) -> None:
    halves = batch(count).halves()
    assert [len(half) for half in halves] == sizes
    number = 0
    for half in halves:
        for row in range(len(half)):
            assert half.names[row] == f"{number}.png"
            assert (half.spec.epoch, half.spec.items[row], half.spec.positions[row]) == (7, 10 + number, 20 + number)
            assert half.prompts.lengths[row] == number + 1
            assert len(half.references[row]) == number
            for tensor in (half.latents_BCHW, half.loss_mask_B1HW, half.loss_weight_B):
                assert (tensor[row] == number).all()
            number += 1
    assert number == count

"""What the exchanged dataclasses promise."""

from __future__ import annotations

import torch

from toolkit.contracts.data import PromptEmbeds


def test_prompts_are_padded_to_the_longest() -> None:
    prompts = PromptEmbeds.stack([torch.ones(2, 3), torch.ones(4, 3)])
    assert prompts.embeds_BLD.shape == (2, 4, 3)
    assert prompts.lengths == (2, 4)


def test_selected_prompts_are_padded_only_as_far_as_they_need() -> None:
    chosen = PromptEmbeds.stack([torch.ones(2, 3), torch.ones(4, 3)]).select([0])
    assert chosen.embeds_BLD.shape == (1, 2, 3)

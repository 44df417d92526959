"""One training step's inputs, for every kind of network."""

from pathlib import Path

import pytest
import torch

from tests.diffusers_reference import REFERENCES, encode_photos, open_tiny, photo_item
from toolkit.contracts import PromptEmbeds, Size

SIZE = Size(96, 64)


@pytest.fixture(scope="module")
def step_inputs(tiny_model: Path):
    """x_t, t, prompts and references of one item with one reference."""
    adapter = open_tiny(tiny_model, match_target_res=True)
    dataset = encode_photos(adapter, photo_item(SIZE, REFERENCES[:1]))
    (entries,) = dataset.entries
    x_t_BCHW = torch.randn((1, 16, 8, 12), generator=torch.Generator().manual_seed(0))
    references = [tuple(map(dataset.read, entries.references))]
    return x_t_BCHW, torch.tensor([0.6]), PromptEmbeds.stack([dataset.read(entries.caption)]), references

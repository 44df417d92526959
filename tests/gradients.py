"""Gradients of a network on the two blocks of a tiny Qwen-Image."""

from collections.abc import Mapping

import torch
from torch import Tensor

UNSEEN = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
"""Layers of the last block whose output never reaches the image."""


def assert_same_gradients(
    ones: Mapping[str, Tensor | None], others: Mapping[str, Tensor | None]
) -> None:
    """Asserts that both are equal, and that exactly the layers of `UNSEEN` have none."""
    for name, one in ones.items():
        other = others[name]
        is_unseen = "transformer_blocks.1." in name and any(
            layer in name for layer in UNSEEN
        )
        assert (one is not None and bool(one.any())) != is_unseen, name
        assert one is other or (
            one is not None and other is not None and torch.equal(one, other)
        )

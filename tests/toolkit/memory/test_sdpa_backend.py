"""Pinning the kernel changes nothing where there is no choice."""

from __future__ import annotations

import torch

from tests.toolkit.memory.toy_blocks import CPU, Stack, same
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.sdpa_backend import has_fast_kernel, with_sdpa_priority


def test_on_the_cpu_the_same_bits() -> None:
    expected = Stack().gradients()
    for level in ("none", "keep_attention", "full"):
        assert same(Stack().wrap(with_sdpa_priority, checkpoint_wrapper(level)).gradients(), expected)


def test_what_is_tried_leaves_an_answer() -> None:
    assert has_fast_kernel(CPU, torch.float32, 64) in (True, False)

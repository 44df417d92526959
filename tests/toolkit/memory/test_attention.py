"""Pinning the kernel changes nothing where there is no choice."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from tests.toolkit.memory.toy_blocks import CPU, Stack, same
from toolkit.memory.attention import AVOID_PLANS, has_fast_kernel, sdpa_priority, with_sdpa_priority
from toolkit.memory.checkpointing import checkpoint_wrapper


def test_on_the_cpu_the_same_bits() -> None:
    expected = Stack().gradients()
    for level in ("none", "keep_attention", "full"):
        assert same(Stack().wrap(with_sdpa_priority(CPU), checkpoint_wrapper(level)).gradients(), expected)


@pytest.mark.parametrize(("capability", "first"), [((8, 9), "FLASH"), ((9, 0), "CUDNN"), ((12, 0), "FLASH")])
def test_cudnn_comes_first_on_hopper_alone(monkeypatch: pytest.MonkeyPatch, capability: tuple, first: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    names = [backend.name for backend in sdpa_priority(torch.device("cuda:0"))]
    assert names[0] == f"{first}_ATTENTION"
    assert sorted(names[:2]) == ["CUDNN_ATTENTION", "FLASH_ATTENTION"]
    assert names[2:] == ["EFFICIENT_ATTENTION", "MATH"]


def test_what_is_tried_leaves_an_answer() -> None:
    assert has_fast_kernel(CPU, torch.float32, 64) in (True, False)


def test_cudnn_builds_no_plan_for_each_length() -> None:
    """PyTorch reads the environment of the process itself, when cuDNN's attention is first used."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    assert getenv(AVOID_PLANS.encode()) == os.environ[AVOID_PLANS].encode() == b"1"

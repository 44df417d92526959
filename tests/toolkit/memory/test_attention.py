"""Pinning the kernel changes nothing where there is no choice."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from tests.processes import python
from tests.toolkit.memory.toy_blocks import CPU, Stack, same
from toolkit.memory.attention import has_fast_kernel, sdpa_priority, with_sdpa_priority
from toolkit.memory.checkpointing import checkpoint_wrapper


def test_on_the_cpu_the_same_bits() -> None:
    expected = Stack().gradients()
    for level in ("none", "keep_attention", "full"):
        assert same(
            Stack()
            .wrap(with_sdpa_priority(CPU), checkpoint_wrapper(level))
            .gradients(),
            expected,
        )


@pytest.mark.parametrize(
    ("capability", "first"), [((8, 9), "FLASH"), ((9, 0), "CUDNN"), ((12, 0), "FLASH")]
)
def test_cudnn_comes_first_on_hopper_alone(
    monkeypatch: pytest.MonkeyPatch, capability: tuple, first: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    names = [backend.name for backend in sdpa_priority(torch.device("cuda:0"))]
    assert names[0] == f"{first}_ATTENTION"
    assert sorted(names[:2]) == ["CUDNN_ATTENTION", "FLASH_ATTENTION"]
    assert names[2:] == ["EFFICIENT_ATTENTION", "MATH"]


def test_what_is_tried_leaves_an_answer() -> None:
    assert has_fast_kernel(CPU, torch.float32, 64) in (True, False)


@pytest.mark.slow
def test_no_variable_changes_what_cudnn_returns() -> None:
    """With TORCH_CUDNN_SDPA_AVOID_RECOMPILE cuDNN returns its log-sum-exp in another
    layout than its meta kernel, by which inductor plans: every compiled block fails in
    its first backward pass (H100, torch 2.11)."""
    program = "import os, extensions.sd_trainer.process; print([name for name in os.environ if 'CUDNN' in name])"
    environment = {
        name: value for name, value in os.environ.items() if "CUDNN" not in name
    }
    assert python(program, env=environment) == "[]\n"


def test_why_a_kernel_is_not_used_stays_off_the_screen(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """PyTorch warns once for each reason of each kernel."""

    def refuse(*inputs: torch.Tensor) -> None:
        warnings.warn(
            "Flash attention kernel not used because: expected the dtype to be half",
            stacklevel=2,
        )
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    assert not has_fast_kernel(CPU, torch.float32, 32)
    assert not recwarn.list

"""Compiled blocks on a CUDA device compute what plain ones do, by inductor's own
kernels too."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch.utils._triton import has_triton

from tests.toolkit.memory.test_compiling import close
from tests.toolkit.memory.test_compiling_layouts import differences
from tests.toolkit.memory.toy_blocks import WIDTH, Stack
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("fresh_compiler")]

TOLERANCE = 1e-4
"""Relative, in float32: fused operations sum in another order."""


@pytest.fixture
def inductor() -> str:
    """The backend's name, where it can compile for a GPU."""
    if not has_triton():
        pytest.skip("no Triton that knows this device")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        pytest.skip(
            "no C compiler, which Triton needs (gcc, clang, or the one that CC names)"
        )
    return "inductor"


def compiled(
    level: str, backend: str, dynamic: bool | str = "auto", **options
) -> Stack:
    settings = CompileConfig(enabled=True, backend=backend, dynamic=dynamic)
    return Stack(dropout=0.0, **options).wrap(
        checkpoint_wrapper(level, WIDTH), compile_wrapper(settings)
    )


@pytest.mark.parametrize(
    ("level", "qtype"),
    [
        ("none", "int8"),
        ("cheap", None),
        ("cheap", "int4"),
        ("keep_attention", "int8"),
        ("full", None),
        ("full", "float8"),
    ],
)
def test_without_a_compiler_for_gpus(cuda: torch.device, level: str, qtype) -> None:
    options = {"qtype": qtype, "count": 2, "device": cuda}
    found = compiled(level, "aot_eager", **options).gradients()
    assert close(found, Stack(dropout=0.0, **options).gradients(), TOLERANCE)


@pytest.mark.parametrize(
    ("level", "qtype"),
    [("none", "int4"), ("cheap", None), ("keep_attention", "int8"), ("full", "float8")],
)
def test_by_inductor(cuda: torch.device, inductor: str, level: str, qtype) -> None:
    options = {"qtype": qtype, "count": 2, "device": cuda}
    found = compiled(level, inductor, **options).gradients()
    assert close(found, Stack(dropout=0.0, **options).gradients(), TOLERANCE)


def test_programs_of_any_size(cuda: torch.device, inductor: str) -> None:
    stack, plain = (
        compiled("full", inductor, dynamic=True, device=cuda),
        Stack(dropout=0.0, device=cuda),
    )
    for tokens in (20, 12, 28):
        found, expected = stack.gradients(tokens=tokens), plain.gradients(tokens=tokens)
        assert close(found, expected, TOLERANCE)


@pytest.mark.parametrize("level", ["none", "cheap", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_the_device_returns_is_laid_out_as_the_compiler_was_told(
    cuda: torch.device, dtype: torch.dtype, level: str
) -> None:
    """cuDNN's log-sum-exp was not, while TORCH_CUDNN_SDPA_AVOID_RECOMPILE was set."""
    assert differences(cuda, dtype, level) == []

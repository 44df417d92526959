"""The bench that counts kernels: what it counts, and that the step it counts is
whole."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
import torch

from benchmarks import bench_kernels
from benchmarks.live_bytes import Kernels
from tests.processes import output_of
from tests.stand_in_cuda import COMPILER
from toolkit.memory.flops import KERNELS_PER_BLOCK


def test_views_and_empty_memory_are_no_kernels() -> None:
    weight = torch.ones(4, 6)
    with Kernels() as kernels:
        weight.view(6, 4).t()[1:].unsqueeze(0).expand(2, -1, -1)
        torch.empty_like(weight).copy_(weight).add_(1)
        weight.to(torch.bfloat16) @ torch.ones(6, 2, dtype=torch.bfloat16)
    assert kernels.calls == {"copy_": 1, "add_": 1, "_to_copy": 1, "ones": 1, "mm": 1}


@pytest.mark.slow
def test_a_micro_step_launches_few_kernels_and_int4_adds_dequantizing(
    report_of, monkeypatch
) -> None:
    """Of a small model, whose blocks launch as many as the published one's. The goal is
    24,000; 31,433 were launched when each use cast its matrices and each norm was the
    formula. int4 adds four kernels for a layer: 14 forward, 14 again, 12 backward
    (nothing goes back through the modulation)."""
    monkeypatch.setattr(bench_kernels, "LEVELS", ("none", "full"))
    monkeypatch.setattr(
        bench_kernels, "DRAWN_SIZES", {"published": bench_kernels.BELOW}
    )
    rows = report_of(bench_kernels.main, "--rows", "bf16")["rows"]
    monkeypatch.setattr(bench_kernels, "LEVELS", ("full",))
    rows |= report_of(bench_kernels.main, "--rows", "int4")["rows"]
    plain, int4 = rows["bf16, full"], rows["int4, full"]
    assert plain["total"] <= 21_200
    # of the rotations: forward, again, backward
    assert plain["operations"]["_to_copy"] == 8 + 8 + 8
    assert plain["operations"]["_foreach_copy_"] == 3
    assert 60 * 40 * 4 * 0.97 < int4["total"] - plain["total"] <= 60 * 40 * 4
    assert int4["operations"]["__rshift__"] == 40
    for row, qtype in ((plain, ""), (int4, "int4")):
        assert row["forward"] + row["backward"] == KERNELS_PER_BLOCK[qtype]
    assert rows["bf16, none"]["forward"] == plain["forward"] < 100
    assert plain["backward"] > rows["bf16, none"]["backward"] + 80


@pytest.mark.slow
@pytest.mark.skipif(
    COMPILER is None or find_spec("triton") is None,
    reason="requires a C++ compiler and Triton, which .ci/run installs separately",
)
@pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="this PyTorch is built with CUDA"
)
def test_a_compiled_block_casts_its_lora_in_one_kernel_forward_and_two_backward() -> (
    None
):
    """Its matrices, again where the block is recomputed, and their gradients. When each
    use cast its matrix, an int4 block of Qwen-Image-Edit-2509 had 160 kernels."""
    models = ["Qwen-Image-Edit-2509", "Qwen-Image-2.1"]
    command = [sys.executable, bench_kernels.__file__, "--compiled", "int4"]
    told = output_of(*command, "--models", *models)
    found = json.loads(told.splitlines()[-1])["compiled"]
    assert list(found) == models
    for forward, backward in found.values():
        assert (forward["casts"], backward["casts"]) == (1, 2)
        assert forward["mm"] < backward["mm"]
    kernels = [
        program["casts"] + program["of inductor"] for program in found[models[0]]
    ]
    assert sum(kernels) <= 95

"""Quantized weights need no compiler, and give what optimum-quanto's own unpacking gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.memory.plain_quanto import use_plain_tensors

NO_COMPILER = """
import torch
import torch.utils.cpp_extension
import optimum.quanto.library.extensions.extension as extension

def refuse(*arguments, **keywords):
    raise SystemExit("an extension is being compiled")

extension.load = refuse
from toolkit.memory.quantize import quantize_block
for qtype in ("int8", "int4", "float8"):
    for dtype in (torch.bfloat16, torch.float32):
        layer = torch.nn.Sequential(torch.nn.Linear(256, 128, dtype=dtype))
        quantize_block(layer, qtype)
        x = torch.randn(4, 256, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        assert torch.isfinite(x.grad).all()
        print(type(layer[0].weight).__name__)
"""


def test_no_extension_is_compiled_forward_or_backward() -> None:
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", NO_COMPILER], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    names = ["WeightQBytesTensor"] * 2 + ["WeightQBitsTensor"] * 2 + ["WeightQBytesTensor"] * 2
    assert result.stdout.split() == names


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_values_come_back(bits: int) -> None:
    from optimum.quanto.tensor.packed import PackedTensor

    use_plain_tensors()
    values = torch.randint(0, 2**bits, (17, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PackedTensor.pack(values, bits).unpack(), values)

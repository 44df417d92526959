from pathlib import Path

import pytest
import torch
from optimum.quanto import QLinear
from safetensors.torch import load_file
from torch import nn

from tests.diffusers_reference import open_tiny
from tests.golden_tables import FOLDER, golden
from tests.measured import at_most
from toolkit.memory.quantize import QTYPES, quantize_block, quantizer

QUANTO = {"int8": "qint8", "int4": "qint4", "float8": "qfloat8"}
MATRICES = load_file(FOLDER / "quantize_inputs.safetensors")


def error_of(case: dict, qtype: str) -> float:
    """Relative Frobenius error of the weights of a quantized layer."""
    matrix = MATRICES[case["matrix"]]
    layer = nn.Linear(256, 256, bias=False, dtype=getattr(torch, case["weight_dtype"]))
    layer.weight.data.copy_(matrix)
    block = nn.Sequential(layer)
    quantize_block(block, qtype)
    dequantized = block[0].weight.dequantize().double()
    assert torch.isfinite(dequantized).all()
    return float((dequantized - matrix.double()).norm() / matrix.double().norm())


@pytest.mark.parametrize("qtype", QTYPES)
def test_errors_are_those_of_optimum_quanto(qtype: str) -> None:
    worst = 0.0
    for case in golden("quantize", method="optimum-quanto", qtype=QUANTO[qtype]):
        error = error_of(case, qtype)
        assert error <= 1.25 * case["rel_frobenius_err"]
        worst = max(worst, abs(error / case["rel_frobenius_err"] - 1))
    at_most(f"quantization error, {qtype}, share of the listed error", worst, 0.02)


def test_the_compared_types_are_all_there_are() -> None:
    assert set(QUANTO) == set(QTYPES)


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_linears_weights_are_quantized(tiny_model: Path, qtype: str, dtype: torch.dtype) -> None:
    plain = open_tiny(tiny_model, dtype).network_module
    model = open_tiny(tiny_model, dtype, transform_block=quantizer(qtype)).network_module
    quantized = {name for name, module in model.named_modules() if isinstance(module, QLinear)}
    linears = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert quantized == {name for name in linears if name.startswith("transformer_blocks.")}
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in quantized:  # biases, norms, everything outside the blocks
            ours = model.get_parameter(name)
            assert ours.dtype == dtype and torch.equal(ours, parameter)


@pytest.mark.parametrize("qtype", QTYPES)
def test_nothing_is_trainable_afterwards(qtype: str) -> None:
    block = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256))
    quantize_block(block, qtype)
    assert not any(parameter.requires_grad for parameter in block.parameters())
    x = torch.ones(1, 256, requires_grad=True)
    block(x).square().sum().backward()
    assert x.grad.abs().sum() > 0  # gradients pass through to what comes before


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the plain tensors that a quantized one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


@pytest.mark.parametrize("qtype", QTYPES)
def test_the_weights_take_less_memory(qtype: str) -> None:
    block = nn.Sequential(nn.Linear(256, 256, bias=False, dtype=torch.bfloat16))
    quantize_block(block, qtype)
    assert stored_bytes(block[0].weight) <= {"int8": 0.51, "float8": 0.51, "int4": 0.3}[qtype] * 256 * 256 * 2


@pytest.mark.parametrize("qtype", QTYPES)
def test_a_row_of_zeros_stays_zero(qtype: str) -> None:
    """optimum-quanto's float8 divides such a row by zero."""
    block = nn.Sequential(nn.Linear(256, 256, bias=False))
    block[0].weight.data[3] = 0
    quantize_block(block, qtype)
    output = block(torch.ones(1, 256))
    assert output[0, 3] == 0 and torch.isfinite(output).all()

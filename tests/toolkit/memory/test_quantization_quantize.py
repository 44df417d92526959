import copy
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.diffusers_reference import open_tiny, relative
from tests.golden_tables import FOLDER, drawn, golden
from tests.measured import at_most
from toolkit.contracts.data import PromptEmbeds
from toolkit.memory.quantization import (
    QUANTO,
    QuantizedLinear,
    QuantizedWeight,
    as_stored,
    block_scaled,
    quantize_weight,
    quantizer,
)
from toolkit.networks.lora import LoraNetwork
from toolkit.number_types import QTYPE_BYTES, QTYPE_ERRORS, QTYPES
from toolkit.rotation import regular_hadamard, rotate

MATRICES = load_file(FOLDER / "quantize_inputs.safetensors")


def quantized(layer: nn.Module, qtype: str, **more) -> nn.Sequential:
    """A block of this layer alone, quantized."""
    block = nn.Sequential(layer)
    quantizer(qtype, **more)(block, "block")
    return block


# ------------------------------------------------------------ golden numbers


@pytest.mark.parametrize("qtype", QUANTO)
def test_errors_are_those_of_optimum_quanto(qtype: str) -> None:
    worst = 0.0
    for case in golden("quantize", method="optimum-quanto", qtype=QUANTO[qtype]):
        matrix = MATRICES[case["matrix"]].to(getattr(torch, case["weight_dtype"]))
        weight = quantize_weight(matrix, qtype)
        dequantized = weight.dequantize()
        assert (
            int((~torch.isfinite(dequantized)).sum()) == case["nonfinite_values"] == 0
        )
        same_scales(weight, case)
        # Its bfloat16 int4 is packed for one kind of kernel: that rounds shifts once
        # more, which 250 weights of one matrix show, by 0.004 at most.
        same_weights(
            dequantized,
            matrix,
            case,
            rel=2e-4 if case["packing"].startswith("TinyGemm") else 1e-6,
        )
        error = relative(dequantized, matrix)
        assert error <= 1.25 * case["rel_frobenius_err"]
        worst = max(worst, abs(error / case["rel_frobenius_err"] - 1))
    at_most(f"quantization error, {qtype}, share of the listed error", worst, 0.02)


def same_scales(weight: QuantizedWeight, case: dict) -> None:
    """Codes, scales and shifts in the shapes and dtypes of optimum-quanto's own."""
    held = dict(weight.named_buffers())
    codes = held.pop("codes_OI" if "codes_OI" in held else "packed")
    assert (
        str(getattr(weight, "code_type", codes.dtype)) == f"torch.{case['data_dtype']}"
    )
    held.pop("places", None)
    scale, *shift = held.values()
    assert {str(part.dtype) for part in held.values()} == {
        f"torch.{case['scale_dtype']}"
    }
    if case["group_size"]:
        assert weight.shape.numel() // len(scale) == case["group_size"]
    if case["scale_shape"]:  # not of weights that it packs for one kind of kernel
        assert (
            list(scale.shape) == case["scale_shape"] and len(shift) == case["has_shift"]
        )
    for part in shift if case["has_shift"] else ():
        assert (list(part.shape), str(part.dtype)) == (
            case["shift_shape"],
            f"torch.{case['shift_dtype']}",
        )


def same_weights(
    dequantized: torch.Tensor, matrix: torch.Tensor, case: dict, rel: float
) -> None:
    """The dequantized numbers: a corner of them, their sum and norm, and the worst
    error.

    rel: of the norm and the worst error; of the sum in units of what its terms add up
    to without their signs.
    """
    corner = torch.tensor(case["dequant_corner"])
    ours = dequantized[: len(corner), : corner.shape[1]].float()
    torch.testing.assert_close(ours, corner, rtol=1e-5, atol=1e-9)
    whole = dequantized.double()
    assert float(whole.sum()) == pytest.approx(
        case["dequant_sum"], abs=rel * float(whole.abs().sum())
    )
    assert float(whole.norm()) == pytest.approx(case["dequant_frobenius"], rel=rel)
    worst = float((whole - matrix.double()).abs().max())
    assert worst == pytest.approx(case["max_abs_err"], rel=1e-5)


def test_weights_in_int8_convrot_are_those_of_comfy_kitchen() -> None:
    for case in golden("comfyui_int8_convrot"):
        shape, group = tuple(case["shape"]), case["convrot_groupsize"]
        weight_OI = torch.from_numpy(
            drawn({"weight": shape}, case["seed"])["weight"]
        ).float()
        codes_OI = torch.tensor(case["codes"], dtype=torch.int8)
        scale_O1 = torch.tensor(case["weight_scale"])[:, None]
        stored = as_stored(codes_OI, scale_O1, group, weight_OI)
        dequantized = stored.dequantize()
        at_most(
            f"int8_convrot of comfy-kitchen, {shape}",
            relative(dequantized[0], torch.tensor(case["dequantized_row_0"])),
            1e-6,
        )
        rotated = rotate(weight_OI, regular_hadamard(group))
        assert torch.equal((rotated / scale_O1).round().to(torch.int8), codes_OI)
        x_MI = weight_OI + 1
        at_most(
            "its product",
            relative(stored.matmul(x_MI, None), x_MI @ dequantized.t()),
            1e-6,
        )
        g_MO = stored.matmul(x_MI, None)
        at_most(
            "its gradient", relative(stored.matmul_grad(g_MO), g_MO @ dequantized), 1e-6
        )


def test_weights_in_fp8_scaled_are_those_of_musubi() -> None:
    """Blocks of 64 and 32, and of 96, which do not divide the rows."""
    cases = golden("quantize", method="musubi fp8_scaled", mode="block", format="E4M3")
    assert {case["block_size"] for case in cases} == {64, 32, 96}
    worst = 0.0
    for case in cases:
        matrix = MATRICES[case["matrix"]].to(getattr(torch, case["weight_dtype"]))
        weight = block_scaled(matrix, case["block_size"])
        dequantized = weight.dequantize()
        assert int((~torch.isfinite(dequantized)).sum()) == case["nonfinite_values"]
        assert (str(weight.scale_ON.dtype), case["data_dtype"]) == (
            f"torch.{case['scale_dtype']}",
            "float8_e4m3fn",
        )
        # a block's scale has no axis of its own here
        assert list(weight.scale_ON.shape) == case["scale_shape"][:2]
        same_weights(dequantized, matrix, case, rel=1e-6)
        torch.testing.assert_close(
            weight.scale_ON.flatten()[:4],
            torch.tensor(case["scale_first4"]),
            rtol=1e-5,
            atol=1e-12,
        )
        for value, key in (
            (relative(dequantized, matrix), "rel_frobenius_err"),
            (float(dequantized.double().norm()), "dequant_frobenius"),
        ):
            worst = max(worst, abs(value / case[key] - 1))
    at_most("fp8_scaled weights, error and norm", worst, 1e-5)


def test_unsigned_types_are_those_of_ai_toolkit_bit_for_bit() -> None:
    for case in golden("aitk_uintx"):
        matrix = MATRICES[case["matrix"]].to(getattr(torch, case["weight_dtype"]))
        weight = quantize_weight(matrix, case["qtype"])
        dequantized = weight.dequantize()
        codes_GS = weight.codes()
        assert codes_GS.shape[1] == case["group_size"]
        for tensor, first, shown, digest in (
            (codes_GS, codes_GS[0, :8], "codes_first8", "codes_sha256"),
            (weight.scale_G1, weight.scale_G1[:4, 0], "scale_first4", "scale_sha256"),
            (
                weight.zero_G1,
                weight.zero_G1[:4, 0],
                "zero_point_first4",
                "zero_point_sha256",
            ),
            (dequantized, dequantized[:3, :4], "dequant_corner", "dequant_sha256"),
        ):
            assert first.tolist() == case[shown], (case["qtype"], shown)
            found = hashlib.sha256(
                tensor.contiguous().view(torch.uint8).numpy().tobytes()
            ).hexdigest()
            assert found == case[digest], (case["qtype"], digest)
        assert relative(dequantized, matrix) == pytest.approx(
            case["rel_frobenius_err"], rel=1e-5
        )


@pytest.mark.parametrize("qtype", QTYPE_ERRORS)
def test_the_errors_that_are_told_are_those_of_normally_distributed_weights(
    qtype: str,
) -> None:
    weight_OI = torch.randn((256, 1024), generator=torch.Generator().manual_seed(0))
    assert relative(
        quantize_weight(weight_OI, qtype).dequantize(), weight_OI
    ) == pytest.approx(QTYPE_ERRORS[qtype], rel=0.03)


# ------------------------------------------------------------ blocks


@pytest.mark.parametrize(
    ("qtype", "dtype"),
    [
        ("int8", torch.float32),
        ("int4", torch.bfloat16),
        ("uint3", torch.bfloat16),
        ("float8", torch.bfloat16),
        ("fp8_scaled", torch.bfloat16),
    ],
    ids=str,
)
def test_only_the_linears_weights_are_quantized(
    tiny_model: Path, qtype: str, dtype: torch.dtype
) -> None:
    plain = open_tiny(tiny_model, dtype).network_module
    model = open_tiny(
        tiny_model, dtype, transform_block=quantizer(qtype)
    ).network_module
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    linears = {
        name for name, module in plain.named_modules() if isinstance(module, nn.Linear)
    }
    assert found == {name for name in linears if name.startswith("transformer_blocks.")}
    for name in found:
        module, original = model.get_submodule(name), plain.get_submodule(name)
        assert (module.in_features, module.out_features) == (
            original.in_features,
            original.out_features,
        )
        assert module.weight.dtype == dtype
    for name, parameter in plain.named_parameters():
        # biases, norms, everything outside the blocks
        if name.removesuffix(".weight") not in found:
            ours = model.get_parameter(name)
            assert ours.dtype == dtype and torch.equal(ours, parameter)


def test_nothing_is_trainable_afterwards() -> None:
    block = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    quantizer("int8")(block, "block")
    assert not any(parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize("qtype", QTYPES)
def test_the_weights_take_less_memory(qtype: str) -> None:
    layer = quantized(nn.Linear(256, 256, bias=False, dtype=torch.bfloat16), qtype)[0]
    most = QTYPE_BYTES[qtype] + 0.01  # int8 and float8 have a scale per row too
    assert sum(buffer.nbytes for buffer in layer.buffers()) <= most * 256 * 256
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_row_of_zeros_stays_zero(qtype: str, dtype: torch.dtype) -> None:
    """optimum-quanto's float8 divides such a row by zero; in float16 the reciprocal of
    the smallest scale overflows."""
    layer = nn.Linear(256, 256, bias=False, dtype=dtype)
    layer.weight.data[3] = 0
    output = quantized(layer, qtype)(torch.ones(1, 256, dtype=dtype))
    assert output[0, 3] == 0 and torch.isfinite(output).all()


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("inputs", [24, 96, 100, 128, 192])
def test_every_width_can_be_quantized(qtype: str, inputs: int) -> None:
    """Groups and blocks need not divide the rows."""
    layer = nn.Linear(inputs, 40)
    x = torch.randn(20, inputs, generator=torch.Generator().manual_seed(0))
    at_most_here = {
        "int2": 0.7,
        "int4": 0.15,
        "uint2": 0.7,
        "uint3": 0.3,
        "uint4": 0.15,
        "uint5": 0.07,
    }.get(qtype, 0.05)
    assert relative(quantized(copy.deepcopy(layer), qtype)(x), layer(x)) < at_most_here


@pytest.mark.parametrize("qtype", QTYPES)
def test_no_extension_is_compiled_forward_or_backward(qtype: str, monkeypatch) -> None:
    """optimum-quanto would build C++ and CUDA code when int4 or float8 weights are
    first used."""
    from optimum.quanto.library.extensions import extension

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("an extension is being compiled")

    monkeypatch.setattr(extension, "load", refuse)
    for dtype in (torch.float32, torch.bfloat16):
        layer = quantized(nn.Linear(256, 128, dtype=dtype), qtype)
        x = torch.ones(4, 256, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        assert torch.isfinite(x.grad).all(), dtype


# ------------------------------------------------------------ recovery


def best_change(layer: nn.Linear, qtype: str, rank: int) -> tuple[Tensor, Tensor]:
    """The low-rank change that makes up for most of what quantization lost."""
    lost_OI = (
        layer.weight.detach().float()
        - quantize_weight(layer.weight.detach(), qtype).dequantize().float()
    )
    u, s, vh = torch.linalg.svd(lost_OI, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


@torch.no_grad()
def test_a_recovery_lowers_the_error_and_other_layers_become_int8() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.ModuleDict(
            {"covered": nn.Linear(256, 128), "other": nn.Linear(256, 128)}
        )
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    exact = {name: layer(x) for name, layer in block.items()}
    plain = quantized(copy.deepcopy(block["covered"]), "int2")
    recovery = {"block.covered": best_change(block["covered"], "int2", 32)}
    quantizer("int2", recovery=recovery)(block, "block")
    before, after = (
        relative(plain(x), exact["covered"]),
        relative(block["covered"](x), exact["covered"]),
    )
    assert after < 0.8 * before
    assert relative(block["other"](x), exact["other"]) < 0.01
    assert recovery == {}  # each is taken over by its layer
    assert not any(p.requires_grad for p in block.parameters())


# ------------------------------------------------------------ training


def losses(model_folder: Path, inputs, steps: int, **options) -> list[float]:
    """Of a LoRA that learns a fixed drawing of noise."""
    model = open_tiny(model_folder, **options)
    network = LoraNetwork(model.lora_targets(), 4, 4, dropout=0.0, seed=1)
    network.attach(model.network_module)
    optimizer = torch.optim.Adam(network.parameters().values(), lr=1e-3)
    seen = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step % 20)
        x_BCHW, noise_BCHW = torch.randn((2, 1, 16, 8, 8), generator=generator)
        t = torch.rand((1,), generator=generator)
        mixed = (1 - t) * x_BCHW + t * noise_BCHW
        loss = (
            (model.predict_velocity(mixed, t, *inputs).float() - (noise_BCHW - x_BCHW))
            .square()
            .mean()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


@pytest.fixture(scope="module")
def inputs(tiny_model: Path):
    """Prompt and no reference."""
    model = open_tiny(tiny_model)
    return PromptEmbeds.stack([model.encode_prompt("a cat", [])]), [()]


@pytest.fixture(scope="module")
def plain_losses(tiny_model: Path, inputs) -> list[float]:
    return losses(tiny_model, inputs, 6)


def dequantized_again(qtype: str):
    """Quantizes as the type does, and leaves plain layers with the dequantized
    weights."""

    def transform(block: nn.Module, name: str) -> None:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.copy_(
                    quantize_weight(module.weight.data, qtype).dequantize()
                )

    return transform


@pytest.mark.parametrize(
    ("qtype", "tolerance"),
    [
        *[("int8", 1e-4), ("fp8_scaled", 5e-4), ("uint3", 1e-2)],
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("float8", 5e-4), ("int4", 2e-3), ("int2", 2e-2))
        ),
    ],
)
def test_losses_are_those_of_the_plain_model(
    tiny_model, inputs, plain_losses, qtype: str, tolerance: float
) -> None:
    """Of the unquantized one as closely as the type is; of plain layers with the same
    weights to rounding."""
    ours = losses(tiny_model, inputs, 6, transform_block=quantizer(qtype))
    same_weights = losses(
        tiny_model, inputs, 6, transform_block=dequantized_again(qtype)
    )
    assert max(abs(a / b - 1) for a, b in zip(ours, same_weights, strict=True)) < 1e-4
    worst = max(abs(a / b - 1) for a, b in zip(ours, plain_losses, strict=True))
    at_most(f"losses of 6 steps on {qtype} against the plain model", worst, tolerance)

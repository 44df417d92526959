"""LoRA files merged into the model: the weights they make, in which precision, and what
is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.diffusers_reference import open_tiny, relative
from tests.measured import at_most
from toolkit.errors import UserError
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.adapter import dequantized_weight
from toolkit.networks.lora_formats import LayerDelta, load_adapter_file
from toolkit.networks.merge import LoraMerger, LoraToMerge, read_base_loras

GOLDEN = Path(__file__).parents[2] / "golden" / "lora_files"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["files"]
LAYER = "transformer_blocks.0.attn.to_q"
OUTSIDE = ("img_in", "proj_out", "norm_out.linear")


def lora(
    path: Path,
    *layers: str,
    size: tuple[int, int] = (64, 64),
    seed: int = 1,
    strength: float = 0.1,
) -> Path:
    """A LoRA file of rank 3 and alpha 6 on these layers of the tiny model (inputs,
    outputs)."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(
            3, size[0], generator=random
        )
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = strength * torch.randn(
            size[1], 3, generator=random
        )
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(6.0)
    save_file(tensors, path)
    return path


def entry(path: Path, multiplier: float = 1.0) -> SimpleNamespace:
    """An entry of `model.base_loras`."""
    return SimpleNamespace(path=str(path), multiplier=multiplier)


def change(seed: int = 0, **parts: Tensor) -> LayerDelta:
    random = torch.Generator().manual_seed(seed)
    shapes = {"down": (2, 6), "up": (5, 2)}
    return LayerDelta(
        {n: 0.3 * torch.randn(s, generator=random) for n, s in shapes.items()} | parts,
        0.5,
    )


def one_layer(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5)).to(dtype)


def merged(model: nn.Module, *changes: tuple[LayerDelta, float]) -> Tensor:
    LoraMerger(
        [LoraToMerge("a", multiplier, {"0": change}) for change, multiplier in changes]
    )(model, "")
    return model[0].weight.detach()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_another_program_adds_the_change_that_program_computed(
    name: str,
) -> None:
    """Half as strong: (merged - base) / 0.5 is the change, whose norm and sum the other
    program wrote down."""
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel.from_config(
        QwenImageTransformer2DModel.load_config(GOLDEN / "config.json")
    )
    modules = EXPECTED[name]["modules"]
    base = {
        module: model.get_submodule(module).weight.detach().clone()
        for module in modules
    }
    layers = {
        n: (m.in_features, m.out_features)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    }
    [file] = read_base_loras([entry(GOLDEN / name, 0.5)], layers)
    merge = LoraMerger([file])
    for index, block in enumerate(model.transformer_blocks):
        merge(block, f"transformer_blocks.{index}")
    worst = 0.0
    for module, numbers in modules.items():
        delta_OI = (
            model.get_submodule(module).weight.detach().double() - base[module].double()
        ) / 0.5
        frobenius = numbers["frobenius"]
        noise = 2**-23 * float(base[module].norm()) / 0.5  # of float32 sums
        worst = max(worst, abs(float(delta_OI.norm()) / frobenius - 1))
        assert float(delta_OI.norm()) == pytest.approx(frobenius, rel=1e-4, abs=noise)
        tolerance = (1e-4 * frobenius + noise) * delta_OI.numel() ** 0.5
        assert float(delta_OI.sum()) == pytest.approx(numbers["sum"], abs=tolerance)
    at_most(f"merged change of {name}, norm", worst, 1e-3)


@pytest.mark.parametrize("qtype", [None, "int8"])
def test_a_model_is_quantized_after_the_merge(
    tiny_model: Path, tmp_path: Path, qtype: str | None
) -> None:
    """Block layers as quantizing the merged weight makes them; layers outside of the
    blocks are merged too."""
    path = lora(tmp_path / "a.safetensors", LAYER)
    plain = open_tiny(tiny_model).network_module
    layers = FAMILY.every_linear_layer(tiny_model)

    def merging() -> LoraMerger:
        return LoraMerger(read_base_loras([entry(path, 0.7)], layers))

    model = open_tiny(
        tiny_model, merge_fn=merging, transform_block=qtype and quantizer(qtype)
    ).network_module
    expected = nn.Linear(64, 64)
    delta_OI = load_adapter_file(path, layers)[LAYER].delta()
    expected.weight.data = plain.get_submodule(LAYER).weight.data + 0.7 * delta_OI
    block = nn.Sequential(expected)
    if qtype:
        quantizer(qtype)(block, "block")
    ours, theirs = (
        dequantized_weight(model.get_submodule(LAYER)),
        dequantized_weight(block[0]),
    )
    at_most(f"merged, then {qtype}", relative(ours, theirs), 1e-6)
    assert relative(ours, dequantized_weight(plain.get_submodule(LAYER))) > 0.05
    other = "transformer_blocks.1.attn.to_q"
    if qtype is None:
        assert torch.equal(
            model.get_submodule(other).weight, plain.get_submodule(other).weight
        )


@pytest.mark.parametrize("layer", OUTSIDE)
def test_layers_outside_of_the_blocks_are_merged_too(
    tiny_model: Path, tmp_path: Path, layer: str
) -> None:
    layers = FAMILY.every_linear_layer(tiny_model)
    path = lora(tmp_path / "a.safetensors", layer, size=layers[layer])
    plain = open_tiny(tiny_model).network_module.get_submodule(layer).weight
    model = open_tiny(
        tiny_model, merge_fn=lambda: LoraMerger(read_base_loras([entry(path)], layers))
    )
    delta_OI = load_adapter_file(path, layers)[layer].delta()
    torch.testing.assert_close(
        model.network_module.get_submodule(layer).weight, plain + delta_OI
    )


def test_two_files_add_up() -> None:
    base = one_layer()[0].weight.detach().clone()
    expected = base + 0.5 * change(1).delta() - 2 * change(2).delta()
    torch.testing.assert_close(
        merged(one_layer(), (change(1), 0.5), (change(2), -2.0)), expected
    )


def test_a_dora_is_merged_with_its_magnitude_by_the_part_the_multiplier_says() -> None:
    dora = change(1, dora_scale=torch.full((1, 6), 2.0))
    base = one_layer()[0].weight.detach().clone()
    whole = merged(one_layer(), (dora, 1.0))
    torch.testing.assert_close(whole.norm(dim=0), torch.full((6,), 2.0))
    torch.testing.assert_close(
        merged(one_layer(), (dora, 0.25)), base + 0.25 * (whole - base)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    """Each change alone would be lost in the rounding of the weight."""
    base = one_layer(dtype)[0].weight.detach().clone()
    little = LayerDelta(
        {
            "down": torch.ones(1, 6),
            "up": base.float().abs().mean() * torch.ones(5, 1) / 3,
        },
        2**-9,
    )
    found = merged(one_layer(dtype), *[(little, 1.0)] * 5)
    assert found.dtype == dtype
    assert torch.equal(found, (base.float() + 5 * little.delta()).to(dtype))


def test_changes_of_biases_are_merged_and_refused_where_there_is_none() -> None:
    model, bias_O = one_layer(torch.bfloat16), torch.full((5,), 1e-3)
    expected_OI, expected_O = (
        model[0].weight.float() + change().delta(),
        model[0].bias.float() + 2e-3 - 0.5e-3,
    )
    alone = LayerDelta(
        {"up": torch.zeros(5, 0), "down": torch.zeros(0, 6)}, 1.0, bias_O
    )
    merged(model, (change(), 1.0), (alone, 2.0), (replace(alone, bias=-bias_O), 0.5))
    assert torch.equal(model[0].weight, expected_OI.bfloat16())
    assert torch.equal(model[0].bias, expected_O.bfloat16())
    model[0].bias = None
    with pytest.raises(UserError, match="a changes the bias of 0"):
        merged(model, (alone, 1.0))


def test_each_change_is_merged_once() -> None:
    model = nn.ModuleDict({"a": one_layer(), "b": one_layer()})
    merge = LoraMerger([LoraToMerge("x", 1.0, {"a.0": change(1), "b.0": change(2)})])
    base = one_layer()[0].weight.detach().clone()
    merge(model["a"], "a")
    assert torch.equal(model["b"][0].weight, base)
    merge(model, "")
    merge(model, "")
    torch.testing.assert_close(model["a"][0].weight, base + change(1).delta())
    torch.testing.assert_close(model["b"][0].weight, base + change(2).delta())


def test_weights_that_overflow_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.base_loras: 0 is not finite with a\. Lower the multiplier",
    ):
        merged(one_layer(torch.float16), (change(1), 1e7))


@pytest.mark.parametrize(
    ("layer", "size", "strength", "words"),
    [
        (LAYER, (64, 64), 0.0, "changes no layer"),
        (
            LAYER,
            (64, 32),
            0.1,
            "has 64 inputs and 32 outputs there, 64 and 64 in this model",
        ),
        (
            "transformer_blocks.2.attn.to_q",
            (64, 64),
            0.1,
            "of layers that this model does not have",
        ),
        (None, (64, 64), 0.1, "changes no layer"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    tiny_model, tmp_path, layer, size, strength, words: str
) -> None:
    path = lora(
        tmp_path / "a.safetensors",
        *([layer] if layer else []),
        size=size,
        strength=strength,
    )
    with pytest.raises(UserError, match=words) as caught:
        read_base_loras([entry(path)], FAMILY.every_linear_layer(tiny_model))
    assert str(path) in str(caught.value)

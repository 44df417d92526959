"""OFT, BOFT and GLoRA of LyCORIS and peft, against the outputs of the libraries' own
layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.tuners.boft.layer as boft_layer
import pytest
import torch
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from peft import BOFTConfig, OFTConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.measured import at_most
from toolkit.config.sections.model import BaseLora
from toolkit.errors import UserError
from toolkit.memory.quantization import quantizer
from toolkit.networks.adapter_settings import CONFIG_FILE
from toolkit.networks.applied import AppliedAdapters
from toolkit.networks.lora_formats import (
    LayerDelta,
    load_adapter_file,
    parse_adapter_tensors,
)
from toolkit.networks.merge import read_base_loras

CPU = torch.device("cpu")
LAYER = "transformer_blocks.0.attn.to_q"
SHAPES = {"square": (64, 64), "wide": (96, 32), "tall": (32, 128)}
"""(inputs, outputs)"""


@pytest.fixture(autouse=True)
def _without_a_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft would compile one for its BOFT where it finds a compiler."""
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def linear(shape: str, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*SHAPES[shape], bias=bias).requires_grad_(False)


class Net(nn.Module):
    """One linear layer under the name LAYER."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        parent: nn.Module = self
        *path, last = LAYER.split(".")
        for part in path:
            parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(LAYER)(x)


# ------------------------------------------------------------ LyCORIS

LYCORIS: dict[str, tuple[type[LycorisBaseModule], dict[str, Any]]] = {
    "oft": (DiagOFTModule, {"lora_dim": 4}),
    "oft, other blocks": (DiagOFTModule, {"lora_dim": 16}),
    "oft, rescaled": (DiagOFTModule, {"lora_dim": 8, "rescaled": True}),
    "oft, limited": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.004}),
    "oft, hardly limited": (DiagOFTModule, {"lora_dim": 4, "constraint": 4.0}),
    "oft, limited and rescaled": (
        DiagOFTModule,
        {"lora_dim": 8, "constraint": 0.004, "rescaled": True},
    ),
    "boft": (ButterflyOFTModule, {"lora_dim": 4}),
    "boft, other blocks": (ButterflyOFTModule, {"lora_dim": 16}),
    "boft, rescaled": (ButterflyOFTModule, {"lora_dim": 4, "rescaled": True}),
    "boft, limited": (ButterflyOFTModule, {"lora_dim": 8, "constraint": 0.01}),
    "boft, limited and rescaled": (
        ButterflyOFTModule,
        {"lora_dim": 8, "constraint": 0.01, "rescaled": True},
    ),
    "glora": (GLoRAModule, {"lora_dim": 4, "alpha": 4}),
    "glora, alpha": (GLoRAModule, {"lora_dim": 4, "alpha": 1}),
    "glora, scalar": (GLoRAModule, {"lora_dim": 8, "alpha": 2, "use_scalar": True}),
}


def of_lycoris(name: str, layer: nn.Linear) -> LycorisBaseModule:
    """A module of LyCORIS on the layer, with random numbers."""
    kind, arguments = LYCORIS[name]
    module = kind("lora", layer, 1.0, **arguments)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def change_of(
    module: LycorisBaseModule,
    layer: nn.Linear,
    prefix: str = "lycoris_",
    flat: bool = True,
) -> LayerDelta:
    """The change that is read from the module's own tensors under one of the names."""
    stem = prefix + (LAYER.replace(".", "_") if flat else LAYER)
    tensors = {
        f"{stem}.{name}": tensor.detach()
        for name, tensor in module.state_dict().items()
    }
    return parse_adapter_tensors(
        tensors, {LAYER: (layer.in_features, layer.out_features)}, "file"
    )[LAYER]


@pytest.mark.parametrize(
    ("shape", "bias"), [("square", True), ("wide", False), ("tall", True)]
)
@pytest.mark.parametrize("name", LYCORIS)
def test_the_change_is_that_of_lycoris(name: str, shape: str, bias: bool) -> None:
    layer = linear(shape, bias)
    module = of_lycoris(name, layer)
    change = change_of(module, layer)
    x = torch.randn(2, 5, layer.in_features)
    expected = module(x).detach()
    weight_OI = change.applied_to(layer.weight)
    output = nn.functional.linear(x, weight_OI, layer.bias)
    at_most(f"{name} of LyCORIS, {shape}: output", relative(output, expected), 1e-6)
    delta_OI = change.delta_for(layer.weight)
    at_most(
        f"{name} of LyCORIS, {shape}: change",
        relative(delta_OI, module.get_diff_weight()[0].detach()),
        3e-6,
    )
    assert relative(expected, layer(x)) > 0.005
    assert (
        change.needs_base
        and not change.is_zero
        and change.shape == tuple(layer.weight.shape)
    )


@pytest.mark.parametrize("name", ["oft, rescaled", "boft, limited", "glora"])
def test_every_prefix_names_the_same_layer(name: str) -> None:
    layer = linear("wide")
    module = of_lycoris(name, layer)
    first_OI = change_of(module, layer).delta_for(layer.weight)
    for prefix, flat in (
        ("lora_unet_", True),
        ("diffusion_model.", False),
        ("transformer.", False),
        ("", False),
    ):
        change = change_of(module, layer, prefix, flat)
        assert torch.equal(change.delta_for(layer.weight), first_OI), prefix


def test_a_glora_without_alpha_has_the_strength_one() -> None:
    module = of_lycoris("glora, alpha", layer := linear("wide"))
    tensors = {
        f"{LAYER}.{name}": tensor
        for name, tensor in module.state_dict().items()
        if name != "alpha"
    }
    assert parse_adapter_tensors(tensors, [LAYER], "file")[LAYER].scale == 1.0
    assert change_of(module, layer).scale == 0.25


# ------------------------------------------------------------ peft

OFT = {
    "series": {},
    "series of 1": {"num_cayley_neumann_terms": 1, "coft": True},
    "series of 2": {"num_cayley_neumann_terms": 2},
    "series of 3": {"num_cayley_neumann_terms": 3},
    "series of 4": {"num_cayley_neumann_terms": 4},
    "series of 9": {"num_cayley_neumann_terms": 9},
    "exact": {"use_cayley_neumann": False},
    "exact, shared": {"use_cayley_neumann": False, "block_share": True},
    "series, shared": {"block_share": True},
    "constrained": {"coft": True, "eps": 0.3},
    "constrained, exact": {"coft": True, "eps": 0.3, "use_cayley_neumann": False},
    "constrained, shared": {"coft": True, "eps": 0.1, "block_share": True},
    "hardly constrained": {"coft": True, "eps": 50.0},
}
BLOCKS = {
    "of 8": {"oft_block_size": 8},
    "of 2": {"oft_block_size": 2},
    "two": {"oft_block_size": 0, "r": 2},
}
PEFT: dict[str, Callable[[], PeftConfig]] = {
    **{
        f"oft, {name}, blocks {size}": lambda one=one, blocks=blocks: OFTConfig(
            target_modules=["to_q"], **one, **blocks
        )
        for name, one in OFT.items()
        for size, blocks in BLOCKS.items()
        if size == "of 8" or name in ("series", "exact", "constrained")
    },
    "oft, one block": lambda: OFTConfig(
        target_modules=["to_q"], oft_block_size=0, r=1, use_cayley_neumann=False
    ),
    "oft, adjusted": lambda: OFTConfig(target_modules=["to_q"], oft_block_size=7),
    "boft": lambda: BOFTConfig(target_modules=["to_q"]),
    "boft, blocks of 16": lambda: BOFTConfig(
        target_modules=["to_q"], boft_block_size=16
    ),
    "boft, two blocks": lambda: BOFTConfig(
        target_modules=["to_q"], boft_block_size=0, boft_block_num=2
    ),
}


def saved_by_peft(
    config: PeftConfig, layer: nn.Linear, folder: Path
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Saves an adapter with random numbers; returns what peft computes with the
    folder's, and its merged weight."""
    adapted = get_peft_model(
        Net(nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)),
        config,
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "oft_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)

    def loaded() -> PeftModel:
        copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        copy.load_state_dict(layer.state_dict())
        return PeftModel.from_pretrained(Net(copy), folder).eval()

    return loaded(), loaded().merge_and_unload().get_submodule(LAYER).weight.detach()


def load(folder: Path, layer: nn.Linear) -> LayerDelta:
    sizes = {LAYER: (layer.in_features, layer.out_features)}
    return load_adapter_file(folder / "adapter_model.safetensors", sizes)[LAYER]


@pytest.mark.parametrize(
    ("shape", "bias"), [("square", True), ("wide", False), ("tall", True)]
)
@pytest.mark.parametrize("name", PEFT)
def test_the_change_is_that_of_peft(
    name: str, shape: str, bias: bool, tmp_path: Path
) -> None:
    layer = linear(shape, bias)
    forward, merged_OI = saved_by_peft(PEFT[name](), layer, tmp_path)
    change = load(tmp_path, layer)
    at_most(
        f"{name} of peft, {shape}: weight",
        relative(change.applied_to(layer.weight), merged_OI),
        1e-6,
    )
    x = torch.randn(3, layer.in_features)
    applied = AppliedAdapters(net := Net(layer), [{LAYER: change}], CPU)
    applied.use([({LAYER: change}, 1.0)])
    at_most(
        f"{name} of peft, {shape}: output", relative(net(x), forward(x).detach()), 1e-6
    )
    assert change.shape == tuple(layer.weight.shape)
    is_one = name.startswith("oft, series of 1")
    assert (
        change.is_zero == is_one
        and (relative(merged_OI, layer.weight) > 0.005) != is_one
    )


class _BlockDiagonal:
    """Stands for peft's CUDA kernel, without which it has no BOFT of several
    rotations."""

    @staticmethod
    def apply(blocks_MKBB: Tensor) -> Tensor:
        return torch.stack(
            [torch.block_diag(*blocks_KBB) for blocks_KBB in blocks_MKBB]
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "factors"), [(4, 2), (4, 3), (8, 2), (2, 4)])
def test_a_boft_of_several_rotations_is_that_of_peft(
    size: int, factors: int, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", _BlockDiagonal)
    layer = linear(shape)
    config = BOFTConfig(
        target_modules=["to_q"], boft_block_size=size, boft_n_butterfly_factor=factors
    )
    forward, merged_OI = saved_by_peft(config, layer, tmp_path)
    assert (
        len(
            load_file(tmp_path / "adapter_model.safetensors")[
                f"base_model.model.{LAYER}.boft_R"
            ]
        )
        == factors
    )
    change = load(tmp_path, layer)
    assert relative(change.applied_to(layer.weight), merged_OI) < 1e-6
    x = torch.randn(3, layer.in_features)
    added = change.output_delta(x, lambda inputs: inputs @ layer.weight.T)
    assert relative(layer(x) + added, forward(x).detach()) < 1e-6


def test_names_of_peft_with_the_adapter_are_read(tmp_path: Path) -> None:
    layer = linear("wide")
    saved_by_peft(BOFTConfig(target_modules=["to_q"]), layer, tmp_path)
    first = load(tmp_path, layer)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {f"{key}.default": tensor for key, tensor in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    assert torch.equal(
        load(tmp_path, layer).delta_for(layer.weight), first.delta_for(layer.weight)
    )


# ------------------------------------------------------------ settings and shapes that
# are refused


def set_config(folder: Path, **values: object) -> None:
    config = folder / CONFIG_FILE
    kept = {**json.loads(config.read_text(encoding="utf-8")), **values}
    config.write_text(
        json.dumps({key: value for key, value in kept.items() if value != "gone"}),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"peft_version": "0.17.1"},
            "use_cayley_neumann, and is not of peft 0.18 or later",
        ),
        (
            {"peft_version": "gone"},
            "use_cayley_neumann, and is not of peft 0.18 or later",
        ),
        ({"use_cayley_neumann": "gone"}, "says nothing of use_cayley_neumann"),
        ({"coft": None}, "says nothing of coft"),
        ({"eps": "small"}, "says nothing of eps"),
        ({"num_cayley_neumann_terms": 10**9}, "num_cayley_neumann_terms: 1000000000"),
        ({"num_cayley_neumann_terms": 0}, "num_cayley_neumann_terms: 0"),
        ({"bias": "oft_only"}, "bias: .*the biases of the model were trained"),
        ({"modules_to_save": ["proj_out"]}, "whole modules were trained"),
        ({"block_share": True}, "do not fit together: oft_R"),
        ({"unheard_of": 3}, "this setting is not known"),
    ],
)
def test_settings_of_an_oft_that_cannot_be_read_are_named(
    values: dict[str, object], words: str, tmp_path: Path
) -> None:
    saved_by_peft(
        OFTConfig(target_modules=["to_q"], oft_block_size=8),
        layer := linear("wide"),
        tmp_path,
    )
    set_config(tmp_path, **values)
    with pytest.raises(UserError, match=rf"adapter_model\.safetensors: .*{words}"):
        load(tmp_path, layer)


@pytest.mark.parametrize("kind", [OFTConfig, BOFTConfig])
def test_files_of_peft_without_settings_are_refused(
    kind: type[PeftConfig], tmp_path: Path
) -> None:
    saved_by_peft(kind(target_modules=["to_q"]), layer := linear("square"), tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match="its keys are peft's"):
        load(tmp_path, layer)


BLOCKS_KBB = torch.full((8, 4, 4), 0.1)
GLORA = {
    "a1.weight": (32, 2),
    "a2.weight": (2, 32),
    "b1.weight": (96, 2),
    "b2.weight": (2, 32),
}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"rescale": torch.ones(32, 1)}, "lacks a matrix"),
        (
            {"oft_blocks": BLOCKS_KBB, "rescale": torch.ones(31, 1)},
            "do not fit together",
        ),
        ({"oft_blocks": BLOCKS_KBB[..., :3]}, "do not fit together"),
        ({"oft_blocks": BLOCKS_KBB[0]}, "do not fit together"),
        ({"oft_blocks": BLOCKS_KBB.expand(6, 8, 4, 4)}, "do not fit together"),
        ({"oft_blocks": torch.ones(2, 4, 3, 3)}, "do not fit together"),
        ({"oft_blocks": BLOCKS_KBB * torch.nan}, "not finite"),
        (
            {"oft_blocks": BLOCKS_KBB, "alpha": torch.tensor(torch.inf)},
            "alpha of .* is not finite",
        ),
        ({"oft_blocks": BLOCKS_KBB, "alpha": torch.ones(2)}, "numbers, not one"),
        (
            {"oft_blocks": BLOCKS_KBB, "lora_A.weight": torch.ones(2, 96)},
            "mixes several kinds.*an OFT or BOFT of Ly",
        ),
        (
            {"oft_blocks": BLOCKS_KBB, "dora_scale": torch.ones(1, 96)},
            "mixes several kinds",
        ),
        (
            {"oft_blocks": BLOCKS_KBB, "lora_B.bias": torch.ones(32)},
            "mixes several kinds",
        ),
        ({"oft_blocks": BLOCKS_KBB, "diff_b": torch.ones(31)}, "bias"),
        (
            {"oft_blocks": torch.ones(4, 4, 4)},
            "96 inputs and 16 outputs there, 96 and 32 in this model",
        ),
        (
            {
                name: torch.ones(shape)
                for name, shape in GLORA.items()
                if name != "b2.weight"
            },
            "lacks a matrix",
        ),
        (
            {name: torch.ones(shape[::-1]) for name, shape in GLORA.items()},
            "do not fit together",
        ),
        (
            {name: torch.ones(shape) for name, shape in GLORA.items()},
            "32 inputs and 96 outputs there",
        ),
    ],
)
def test_matrices_that_cannot_be_used_are_named(
    tensors: dict[str, Tensor], words: str
) -> None:
    named = {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(UserError, match=words):
        parse_adapter_tensors(named, {LAYER: (96, 32)}, "file")


def test_a_shared_block_that_does_not_divide_the_layer_is_refused(
    tmp_path: Path,
) -> None:
    config = OFTConfig(target_modules=["to_q"], oft_block_size=8, block_share=True)
    saved_by_peft(config, linear("wide"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert load_adapter_file(file, [LAYER])[LAYER].shape == (0, 0)
    with pytest.raises(UserError, match="do not fit together"):
        load_adapter_file(file, {LAYER: (100, 32)})


# ------------------------------------------------------------ use


def changes_of_every_kind(tmp_path: Path) -> dict[str, LayerDelta]:
    found = {
        name: change_of(of_lycoris(name, linear("tall")), linear("tall"))
        for name in LYCORIS
    }
    for name, config in PEFT.items():
        if name.count(",") != 2 or "blocks of 8" in name:
            saved_by_peft(config(), linear("tall"), tmp_path)
            found[name] = load(tmp_path, linear("tall"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("qtype", "bias"), [("", True), ("int8", False)])
def test_the_output_is_that_of_the_changed_weight(
    qtype: str, bias: bool, tmp_path: Path
) -> None:
    for name, change in changes_of_every_kind(tmp_path).items():
        net = Net(linear("tall", bias))
        if qtype:
            quantizer(qtype)(net, "block")
        layer = net.get_submodule(LAYER)
        weight_OI = (layer.weight.dequantize() if qtype else layer.weight).float()
        x = torch.randn(2, 5, layer.in_features)
        before = net(x)
        applied = AppliedAdapters(net, [{LAYER: change}], CPU)
        # so that no table stands for the frozen layer
        assert net.get_submodule(LAYER).needs_base
        for strength in (1.0, -0.5):
            applied.use([({LAYER: change}, strength)])
            expected = before + strength * (x @ change.delta_for(weight_OI).T)
            # An int8 layer multiplies in another order than its dequantized weight.
            assert relative(net(x), expected) < (2e-5 if qtype else 1e-6), (
                name,
                strength,
            )
        applied.use([])
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", [DiagOFTModule, ButterflyOFTModule, GLoRAModule])
def test_an_untrained_file_changes_nothing(
    kind: type[LycorisBaseModule], tmp_path: Path
) -> None:
    layer = linear("wide")
    module = kind("lora", layer, 1.0, lora_dim=4)
    assert change_of(module, layer).is_zero
    file = tmp_path / "oft.safetensors"
    save_file({f"{LAYER}.{key}": one for key, one in module.state_dict().items()}, file)
    with pytest.raises(UserError, match="changes no layer"):
        read_base_loras([BaseLora(path=str(file))], {LAYER: (96, 32)})


def test_a_layer_that_comfyui_has_in_one_is_split(tmp_path: Path) -> None:
    parts = [f"transformer_blocks.0.img_mlp.{part}" for part in ("gate_layer", "proj")]
    whole = "transformer_blocks.0.img_mlp.gate_up"
    layer = nn.Linear(32, 128).requires_grad_(False)
    for name in ("oft, rescaled", "glora, alpha"):
        module = of_lycoris(name, layer)
        tensors = {
            f"diffusion_model.{whole}.{key}": tensor
            for key, tensor in module.state_dict().items()
        }
        changes = parse_adapter_tensors(tensors, dict.fromkeys(parts, (32, 64)), "file")
        weights = layer.weight.chunk(2)
        found = torch.cat(
            [
                changes[part].applied_to(rows)
                for part, rows in zip(parts, weights, strict=True)
            ]
        )
        assert (
            relative(found, layer.weight + module.get_diff_weight()[0].detach()) < 1e-6
        )
    boft = of_lycoris("boft", layer)
    with pytest.raises(UserError, match="this kind cannot be split"):
        tensors = {
            f"diffusion_model.{whole}.{key}": tensor
            for key, tensor in boft.state_dict().items()
        }
        parse_adapter_tensors(tensors, dict.fromkeys(parts, (32, 64)), "file")


# ------------------------------------------------------------ whole changes and IA3 of
# LyCORIS


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limit_of_an_oft_of_comfyui_is_that_of_the_norm(
    alpha: float, dtype: torch.dtype
) -> None:
    """comfy/weight_adapter/oft.py, `calculate_weight`: rows are multiplied by the
    transposed matrices."""
    torch.manual_seed(2)
    blocks_KBB = torch.randn(16, 4, 4).to(dtype)
    weight_OI = torch.randn(64, 32)
    tensors = {"oft_blocks": blocks_KBB, "alpha": torch.tensor(alpha, dtype=dtype)}
    found = parse_adapter_tensors(
        {f"diffusion_model.{LAYER}.{name}": part for name, part in tensors.items()},
        {LAYER: (32, 64)},
        "file",
    )[LAYER]
    skew = blocks_KBB.float() - blocks_KBB.float().mT
    assert 3 < skew.norm() < 1e6
    if 0 < alpha < skew.norm():
        skew = skew * alpha / skew.norm()
    turned = (torch.eye(4) + skew) @ torch.linalg.inv(torch.eye(4) - skew)
    expected = torch.einsum("knm,kni->kmi", turned, weight_OI.view(16, 4, 32)).reshape(
        64, 32
    )
    assert relative(found.applied_to(weight_OI), expected) < 1e-6


@pytest.mark.parametrize("kind", ["full", "ia3 of outputs", "ia3 of inputs"])
@pytest.mark.parametrize("prefix", ["lycoris_to_q", "diffusion_model.to_q"])
def test_a_whole_change_and_an_ia3_mean_what_they_mean_in_lycoris(
    kind: str, prefix: str
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 10, bias=False)
    weight_OI = layer.weight.detach().clone()
    if kind == "full":
        module = FullModule("lora", layer)
        module.apply_to()
        module.weight.data += 0.1 * torch.randn(10, 6)
        expected_OI = module.weight.detach() - weight_OI
        tensors = {f"{prefix}.diff": expected_OI}
    else:
        module = IA3Module("lora", layer, train_on_input=kind.endswith("inputs"))
        module.weight.data += 0.1 * torch.randn_like(module.weight)
        expected_OI = module.get_diff_weight()[0].detach()
        tensors = {
            f"{prefix}.{name}": tensor.detach()
            for name, tensor in module.state_dict().items()
        }
    change = parse_adapter_tensors(tensors, {"to_q": (6, 10)}, "file")["to_q"]
    torch.testing.assert_close(
        change.delta_for(weight_OI), expected_OI, rtol=1e-6, atol=1e-7
    )
    assert change.shape == (10, 6) and not change.is_zero
    x = torch.randn(3, 6)
    added = change.output_delta(x, lambda given: given @ weight_OI.T)
    torch.testing.assert_close(added, x @ expected_OI.T, rtol=1e-5, atol=1e-6)


def test_a_whole_change_of_a_fused_layer_is_split() -> None:
    parts = [f"blocks.0.{part}" for part in ("img_mlp.gate_layer", "img_mlp.proj")]
    diff_OI = torch.randn(8, 6)
    changes = parse_adapter_tensors(
        {"diffusion_model.blocks.0.img_mlp.gate_up.diff": diff_OI},
        dict.fromkeys(parts, (6, 4)),
        "file",
    )
    found = [changes[part].delta_for(torch.zeros(4, 6)) for part in parts]
    assert torch.equal(torch.cat(found), diff_OI)


def test_an_ia3_without_its_side_is_not_taken_for_one() -> None:
    with pytest.raises(UserError, match="1 keys are of no known form"):
        parse_adapter_tensors(
            {"lycoris_to_q.weight": torch.ones(10)}, {"to_q": (6, 10)}, "file"
        )

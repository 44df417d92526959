"""Blocks with less work compute what diffusers' own do."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
)
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from tests.diffusers_reference import open_tiny, relative
from toolkit.models.qwen_image.forward import FusedRMSNorm, with_fused_norms
from toolkit.networks.lora import LoraNetwork

RANK = 3


def norm(dtype: torch.dtype, width: int = 24) -> RMSNorm:
    layer = RMSNorm(width, eps=1e-6).requires_grad_(False)
    layer.weight.normal_(1, 0.3, generator=torch.Generator().manual_seed(1))
    return layer.to(dtype)


def output_and_gradient(layer: RMSNorm, x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    (
        y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    ).sum().backward()
    return [y.detach(), x.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fused_norm_has_the_bits_of_the_formula(dtype: torch.dtype) -> None:
    """The gradient too in float32; in half precision it is nearer to the exact one."""
    x = torch.randn((2, 5, 3, 24), generator=torch.Generator().manual_seed(2)).to(dtype)
    theirs, ours = norm(dtype), with_fused_norms(deepcopy(norm(dtype)))
    assert type(ours) is FusedRMSNorm
    (y, gradient), (own_y, own_gradient) = (
        output_and_gradient(theirs, x),
        output_and_gradient(ours, x),
    )
    assert torch.equal(y, own_y)
    if dtype == torch.float32:
        assert torch.equal(gradient, own_gradient)
    else:
        _, exact = output_and_gradient(theirs.double(), x.double())
        assert relative(own_gradient, exact) < relative(gradient, exact)


def test_a_norm_whose_weight_has_another_type_is_diffusers_own() -> None:
    x = torch.randn((2, 24), generator=torch.Generator().manual_seed(2)).bfloat16()
    theirs, ours = norm(torch.float32), with_fused_norms(norm(torch.float32))
    assert torch.equal(theirs(x), ours(x)) and ours(x).dtype == torch.float32


class Products(TorchDispatchMode):
    """Widths of all products without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.widths.append(args[1].shape[1])
        return func(*args, **(kwargs or {}))


def block_and_inputs(
    folder: Path,
) -> tuple[torch.nn.Module, LoraNetwork, dict[str, object]]:
    model = open_tiny(folder)
    network = LoraNetwork(model.lora_targets(), RANK, 4.0, 0.0, seed=1)
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    random = torch.Generator().manual_seed(3)
    for parameter in network.parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    block = model.blocks()[0]
    image_BSD, text_BLD = (
        torch.randn((1, n, block.dim), generator=random) for n in (6, 4)
    )
    half = block.attn.inner_dim // block.attn.heads // 2
    rotary = tuple(
        torch.polar(torch.ones(n, half), torch.rand(n, half, generator=random))
        for n in (6, 4)
    )
    temb_BD = torch.randn((1, block.dim), generator=random)
    inputs = {
        "hidden_states": image_BSD,
        "encoder_hidden_states": text_BLD,
        "encoder_hidden_states_mask": None,
    }
    return block, network, {**inputs, "temb": temb_BD, "image_rotary_emb": rotary}


def passes(
    network: LoraNetwork, run: Callable, inputs: dict[str, object]
) -> list[Tensor]:
    """Outputs and gradients."""
    for parameter in network.parameters().values():
        parameter.grad = None
    outputs = run(**inputs)
    sum(output.square().sum() for output in outputs).backward()
    return [
        *(output.detach() for output in outputs),
        *(p.grad for p in network.parameters().values() if p.grad is not None),
    ]


def same_as_diffusers(
    found: list[Tensor], block: torch.nn.Module, network: LoraNetwork, inputs: dict
) -> bool:
    block.attn.processor = QwenDoubleStreamAttnProcessor2_0()
    expected = passes(network, block, inputs)
    return all(relative(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_query_key_and_value_have_one_down_product(tiny_model: Path) -> None:
    """For each stream. The numbers are those of diffusers' attention."""
    block, network, inputs = block_and_inputs(tiny_model)
    with Products() as products:
        found = passes(network, block, inputs)
    assert products.widths.count(3 * RANK) == 2
    assert same_as_diffusers(found, block, network, inputs)


@pytest.mark.slow
def test_compiled_they_have_it_too(tiny_model: Path) -> None:
    """And one for the gradient of the matrices."""
    block, network, inputs = block_and_inputs(tiny_model)
    graphs: list[list[torch.Size]] = []

    def recorded(module: fx.GraphModule, inputs: list[Tensor]) -> Callable:
        products = module.graph.find_nodes(
            op="call_function", target=torch.ops.aten.mm.default
        )
        graphs.append([node.meta["val"].shape for node in products])
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    compiled = torch.compile(
        block, backend=aot_autograd(fw_compiler=recorded), fullgraph=True
    )
    found = passes(network, compiled, inputs)
    forward, backward = graphs
    assert sum(shape[1] == 3 * RANK for shape in forward) == 2
    assert backward.count(torch.Size([3 * RANK, block.dim])) == 2
    torch._dynamo.reset()
    assert same_as_diffusers(found, block, network, inputs)

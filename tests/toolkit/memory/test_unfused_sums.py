"""What inductor is given of a block with an adapter: no product that needs a copy of
what it is added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import detect_fake_mode
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
from torch._inductor.virtualized import V

from tests.diffusers_reference import relative
from tests.toolkit.memory.toy_blocks import Stack
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper

RANK = 4
LAYERS = 6
"""Of a block of the stack, each adapted."""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fx.Graph]]:
    """The graphs of the backend "lowered": as inductor has them when its passes are
    done. They run uncompiled."""
    found: list[fx.Graph] = []

    def lowered(module: fx.GraphModule, inputs: list[Tensor]) -> Callable:
        view_to_reshape(module)
        with V.set_fake_mode(detect_fake_mode(inputs)):
            post_grad_passes(module, is_inference=False)
        found.append(module.graph)
        return make_boxed_func(module.forward)

    backend = aot_autograd(
        fw_compiler=lowered,
        bw_compiler=lowered,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    monkeypatch.setitem(
        torch._dynamo.backends.registry._COMPILER_FNS, "lowered", backend
    )
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "lowered", None)
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(),
        torch._dynamo.config.patch(),
        torch._functorch.config.patch(),
    ):
        # what it sets for inductor
        compile_wrapper(CompileConfig(enabled=True))(lambda block, *tensors: tensors)
        yield found
    torch._dynamo.reset()


def added(graph: fx.Graph) -> dict[int, int]:
    """By the dimensions of what is added: products with a sum."""
    nodes = graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    dims = [node.args[0].meta["val"].dim() for node in nodes]
    return {dim: dims.count(dim) for dim in set(dims)}


def products_of(graph: fx.Graph, outputs: int) -> int:
    """Products whose result has this width."""
    nodes = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    return sum(node.meta["val"].shape[1] == outputs for node in nodes)


@pytest.mark.parametrize(
    ("level", "qtype", "dtype"),
    [("full", None, torch.bfloat16), ("none", "int8", torch.float32)],
)
@pytest.mark.slow
def test_an_adapter_adds_no_product_to_a_matrix(
    graphs: list[fx.Graph], level: str, qtype: str | None, dtype: torch.dtype
) -> None:
    """Forward, computed again and backward. The numbers are those of the plain
    block."""

    def gradients(*wrappers: Callable) -> list[Tensor]:
        stack = Stack(dropout=0.0, count=1, qtype=qtype, rank=RANK).wrap(*wrappers)
        stack.model.to(dtype)
        random = torch.Generator().manual_seed(3)
        x_BSD = torch.randn((2, 20, 32), generator=random).to(dtype).requires_grad_()
        (y_BSD,) = stack.run(stack.model[0], x_BSD)
        y_BSD.float().square().sum().backward()
        return [y_BSD, x_BSD.grad, *stack.learned()]

    settings = CompileConfig(enabled=True, backend="lowered", fullgraph=True)
    found = gradients(checkpoint_wrapper(level), compile_wrapper(settings))
    forward, backward = graphs
    # A bias stays where it is: it is not a matrix. The last layer is not computed
    # again.
    assert added(forward) == ({} if qtype else {1: LAYERS})
    assert added(backward) == ({} if qtype else {1: LAYERS - 1})
    # query, key and value
    assert (
        products_of(forward, 3 * RANK) == 1 and products_of(forward, RANK) == LAYERS - 3
    )
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert all(
        relative(a, b) < tolerance for a, b in zip(found, gradients(), strict=True)
    )


@pytest.mark.slow
def test_sums_that_inductor_takes_for_one_product_are_taken_apart(
    graphs: list[fx.Graph],
) -> None:
    """The gradient of an input of two layers, and a scaled sum."""

    def two(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(x @ a + x @ b, x, b, alpha=0.5, beta=3.0).sin()

    inputs = [
        torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(3)
    ]
    y = torch.compile(two, backend="lowered")(*inputs)
    found = [y, *torch.autograd.grad(y.sum(), inputs)]
    expected = [two(*inputs), *torch.autograd.grad(two(*inputs).sum(), inputs)]
    assert [added(graph) for graph in graphs] == [{}, {}]
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_a_cache_of_programs_knows_the_pass(graphs: list[fx.Graph]) -> None:
    """Of any other kind it refuses to keep a program."""
    own = torch._inductor.config.post_grad_custom_post_pass
    assert isinstance(own, CustomGraphPass) and own.uuid()

"""What each operation of a compiled block returns is laid out as the compiler was told:
inductor's kernels read memory by the strides of PyTorch's meta kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.utils import _pytree as pytree

from tests.toolkit.memory.toy_blocks import CPU, WIDTH, Stack
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.attention import with_sdpa_priority
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_compiler")]

BACKEND = "laid out"


class Layouts(fx.Interpreter):
    """Runs a program and keeps what differs from what the compiler was told, as
    inductor's `assert_size_stride` does. An axis of one element may have any stride."""

    def __init__(self, program: fx.GraphModule, found: list[str]) -> None:
        super().__init__(program)
        self.found = found

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        told = pytree.tree_leaves(node.meta.get("val"))
        real = pytree.tree_leaves(result) if name_of(node) else []
        for index, (is_so, was_told) in enumerate(zip(real, told, strict=False)):
            if (
                isinstance(was_told, Tensor)
                and isinstance(is_so, Tensor)
                and layout(is_so) != layout(was_told)
            ):
                self.found.append(
                    f"{name_of(node)} {index}: {layout(is_so)}, and {layout(was_told)} was told"
                )
        return result


def name_of(node: fx.Node) -> str:
    """Of its operation; attention is run by another one, which keeps the state of
    random numbers."""
    return " of ".join(
        str(op)
        for op in (node.target, *node.args)
        if isinstance(op, torch._ops.OperatorBase)
    )


def layout(tensor: Tensor) -> tuple[torch.dtype, list[tuple[int, int]]]:
    strides = [
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return tensor.dtype, list(
        zip(map(int, tensor.shape), map(int, strides), strict=True)
    )


@contextmanager
def programs() -> Iterator[tuple[list[str], list[str]]]:
    """Inside the block `BACKEND` is a backend: the operations that its programs run,
    and what differs."""
    ran: list[str] = []
    found: list[str] = []

    def compiled(program: fx.GraphModule, inputs: object) -> Callable[..., Any]:
        ran.extend(name_of(node) for node in program.graph.nodes)
        return make_boxed_func(Layouts(program, found).run)

    registry = torch._dynamo.backends.registry
    registry._COMPILER_FNS[BACKEND] = aot_autograd(
        fw_compiler=compiled,
        bw_compiler=compiled,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    registry._BACKENDS[BACKEND] = None
    try:
        yield ran, found
    finally:
        del registry._COMPILER_FNS[BACKEND], registry._BACKENDS[BACKEND]


def differences(
    device: torch.device, dtype: torch.dtype, level: str, **options: Any
) -> list[str]:
    """Of a block's step. Without attention among its operations nothing would have been
    seen."""
    settings = CompileConfig(enabled=True, backend=BACKEND, fullgraph=True)
    with programs() as (ran, found):
        stack = Stack(dropout=0.0, count=1, device=device, **options)
        stack.wrap(
            with_sdpa_priority(device),
            checkpoint_wrapper(level, WIDTH),
            compile_wrapper(settings),
        )
        stack.model.to(dtype)
        x_BSD = torch.randn((2, 20, WIDTH)).to(device, dtype)
        (y_BSD,) = stack.run(stack.model[0], x_BSD)
        y_BSD.float().square().sum().backward()
    attention = [name for name in ran if "scaled_dot_product" in name]
    assert any("backward" in name for name in attention) and len(attention) > 1
    return found


@pytest.mark.parametrize(
    ("level", "options"),
    [
        ("full", {}),
        ("cheap", {"qtype": "int4"}),
        ("full", {"qtype": "int8"}),
    ],
    ids=str,
)
def test_a_compiled_block_returns_what_the_compiler_was_told(
    level: str, options: dict
) -> None:
    assert differences(CPU, torch.bfloat16, level, **options) == []

"""Compiled blocks compute what plain ones do, from a program that is made once for all blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from tests.diffusers_reference import relative
from tests.toolkit.memory.toy_blocks import CPU, Stack
from toolkit.config.compile import CompileConfig
from toolkit.memory.block_swap import BlockSwap
from toolkit.memory.checkpointing import checkpointed
from toolkit.memory.compiling import FEWEST_PROGRAMS, compiled

TOLERANCE = 1e-5
"""Relative, in float32: shared down-projections are done one by one, sums in another order."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def stack(level: str, backend: str = "eager", **options) -> Stack:
    settings = CompileConfig(enabled=True, backend=backend, fullgraph=True)
    return Stack(dropout=0.0, **options).wrap(checkpointed(level), compiled(settings))


def close(found: list, expected: list) -> bool:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    return all(relative(a, b) < TOLERANCE for a, b in pairs if b.any())


@pytest.mark.parametrize("qtype", [None, "int8"])
@pytest.mark.parametrize("level", ["none", "cheap", "full"])
def test_compiled_blocks_compute_the_same_in_one_piece(level: str, qtype) -> None:
    assert close(stack(level, qtype=qtype, count=2).gradients(), Stack(dropout=0.0, qtype=qtype, count=2).gradients())
    assert not counters["graph_break"]


def test_nothing_is_compiled_after_the_warm_up() -> None:
    compiled_stack = stack("full")
    compiled_stack.gradients()
    # One program for the first block, whose input needs no gradient, and one for the four others.
    assert counters["stats"]["unique_graphs"] == 2
    with torch.no_grad():
        compiled_stack.output()
    compiled_stack.gradients(tokens=12)
    compiled_stack.gradients(tokens=28)
    warm = counters["stats"]["unique_graphs"]
    for tokens in (20, 12, 24, 36):  # from the second length on a program serves them all
        compiled_stack.gradients(tokens=tokens)
        with torch.no_grad():
            compiled_stack.output()
    assert counters["stats"]["unique_graphs"] == warm


def test_swapped_weights_are_those_that_arrived() -> None:
    compiled_stack = stack("none")
    compiled_stack.wrap(BlockSwap(compiled_stack.blocks(0, 2, 3, 4), CPU))
    assert close(compiled_stack.gradients(steps=2), Stack(dropout=0.0).gradients(steps=2))


def test_names_of_weights_stay() -> None:
    compiled_stack = stack("none", count=1)
    before = compiled_stack.model.state_dict().keys(), compiled_stack.network.export({}).keys()
    compiled_stack.gradients()
    assert (compiled_stack.model.state_dict().keys(), compiled_stack.network.export({}).keys()) == before
    assert not [name for name in before[0] if "_orig_mod" in name]


@pytest.mark.parametrize(("given", "limit"), [(0, FEWEST_PROGRAMS), (5, 5)])
def test_the_number_of_programs_is_limited(given: int, limit: int) -> None:
    compiled(CompileConfig(enabled=True, backend="eager", cache_size_limit=given))(lambda block, x: (x,))
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.slow
@pytest.mark.parametrize("level", ["none", "cheap", "keep_attention", "full"])
def test_backward_passes_are_compiled_too(level: str) -> None:
    found = stack(level, "aot_eager", qtype="int8").gradients(steps=2)
    assert close(found, Stack(dropout=0.0, qtype="int8").gradients(steps=2))

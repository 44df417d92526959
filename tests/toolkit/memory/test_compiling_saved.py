"""What a compiled block keeps for its backward pass, and what PyTorch caches of it.
Both are decided before any kernel is made, so that a CPU shows what a GPU does."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.decomposition import select_decomp_table

from tests.faults.nursery import Nursery
from tests.toolkit.memory.toy_blocks import TOKENS, WIDTH, Stack, no_kernels
from toolkit.config.sections.train import CompileConfig
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper
from toolkit.networks.lora import DoraNetwork
from toolkit.networks.lycoris import LohaNetwork, LokrNetwork

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_compiler")]

ROWS = 2 * TOKENS


@dataclass
class Program:
    """A compiled block, as it is divided into a forward and a backward pass."""

    made: list[Tensor]
    """What it computes and keeps, without its inputs; without shapes of integers, and
    states of random numbers."""

    untagged: list[str]
    """Operations of the forward pass that checkpointing does not see."""


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """The programs of the backend "divided", which divides as inductor does and
    compiles nothing."""
    found: list[Program] = []

    def divide(joint: fx.GraphModule, inputs: object, **options):
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, **options
        )
        results = next(iter(reversed(forward.graph.nodes))).args[0][
            options["num_fwd_outputs"] :
        ]
        kept = [
            node.meta["val"]
            for node in results
            if isinstance(node, fx.Node) and node.op == "call_function"
        ]
        untagged = [
            str(node.target)
            for node in joint.graph.nodes
            if node.op == "call_function"
            and node.meta.get("partitioner_tag") != "is_backward"
            and "recompute" not in node.meta
        ]
        made = [
            value
            for value in kept
            if isinstance(value, Tensor) and value.dtype != torch.uint8
        ]
        found.append(Program(made, untagged))
        return forward, backward

    def run(module: fx.GraphModule, inputs: object):
        return make_boxed_func(module.forward)

    options = {"partition_fn": divide, "decompositions": select_decomp_table()}
    backend = aot_autograd(fw_compiler=run, bw_compiler=run, **options)
    monkeypatch.setitem(
        torch._dynamo.backends.registry._COMPILER_FNS, "divided", backend
    )
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "divided", None)
    return found


def train(level: str, backend: str = "divided", **options) -> None:
    """A step of one block."""
    settings = CompileConfig(enabled=True, backend=backend, fullgraph=True)
    stack = Stack(dropout=0.0, count=1, **options)
    stack.wrap(checkpoint_wrapper(level, WIDTH), compile_wrapper(settings)).gradients()


@pytest.mark.parametrize(
    "options",
    [
        {"qtype": "int4", "kind": DoraNetwork},
        {"qtype": "int8"},
        {"qtype": "fp8_scaled"},
    ],
    ids=str,
)
def test_full_checkpointing_keeps_only_the_inputs_of_a_block(
    programs: list[Program], options: dict
) -> None:
    """On torch 2.11 what is inside an autograd.Function has no tag: each block kept its
    weights and activations."""
    train("full", **options)
    assert [(program.made, program.untagged) for program in programs] == [([], [])]


@pytest.mark.parametrize(
    ("level", "options"),
    [
        ("cheap", {"qtype": "int4", "kind": DoraNetwork}),
        ("keep_attention", {"qtype": "fp8_scaled", "kind": LohaNetwork}),
        ("full_offload", {"qtype": "uint3", "kind": LokrNetwork}),
    ],
    ids=str,
)
def test_checkpointing_sees_every_operation(
    programs: list[Program], level: str, options: dict
) -> None:
    train(level, **options)
    assert [program.untagged for program in programs] == [[]]
    assert dequantized(programs) == []


def dequantized(programs: list[Program]) -> list[torch.Size]:
    """What is kept and has no axis of rows or tokens is a weight; those of an adapter
    are smaller."""
    weights = [
        v.shape
        for program in programs
        for v in program.made
        if not {ROWS, TOKENS} & {*v.shape}
    ]
    return [shape for shape in weights if min(shape) >= WIDTH]


@pytest.mark.parametrize("qtype", ["int8", "float8", "uint3"])
def test_no_dequantized_weight_is_kept(programs: list[Program], qtype: str) -> None:
    train("none", qtype=qtype)
    assert dequantized(programs) == []


def test_a_level_keeps_what_it_says(programs: list[Program]) -> None:
    for level in ("keep_attention", "offload_attention", "cheap"):
        train(level, qtype="int8")
    # its output, and the logarithm of its sums
    attention = {
        (2, 2, TOKENS, WIDTH // 2): 1,
        (2, 2, TOKENS): 1,
    }
    # Products of six layers but the last, which nothing needs again, and low-rank ones:
    # that of query, key and value is one.
    products = {(ROWS, WIDTH): 4, (ROWS, 2 * WIDTH): 1, (ROWS, 3 * 4): 1, (ROWS, 4): 3}
    kept = [
        Counter(tuple(value.shape) for value in program.made) for program in programs
    ]
    assert kept == [attention, attention, attention | products]


# ------------------------------------------------------------ what a second process
# finds


def test_a_second_process_compiles_nothing(nursery: Nursery, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    found = []
    for name in ("first", "second"):
        nursery.fork(
            (), tmp_path, name, main=__name__, environment=environment
        ).ends_with(0)
        found.append(json.loads((tmp_path / f"{name}.out").read_text()))
    first, second = found
    assert first["autograd_cache_saved"] == second["autograd_cache_hit"] == 1
    assert (
        not {name for name in (*first, *second) if "bypass" in name}
        and "autograd_cache_miss" not in second
    )
    assert second["fxgraph_cache_hit"] == 2 and "fxgraph_cache_miss" not in second


def main(_: object) -> int:
    """Prints the counters of the caches as JSON, in a separate process."""
    with no_kernels():
        train("cheap", qtype="int8", backend="inductor")
    print(json.dumps({**counters["aot_autograd"], **counters["inductor"]}))
    return 0

"""Compiled blocks compute what plain ones do, from a program that is made once for all
blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table

from tests.diffusers_reference import relative
from tests.toolkit.memory.toy_blocks import CPU, WIDTH, Stack, same
from toolkit.config.sections.train import CompileConfig
from toolkit.errors import RunError, UserError
from toolkit.memory import compiling
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import (
    DEFAULT_RECOMPILE_LIMIT,
    Programs,
    check_backend,
    compile_wrapper,
    decide_compiling,
)
from toolkit.memory.offload import BlockSwap
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork, LokrNetwork
from toolkit.system.torch_version import casts_in_programs

pytestmark = pytest.mark.usefixtures("fresh_compiler")

TOLERANCE = 1e-5
"""Relative, in float32: sums are added in another order."""


def stack(level: str, backend: str = "eager", **options) -> Stack:
    settings = CompileConfig(enabled=True, backend=backend, fullgraph=True)
    return Stack(dropout=0.0, **options).wrap(
        checkpoint_wrapper(level, WIDTH), compile_wrapper(settings)
    )


def register(
    monkeypatch: pytest.MonkeyPatch, name: str, forward: Callable, backward: Callable
) -> None:
    """A backend that divides programs as inductor does, and compiles each pass by one
    of these."""
    partition = {
        "partition_fn": min_cut_rematerialization_partition,
        "decompositions": select_decomp_table(),
    }
    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward, **partition)
    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, name, backend)
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, name, None)


def close(found: list, expected: list, tolerance: float = TOLERANCE) -> bool:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    return all(relative(a, b) < tolerance for a, b in pairs if b.any())


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_in_one_piece() -> None:
    assert close(
        stack("cheap", qtype="int8", count=2).gradients(),
        Stack(dropout=0.0, qtype="int8", count=2).gradients(),
    )
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(("level", "casts"), [("none", 2), ("full", 3)])
def test_a_compiled_block_casts_its_matrices_at_once(
    level: str, casts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, recomputed and backward, with the gradients that it has where each use
    casts its matrix; not with every PyTorch."""
    casts = casts if casts_in_programs() else 0
    operations: Counter[str] = Counter()

    def counted(program: torch.fx.GraphModule, _: object) -> Callable:
        operations.update(str(node.target) for node in program.graph.nodes)
        return make_boxed_func(program.forward)

    register(monkeypatch, "counted", counted, counted)
    options = {"count": 2, "dtype": torch.bfloat16}
    found = stack(level, "counted", **options).gradients()
    assert operations["aten._foreach_copy.default"] == casts
    at_each_use = stack(level, "counted", **options)
    for block in at_each_use.model:
        del block.adapter_casts
    assert same(found, at_each_use.gradients())
    assert operations["aten._foreach_copy.default"] == casts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrap", "symbolic_shapes"])
def test_what_pytorch_says_of_itself_does_not_reach_the_terminal(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the texts in its source; others of the same loggers do."""
    compiling._keep_quiet()
    module = {
        "wrap": torch._higher_order_ops.wrap,
        "symbolic_shapes": torch.fx.experimental.symbolic_shapes,
    }[name]
    text = {
        "wrap": "Detected that context_fn is passed to torch.utils.checkpoint",
        "symbolic_shapes": "RecursionError in sympy.xreplace(%s, %s)",
    }[name]
    assert text in Path(module.__file__).read_text(encoding="utf-8")
    module.log.warning(text.replace("%s", "s0"))
    module.log.warning("something else")
    assert caplog.messages == ["something else"]


def test_nothing_is_compiled_after_the_warm_up() -> None:
    compiled_stack = stack("keep_attention")
    compiled_stack.gradients()
    # also for the first block, whose input needs no gradient
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        compiled_stack.output()
    compiled_stack.gradients(tokens=12)
    compiled_stack.gradients(tokens=28)
    warm = counters["stats"]["unique_graphs"]
    # from the second length on a program serves them all
    for tokens in (20, 36):
        compiled_stack.gradients(tokens=tokens)
        with torch.no_grad():
            compiled_stack.output()
    assert counters["stats"]["unique_graphs"] == warm


@pytest.mark.slow
def test_programs_of_any_size_from_the_first_are_whole_and_made_once() -> None:
    settings = CompileConfig(
        enabled=True, backend="eager", dynamic=True, fullgraph=True
    )
    compiled_stack = Stack(dropout=0.0, count=2).wrap(
        checkpoint_wrapper("cheap", WIDTH), compile_wrapper(settings)
    )
    assert close(compiled_stack.gradients(), Stack(dropout=0.0, count=2).gradients())
    warm = counters["stats"]["unique_graphs"]
    compiled_stack.gradients(tokens=12)
    compiled_stack.gradients(tokens=28)
    assert counters["stats"]["unique_graphs"] == warm and not counters["graph_break"]


@pytest.mark.parametrize(
    "kind",
    [
        LoraNetwork,
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in (DoraNetwork, LohaNetwork, LokrNetwork)
        ),
    ],
)
def test_scales_and_rates_are_constants_of_a_program(
    monkeypatch: pytest.MonkeyPatch, kind: type[LinearAdapterNetwork]
) -> None:
    """Also of one for any size, and where two layers have different ones: PyTorch hands
    on floats as 0-dim tensors."""
    inputs: list[object] = []

    def recorded(graph: torch.fx.GraphModule, example: list) -> Callable:
        inputs.extend(
            node.meta["example_value"]
            for node in graph.graph.find_nodes(op="placeholder")
        )
        return graph.forward

    monkeypatch.setitem(
        torch._dynamo.backends.registry._COMPILER_FNS, "recorded", recorded
    )
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "recorded", None)
    settings = CompileConfig(
        enabled=True, backend="recorded", dynamic=True, fullgraph=True
    )
    compiled_stack = Stack(dropout=0.25, count=1, kind=kind).wrap(
        compile_wrapper(settings)
    )
    compiled_stack.network.layers["0.out"].scale = 3.0
    compiled_stack.gradients()
    assert inputs and not [
        value for value in inputs if isinstance(value, Tensor) and value.dim() == 0
    ]


@pytest.mark.slow
def test_rows_that_are_not_tokens_may_be_of_any_number() -> None:
    """A block's modulation has one row for each image."""

    def modulated(block: nn.Module, x_BSD: Tensor, shift_BD: Tensor) -> tuple[Tensor]:
        return (block(x_BSD + block.out(shift_BD).unsqueeze(1)),)

    settings = CompileConfig(enabled=True, backend="aot_eager", fullgraph=True)
    plain_stack = Stack(dropout=0.0, count=1)
    run = Stack.wrapped(
        modulated, checkpoint_wrapper("full", WIDTH), compile_wrapper(settings)
    )
    for images, tokens in ((2, 20), (3, 12), (4, 28)):
        x_BSD = torch.randn((images, tokens, WIDTH)).requires_grad_()
        outputs = [
            one(plain_stack.model[0], x_BSD, x_BSD[:, 0])[0] for one in (run, modulated)
        ]
        gradients = [
            torch.autograd.grad(output.square().sum(), x_BSD)[0] for output in outputs
        ]
        assert close(gradients[:1], gradients[1:])


@pytest.mark.slow
def test_swapped_weights_are_those_that_arrived() -> None:
    compiled_stack = stack("none")
    compiled_stack.wrap(BlockSwap(compiled_stack.blocks(0, 2, 3, 4), CPU))
    assert close(
        compiled_stack.gradients(steps=2), Stack(dropout=0.0).gradients(steps=2)
    )


@pytest.mark.parametrize("level", ["cheap", "full"])
def test_dropout_of_a_block_that_is_computed_again_is_that_of_the_first_time(
    level: str,
) -> None:
    """Compiled by what makes draws a part of the program; `eager` does not, and the
    config refuses it."""

    def thinned(block: nn.Module, x_BSD: Tensor) -> tuple[Tensor]:
        return (nn.functional.dropout(block(x_BSD), 0.5),)

    def gradient(run) -> Tensor:
        torch.manual_seed(0)
        block = nn.Linear(8, 8)
        run(block, torch.ones(1, 4, 8))[0].sum().backward()
        return block.weight.grad

    settings = CompileConfig(enabled=True, backend="aot_eager")
    assert torch.equal(
        gradient(compile_wrapper(settings)(checkpoint_wrapper(level, WIDTH)(thinned))),
        gradient(thinned),
    )


@pytest.mark.parametrize(
    "failing",
    [
        "first program",
        pytest.param("program of the second block", marks=pytest.mark.slow),
        "first call",
    ],
)
def test_auto_goes_on_uncompiled_with_the_numbers_of_the_step(
    monkeypatch: pytest.MonkeyPatch, said: list[str], failing: str
) -> None:
    """The second block has no bias in one layer, so that it is compiled within the same
    step."""
    seen = []

    def unlike() -> Stack:
        stack = Stack(dropout=0.0)
        stack.model[1].up.base_layer.bias = None
        return stack

    def compiler(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        seen.append(graph)
        if (
            len(seen) > (failing == "program of the second block")
            and failing != "first call"
        ):
            raise OSError("Python.h: no such file\nmore")
        return (
            partial(fail, RuntimeError("no kernel image"))
            if failing == "first call"
            else graph.forward
        )

    def fail(error: Exception, *tensors: Tensor) -> None:
        raise error

    monkeypatch.setitem(
        torch._dynamo.backends.registry._COMPILER_FNS, "broken", compiler
    )
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "broken", None)
    settings = CompileConfig(backend="broken")
    programs = Programs(settings)
    auto = compile_wrapper(settings, programs)
    found = unlike().wrap(checkpoint_wrapper("full"), auto).gradients(steps=2)
    expected = unlike().gradients(steps=2)
    assert close(found, expected) and (
        same(found, expected) or failing == "program of the second block"
    )
    assert not programs.used and len(said) == 1 and len(seen) <= 2
    error = (
        "RuntimeError: no kernel image"
        if failing == "first call"
        else "OSError: Python.h: no such file"
    )
    assert (
        said[0]
        == f"train.compile auto: a compiled block failed, all run uncompiled from here on ({error})"
    )


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("too large"), ValueError("no such row")]
)
def test_an_error_of_the_block_is_not_taken_for_one_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, said: list[str], error: Exception
) -> None:
    calls: list[Tensor] = []

    def fail(block: nn.Module, x_BSD: Tensor) -> tuple[Tensor]:
        calls.append(x_BSD)
        raise error

    monkeypatch.setattr(torch, "compile", lambda run, **_: partial(run))
    program = compile_wrapper(CompileConfig(backend="eager"))(fail)
    for _ in range(2):  # the second time compiled again
        with pytest.raises(type(error)):
            program(nn.Linear(8, 8), torch.ones(1, 4, 8))
    assert said == [] and len(calls) == (
        2 if isinstance(error, torch.OutOfMemoryError) else 4
    )


@pytest.mark.parametrize(
    ("keys", "device", "options", "compiled", "line"),
    [
        ({}, "cpu", {}, False, ""),
        ({"enabled": True}, "cpu", {}, True, ""),
        ({"enabled": False}, "cuda", {}, False, ""),
        ({}, "cuda", {}, True, ""),
        ({}, "cuda", {"missing": "a C compiler"}, False, "inductor needs a C compiler"),
        ({"backend": "eager"}, "cuda", {"missing": "a C compiler"}, True, ""),
        (
            {"backend": "indcutor"},
            "cuda",
            {},
            False,
            "PyTorch has no backend 'indcutor' on this machine",
        ),
        (
            {},
            "cuda",
            {"sharded": True},
            False,
            "the blocks are sharded over the processes",
        ),
        ({}, "cuda", {"against": "few steps"}, False, "few steps"),
        ({"enabled": True}, "cuda", {"against": "few steps"}, True, ""),
        (
            {},
            "cuda",
            {"qtype": "float8"},
            False,
            "this GPU (compute capability 8.6) cannot compile blocks in 'float8'",
        ),
    ],
)
def test_auto_compiles_on_cuda_where_everything_is_there(
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    keys: dict,
    device: str,
    options: dict,
    compiled: bool,
    line: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(compiling, "_missing", lambda device: options.get("missing"))
    asked = {name: value for name, value in options.items() if name != "missing"}
    found = decide_compiling(CompileConfig(**keys), torch.device(device), **asked)
    assert found is compiled
    assert [text.partition(", which")[0] for text in said] == (
        [f"train.compile auto: the blocks are not compiled: {line}"] if line else []
    )


@pytest.mark.parametrize(("given", "limit"), [(0, DEFAULT_RECOMPILE_LIMIT), (5, 5)])
def test_the_number_of_programs_is_limited(given: int, limit: int) -> None:
    compile_wrapper(
        CompileConfig(enabled=True, backend="eager", cache_size_limit=given)
    )(lambda block, x: (x,))
    assert torch._dynamo.config.recompile_limit == limit


# ------------------------------------------------------------ what cannot be compiled


def test_an_unknown_backend_is_a_mistake_of_the_job() -> None:
    with pytest.raises(UserError) as refused:
        check_backend(CompileConfig(enabled=True, backend="indcutor"), CPU)
    assert str(refused.value) == (
        "train.compile.backend: PyTorch has no backend 'indcutor' on this machine. "
        "Write inductor, or leave it out."
    )


@torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
def test_a_missing_compiler_is_found_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler") as refused:
        check_backend(CompileConfig(enabled=True), CPU)
    assert "Write enabled: false, or install that" in str(refused.value)
    check_backend(CompileConfig(enabled=True, backend="aot_eager"), CPU)


def test_triton_without_a_c_compiler_is_found_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    cuda = torch.device("cuda")
    with pytest.raises(
        UserError, match=r"train\.compile: inductor needs a C compiler \(gcc, clang, or"
    ):
        check_backend(CompileConfig(enabled=True), cuda)
    (tmp_path / "gcc").touch(mode=0o755)
    check_backend(CompileConfig(enabled=True), cuda)


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (9, 0)])
@pytest.mark.parametrize("qtype", ["float8", "fp8_scaled", "int8", ""])
def test_float8_is_compiled_only_where_triton_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], qtype: str
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    check_backend(CompileConfig(enabled=False), cuda, qtype)
    if qtype in ("float8", "fp8_scaled") and capability == (8, 6):
        remedy = "Write model.qtype: int8, or train.compile.enabled: false."
        with pytest.raises(
            UserError,
            match=rf"capability 8\.6\) cannot compile blocks in '{qtype}'.*{remedy}",
        ):
            check_backend(CompileConfig(enabled=True), cuda, qtype)
    else:
        check_backend(CompileConfig(enabled=True), cuda, qtype)


@pytest.mark.slow
def test_too_many_programs_of_whole_graphs_end_the_run_with_advice() -> None:
    settings = CompileConfig(
        enabled=True, backend="eager", fullgraph=True, cache_size_limit=1
    )
    with pytest.raises(
        RunError,
        match=r"more than 1 programs .* cache_size_limit, or write fullgraph: false",
    ):
        compiled_stack = Stack(count=2).wrap(compile_wrapper(settings))
        compiled_stack.gradients()
        compiled_stack.gradients(tokens=12)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["auto", True])
def test_a_backward_pass_that_cannot_be_compiled_ends_the_run_with_advice_too(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool | str
) -> None:
    """The compiler is gone once the forward pass is compiled."""

    @torch._inductor.config.patch(
        {"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True}
    )
    def without_compiler(module: torch.fx.GraphModule, inputs: list):
        return compile_fx_inner(module, inputs)

    register(
        monkeypatch,
        "forward only",
        lambda module, inputs: make_boxed_func(module.forward),
        without_compiler,
    )
    settings = CompileConfig(enabled=True, backend="forward only", dynamic=dynamic)
    with pytest.raises(
        RunError, match=r"inductor cannot compile here .* Write enabled: false"
    ):
        Stack(count=1, dropout=0.0).wrap(compile_wrapper(settings)).gradients()


def test_a_defect_of_a_block_keeps_its_own_error() -> None:
    def broken(block: nn.Module, x_BSD: Tensor) -> tuple[Tensor]:
        return (x_BSD @ x_BSD,)

    with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
        compile_wrapper(CompileConfig(enabled=True, backend="eager"))(broken)(
            nn.Identity(), torch.ones(2, 3, 4)
        )


@pytest.mark.slow
def test_backward_passes_are_compiled_too() -> None:
    found = stack("keep_attention", "aot_eager", qtype="int8").gradients(steps=2)
    assert close(found, Stack(dropout=0.0, qtype="int8").gradients(steps=2))


@pytest.mark.parametrize(
    ("mode", "used"),
    [
        ("reduce-overhead", "default"),
        ("max-autotune", "max-autotune-no-cudagraphs"),
        ("default", "default"),
    ],
)
def test_no_mode_records_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch, mode: str, used: str
) -> None:
    given = {}
    monkeypatch.setattr(
        torch, "compile", lambda run, **options: given.update(options) or run
    )
    compile_wrapper(CompileConfig(enabled=True, mode=mode))(
        lambda block, *tensors: tensors
    )
    assert (given["mode"], given["backend"]) == (used, "inductor")
    options = torch._inductor.list_mode_options(used)
    assert not options.get("triton.cudagraphs")

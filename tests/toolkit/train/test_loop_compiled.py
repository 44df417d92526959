"""A compiled program that fails costs a run nothing: the step is computed again without programs, from its begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import InductorError

from tests.toolkit.memory.toy_blocks import WIDTH, Stack
from tests.toolkit.train.conftest import Toy
from toolkit.config.train import CompileConfig
from toolkit.data.types import BatchSpec
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import Programs, compile_wrapper
from toolkit.train.interface import StepLosses, TrainStep
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Callback, Run

NAME = "fails in a test"
SIZES = (12, 20, 28)
"""Tokens of an image, by its number modulo 3."""

ERRORS = [
    AssertionError("expected size 24==24, stride 8472==1 at dim=1"),
    RuntimeError("no kernel image is available"),
    InductorError(ValueError("no such layout"), None),
]


@dataclass
class Backend:
    """Programs that compute what the blocks do, until `fails` of a pass and its inputs is an error."""

    fails: Callable[[str, list[Tensor]], Exception | None] = lambda kind, tensors: None
    runs: list[str] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        return aot_autograd(fw_compiler=self.compiler("forward"), bw_compiler=self.compiler("backward"))(graph, inputs)

    def compiler(self, kind: str) -> Callable:
        def compile_graph(graph: torch.fx.GraphModule, inputs: list) -> Callable:
            def run(*tensors: Tensor) -> tuple:
                self.runs.append(kind)
                if error := self.fails(kind, [t for t in tensors if isinstance(t, Tensor)]):
                    raise error
                return graph(*tensors)

            return make_boxed_func(run)

        return compile_graph


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Backend]]:
    """Makes a Backend the one that `NAME` means."""

    def install(fails: Callable[[str, list[Tensor]], Exception | None] = lambda kind, tensors: None) -> Backend:
        backend = Backend(fails)
        monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, NAME, backend)
        monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, NAME, None)
        return backend

    torch._dynamo.reset()
    with torch._dynamo.config.patch(), torch._functorch.config.patch():
        yield install
    torch._dynamo.reset()


class Blocks(TrainStep):
    """The loss of an image is the mean square of what a stack of blocks with dropout makes of it."""

    def __init__(self, settings: CompileConfig | None = None) -> None:
        """settings: None where the blocks are not compiled."""
        self.stack = Stack(count=2).wrap(checkpoint_wrapper("full"))
        self.programs = Programs(settings)
        if settings:
            self.stack.wrap(compile_wrapper(settings, self.programs))

    def __call__(self, batch, step: int) -> StepLosses:
        (item,) = batch.spec.items
        x_BSD = torch.randn((1, SIZES[item % 3], WIDTH), generator=torch.Generator().manual_seed(item))
        for block in self.stack.model:
            (x_BSD,) = self.stack.run(block, x_BSD)
        return StepLosses({"network": x_BSD.square().mean((1, 2))}, {"draw": torch.rand(1)})


def one_by_one(epoch: int) -> list[BatchSpec]:
    return [BatchSpec(epoch, (position,), (position,)) for position in range(7)]


class Kept(Callback):
    """The results of a run."""

    def __init__(self) -> None:
        self.results: list = []

    def on_metrics(self, run: Run, result) -> None:
        self.results.append(result)


def trained(toy: Toy, step: Blocks, steps: int = 3, accumulation: int = 1) -> tuple[Run, list]:
    """The run and what it logged by step: losses, gradient norms, draws of the random streams."""
    kept = Kept()
    run = toy.run(steps, accumulation=accumulation, callbacks=[kept])
    parameters = step.stack.network.parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=0.0)
    run.roles = {"network": Role(parameters, optimizer, lr=0.01, schedule=lambda step: 1.0)}
    run.programs = step.programs
    assert toy.train(run, step, epoch_batches=one_by_one)
    return run, [(r.step, r.samples, r.loss, r.grad_norm, r.per_sample) for r in kept.results]


def weights(step: Blocks) -> Tensor:
    return torch.cat([p.detach().flatten() for p in step.stack.network.parameters().values()])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_backward_pass_that_fails_at_once_leaves_an_eager_run(toy, install, said: list[str], error) -> None:
    install(lambda kind, tensors: error if kind == "backward" else None)
    step, eager = Blocks(CompileConfig(backend=NAME)), Blocks()
    run, found = trained(toy, step)
    expected_run, expected = trained(toy, eager)
    assert found == expected and torch.equal(weights(step), weights(eager))
    assert run.state == expected_run.state
    assert step.programs.record == {"blocks": False}
    (line,) = said
    assert line.startswith("train.compile auto: a compiled block failed, all run uncompiled from here on (")

"""A backend of torch.compile whose programs fail when a test wants them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends import registry
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import InductorError

NAME = "fails in a test"
"""Of the backend."""

ERRORS = [
    AssertionError("expected size 24==24, stride 8472==1 at dim=1"),
    RuntimeError("no kernel image is available"),
    InductorError(ValueError("no such layout"), None),
]
"""As inductor, a kernel and a compiler raise them."""

Fails = Callable[[str, list[Tensor]], Exception | None]
"""Called with a pass (a value of KINDS) and the inputs of a program: the error that it
raises, or None."""

KINDS = {"fw": "forward", "bw": "backward", "inference": "sampling"}
"""What PyTorch calls the compiler of a pass -> the pass; the last one has no
gradients."""


def never(kind: str, tensors: list[Tensor]) -> None:
    """A `Fails` of programs that work."""


def backward_of(size: int, error: Exception) -> Fails:
    """The backward pass fails with images of this size."""
    return lambda kind, tensors: (
        error if kind == "backward" and any(size in t.shape for t in tensors) else None
    )


@dataclass
class Backend:
    """Programs that compute `factor` times what the blocks do, until they fail."""

    fails: Fails
    factor: float
    runs: list[str] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        compilers = {
            f"{of}_compiler": self.compiler(kind) for of, kind in KINDS.items()
        }
        return aot_autograd(**compilers)(graph, inputs)

    def compiler(self, kind: str) -> Callable:
        def compile_graph(graph: torch.fx.GraphModule, inputs: list) -> Callable:
            def run(*tensors: Tensor) -> Sequence[Tensor]:
                self.runs.append(kind)
                if error := self.fails(
                    kind, [t for t in tensors if isinstance(t, Tensor)]
                ):
                    raise error
                first, *others = graph(*tensors)
                return [
                    first
                    if kind == "backward" or self.factor == 1
                    else self.factor * first,
                    *others,
                ]

            return make_boxed_func(run)

        return compile_graph


@contextmanager
def programs(fails: Fails = never, factor: float = 1.0) -> Iterator[Backend]:
    """Makes a Backend the one that `NAME` means."""
    backend = Backend(fails, factor)
    torch._dynamo.reset()
    registry._COMPILER_FNS[NAME], registry._BACKENDS[NAME] = backend, None
    try:
        with torch._dynamo.config.patch(), torch._functorch.config.patch():
            yield backend
    finally:
        del registry._COMPILER_FNS[NAME], registry._BACKENDS[NAME]
        torch._dynamo.reset()

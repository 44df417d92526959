"""The Triton code that inductor writes for a GPU, where there is none.

`install_compiler()` prepares this process, after `install`. From then on a compiled
function on the stand-in device is translated by inductor as on a GPU of compute
capability 9.0, forward and backward. Inductor's kernels are not launched, so the
results are garbage; operations of PyTorch run as always. Inductor requires Triton to
write its code, but no kernel is compiled.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import async_compile, graph
from torch._inductor import config as inductor

PROPERTIES = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, gcnArchName=""
)
"""Of an H100, as `torch.cuda.get_device_properties` gives them."""


def install_compiler() -> list[str]:
    """The programs, in Python, to which each compiled graph adds its own."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", 90, 32)
    driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    for owner in (torch.cuda, CudaInterface, CudaInterface.Worker):
        owner.get_device_properties = staticmethod(lambda _=None: PROPERTIES)
    torch.cuda._exchange_device = lambda _: 0
    torch.cuda._maybe_exchange_device = lambda _: 0
    torch.cuda._DeviceGuard = lambda _: nullcontext()
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    torch._C._dynamo.guards._empty_strided_cuda = lambda size, stride, dtype: (
        torch.empty_strided(size, stride, dtype=dtype, device="cuda:0")
    )
    # Products are not timed against padded ones.
    inductor.shape_padding = False
    inductor.compile_threads = 1
    inductor.fx_graph_cache = False

    async_compile.AsyncCompile.triton = lambda *_, **__: _Kernel()
    programs: list[str] = []
    codegen = graph.GraphLowering.codegen

    def recorded(lowering: graph.GraphLowering) -> Any:
        result = codegen(lowering)
        programs.append(result[0].value)
        return result

    graph.GraphLowering.codegen = recorded
    return programs


class _Kernel:
    """A kernel of inductor that is not launched."""

    def run(self, *_: object, **__: object) -> None:
        pass

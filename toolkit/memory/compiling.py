"""Compiles blocks with `torch.compile`: one compiled function for all blocks of a model, not the whole model.

Checkpointing has to be inside: selective checkpointing cannot see the operations of a compiled block from outside.
Parameter names do not change, because only the function that runs a block is wrapped, not the module.
"""

from __future__ import annotations

import logging
import os
import warnings
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.config.train import CompileConfig
from toolkit.errors import RunError, UserError
from toolkit.interfaces import BlockForward, BlockWrapper

DEFAULT_RECOMPILE_LIMIT = 32
"""Compilations of the same code before PyTorch runs it uncompiled. Its default of 8 is soon reached by the first block
(whose inputs need no gradient), the others, and sampling, each with several shapes."""


FLOAT8_QTYPES = ("float8", "fp8_scaled")

FLOAT8_CAPABILITY = (8, 9)
"""The first GPUs for which Triton converts float8_e4m3fn (fp8e4nv; Ada): pytorch #167082. PyTorch's own kernels, of
blocks that are not compiled, convert it everywhere."""


def check_backend(settings: CompileConfig, device: torch.device, qtype: str = "") -> None:
    """Raises UserError where PyTorch has no such backend, or its requirements are missing. The config imports no torch,
    so it cannot check this.

    qtype: of the blocks; empty when they are not quantized.
    """
    if not settings.enabled:
        return
    if settings.backend not in torch._dynamo.list_backends(exclude_tags=()):
        message = f"train.compile.backend: PyTorch knows no {settings.backend!r} here. Write inductor, or leave it out."
        raise UserError(message)
    if settings.backend == "inductor" and (missing := _missing(device)):
        raise UserError(f"train.compile: inductor needs {missing}. Write enabled: false, or install that.")
    if settings.backend == "inductor" and device.type == "cuda" and qtype in FLOAT8_QTYPES:
        capability = torch.cuda.get_device_capability(device)
        if capability < FLOAT8_CAPABILITY:
            raise UserError(
                f"train.compile: this GPU (compute capability {capability[0]}.{capability[1]}) cannot compile "
                f"blocks in {qtype!r}, which takes 8.9. Write model.qtype: int8, or train.compile.enabled: false."
            )


def _missing(device: torch.device) -> str | None:
    """What inductor needs and does not find here, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return f"Triton, and a {device} that Triton knows"
        # Triton builds the launcher of each kernel with it (runtime/build.py).
        if not (os.environ.get("CC") or which("gcc") or which("clang")):
            return "a C compiler (gcc, clang, or the one that CC names)"
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler (g++, or the one that CXX names)"
    return None


def compile_wrapper(settings: CompileConfig) -> BlockWrapper:
    """A wrapper that compiles the forward of a block, once for each new kind of inputs.

    The result raises RunError where a compiler is missing, or `fullgraph` exceeds the recompile limit.
    """

    _keep_quiet()

    def wrap(run: BlockForward) -> BlockForward:
        limit = settings.cache_size_limit or DEFAULT_RECOMPILE_LIMIT
        torch._dynamo.config.recompile_limit = limit
        # Compiles the backward pass together with the forward pass, so that errors are raised there.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        program = torch.compile(run, fullgraph=settings.fullgraph, **_of_backend(settings))

        def run_program(block: nn.Module, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            if settings.dynamic is True:
                _fix_widths(tensors)
            try:
                return program(block, *tensors)
            except Exception as error:
                if message := _user_message(error, limit):
                    raise RunError(message) from error
                raise

        return run_program

    return wrap


def _fix_widths(tensors: tuple[Tensor | None, ...]) -> None:
    """Marks the width of streams [B, S, D] as static: it never changes, and checkpointing needs its value."""
    for tensor in tensors:
        if tensor is not None and tensor.dim() == 3:
            torch._dynamo.mark_static(tensor, 2)


def _keep_quiet() -> None:
    """Silences warnings of PyTorch that every compiled job gets and that users cannot act on."""
    # The frequencies of a rotary embedding are complex numbers, which a compiled block only takes apart.
    warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex operators")
    # PyTorch warns about in-place operations with selective checkpointing: ours change no kept tensor.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_no_reminder_of_in_place)


def _is_no_reminder_of_in_place(record: logging.LogRecord) -> bool:
    return "Detected that context_fn is passed to torch.utils.checkpoint" not in record.getMessage()


def _user_message(error: Exception, limit: int) -> str | None:
    """The message for an error that a change of the job or the machine can fix; None for a defect."""
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch._inductor.exc import GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing

    if isinstance(error, FailOnRecompileLimitHit):
        return (
            f"train.compile: more than {limit} programs are wanted of one code, and 'fullgraph: true' lets nothing run "
            "uncompiled. Raise cache_size_limit, or write fullgraph: false."
        )
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, InvalidCxxCompiler | GPUTooOldForTriton | TritonMissing):
        reason = str(cause).splitlines()[0]
        return f"train.compile: inductor cannot compile here ({reason}). Write enabled: false, or mend that."
    return None


WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes that record CUDA graphs -> the same without. One compiled function serves all blocks: their weights have other
addresses, so a graph would be recorded again for each block, and with block swap at each call."""


def _of_backend(settings: CompileConfig) -> dict[str, Any]:
    dynamic = None if settings.dynamic == "auto" else settings.dynamic
    mode = WITHOUT_GRAPHS.get(settings.mode, settings.mode) if settings.backend == "inductor" else None
    return {"backend": settings.backend, "mode": mode, "dynamic": dynamic}

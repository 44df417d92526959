"""Blocks compiled by `torch.compile`: one compiled program for all blocks of a model, not one of the whole model.

Checkpointing belongs inside: around a compiled block, selective checkpointing could not tell the operations apart.
Names of weights stay as they are, because no module is wrapped, only the function that runs a block.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.config.compile import CompileConfig
from toolkit.errors import RunError, UserError
from toolkit.interfaces import BlockForward, BlockWrapper

DEFAULT_RECOMPILE_LIMIT = 32
"""Programs that PyTorch may make of the same code before it goes on uncompiled; its own 8 are soon reached by the
first block (whose inputs need no gradient), the others, and sampling, each of several shapes."""


def check_backend(settings: CompileConfig, device: torch.device) -> None:
    """Raises UserError where PyTorch knows no such compiler, or what it needs is missing; the config cannot tell, which
    imports no torch."""
    if not settings.enabled:
        return
    if settings.backend not in torch._dynamo.list_backends(exclude_tags=()):
        message = f"train.compile.backend: PyTorch knows no {settings.backend!r} here. Write inductor, or leave it out."
        raise UserError(message)
    if settings.backend == "inductor" and (missing := _missing(device)):
        raise UserError(f"train.compile: inductor needs {missing}. Write enabled: false, or install that.")


def _missing(device: torch.device) -> str | None:
    """What inductor does not find here of what it makes programs with."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else f"Triton, and a {device} that Triton knows"
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler (g++, or the one that CXX names)"
    return None


def compile_wrapper(settings: CompileConfig) -> BlockWrapper:
    """A wrapper that compiles what it is given, for each new kind of inputs when it first meets it.

    What it returns raises RunError where a compiler is missing, or `fullgraph` wants more programs than may be made.
    """

    _keep_quiet()

    def wrap(run: BlockForward) -> BlockForward:
        limit = settings.cache_size_limit or DEFAULT_RECOMPILE_LIMIT
        torch._dynamo.config.recompile_limit = limit
        # The program of the backward pass is made with the other: what cannot be compiled is told here, and not there.
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
    """Of streams [B, S, D]: the width is the model's and never another, and checkpointing has to know it."""
    for tensor in tensors:
        if tensor is not None and tensor.dim() == 3:
            torch._dynamo.mark_static(tensor, 2)


def _keep_quiet() -> None:
    """Silences what PyTorch says of any compiled job, whatever its settings, and nobody who runs one can change."""
    # A model's rotary embedding multiplies complex numbers: these run as they do uncompiled.
    warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex operators")
    # It asks for no in-place operations where checkpointing chooses: none of ours changes what is kept (`stored`).
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_no_reminder_of_in_place)


def _is_no_reminder_of_in_place(record: logging.LogRecord) -> bool:
    return "Detected that context_fn is passed to torch.utils.checkpoint" not in record.getMessage()


def _user_message(error: Exception, limit: int) -> str | None:
    """What the job or the machine can mend, in words of the job; None for what is a defect."""
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


def _of_backend(settings: CompileConfig) -> dict[str, Any]:
    dynamic = None if settings.dynamic == "auto" else settings.dynamic
    mode = settings.mode if settings.backend == "inductor" else None  # other backends have no modes
    return {"backend": settings.backend, "mode": mode, "dynamic": dynamic}

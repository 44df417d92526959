"""Compiles blocks with `torch.compile`: one compiled function for all blocks of a
model, not the whole model.

Checkpointing has to be inside: selective checkpointing cannot see the operations of a
compiled block from outside. Parameter names do not change, because only the function
that runs a block is wrapped, not the module.

Trainers and the generation of images call `check_backend` and `decide_compiling`;
`block_runner` applies the wrapper; the training loop asks `Programs` after an error.
The times for the plan are kept by `kept_times`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.model import BlockForward, BlockWrapper
from toolkit.errors import RunError, UserError
from toolkit.files import now
from toolkit.memory.quantized_products import with_gradient
from toolkit.number_types import FP8_QTYPES
from toolkit.system.device import is_out_of_memory
from toolkit.system.nvidia import NO_C_COMPILER, has_c_compiler

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_RECOMPILE_LIMIT = 32
"""Compilations of the same code before PyTorch runs it uncompiled. Its default of 8 is
soon reached where blocks differ: each kind has a program for the first size, for other
sizes, and for samples."""


WITHOUT_GRAPHS = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}
"""Mode that records CUDA graphs -> the same mode without them. One compiled function
serves all blocks. Their weights have different addresses, so a graph would be recorded
again for each block, and with block swap at each call."""

FLOAT8_CAPABILITY = (8, 9)
"""The first GPUs for which Triton converts float8_e4m3fn (fp8e4nv; Ada): pytorch
#167082. PyTorch's own kernels, which run blocks that are not compiled, convert it on
every GPU."""


def check_backend(
    settings: CompileConfig, device: torch.device, qtype: str = ""
) -> None:
    """Raises UserError where PyTorch has no such backend, or its requirements are
    missing. The config imports no torch, so it cannot check this.

    qtype: quantization of the blocks; empty when they are not quantized.
    """
    lack = _lack(settings, device, qtype) if settings.enabled is True else None
    if lack:
        raise UserError(f"{lack.key}: {lack.reason}. {lack.remedy}.")


def decide_compiling(
    settings: CompileConfig,
    device: torch.device,
    qtype: str = "",
    sharded: bool = False,
    against: str = "",
) -> bool:
    """Whether the blocks are compiled. Logs the reason where `auto` does not compile on
    CUDA. sharded: whether the blocks are sharded over ranks. against: the reason why
    compiling does not pay; empty where it does.

    >>> decide_compiling(CompileConfig(enabled="auto"), torch.device("cpu"))
    False
    """
    if settings.enabled != "auto" or device.type != "cuda":
        return settings.enabled is True
    reason = "the blocks are sharded over the processes" if sharded else against
    if not reason:
        lack = _lack(settings, device, qtype)
        reason = lack.reason if lack else ""
    if reason:
        logger.info(f"{settings.place} auto: the blocks are not compiled: {reason}")
    return not reason


class _Lack(NamedTuple):
    """A reason why blocks cannot be compiled, with the key that asks for it."""

    key: str
    reason: str
    remedy: str


def _lack(settings: CompileConfig, device: torch.device, qtype: str) -> _Lack | None:
    place = settings.place
    if settings.backend not in torch._dynamo.list_backends(exclude_tags=()):
        reason = f"PyTorch has no backend {settings.backend!r} on this machine"
        return _Lack(f"{place}.backend", reason, "Write inductor, or leave it out")
    if settings.backend != "inductor":
        return None
    missing = _missing(device)
    if missing:
        remedy = "Write enabled: false, or install that"
        return _Lack(place, f"inductor needs {missing}", remedy)
    reason = _unable(device, qtype)
    remedy = f"Write model.qtype: int8, or {place}.enabled: false"
    return _Lack(place, reason, remedy) if reason else None


def _unable(device: torch.device, qtype: str) -> str:
    """Why inductor cannot compile blocks of this type for this GPU; empty where it
    can."""
    if device.type != "cuda" or qtype not in FP8_QTYPES:
        return ""
    capability = torch.cuda.get_device_capability(device)
    if capability >= FLOAT8_CAPABILITY:
        return ""
    return (
        f"this GPU (compute capability {capability[0]}.{capability[1]}) cannot compile blocks in {qtype!r}, "
        "which takes 8.9"
    )


def _missing(device: torch.device) -> str | None:
    """The requirement of inductor that is missing on this machine, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return f"Triton, and a {device} that Triton knows"
        if not has_c_compiler():
            return NO_C_COMPILER
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler (g++, or the one that CXX names)"
    return None


class CompileTime(NamedTuple):
    """Number of compiled programs, and the time for them.

    >>> CompileTime(5, 90.0).since(CompileTime(2, 30.0))
    CompileTime(programs=3, seconds=60.0)
    """

    programs: int = 0
    """Number of forward passes; the backward pass of a program is compiled with it."""

    seconds: float = 0.0

    def since(self, before: CompileTime) -> CompileTime:
        """The difference."""
        return CompileTime(
            self.programs - before.programs, self.seconds - before.seconds
        )


class _CompileClock:
    """Counts PyTorch's compilations in this process, from the first `Programs` on."""

    def __init__(self) -> None:
        self.total = CompileTime()
        self._begun = CompileTime()
        self._before = now.NOTHING

    def listen(self) -> None:
        """Registers the callbacks; `torch._dynamo.reset` removes them."""
        if self._begin not in torch._dynamo.callback.callback_handler.start_callbacks:
            torch._dynamo.callback.on_compile_start(self._begin)
            torch._dynamo.callback.on_compile_end(self._end)

    def _now(self) -> CompileTime:
        return CompileTime(
            torch._dynamo.utils.counters["stats"]["unique_graphs"], time.perf_counter()
        )

    def _begin(self, of: object) -> None:
        self._begun = self._now()
        self._before = now.enter("compiling")

    def _end(self, of: object) -> None:
        took = self._now().since(self._begun)
        now.go_back(self._before)
        self.total = CompileTime(
            self.total.programs + took.programs, self.total.seconds + took.seconds
        )


_clock = _CompileClock()


class Programs:
    """The compiled programs of a model's blocks. With `train.compile: auto` a program
    that fails ends the use of all programs for the rest of the run: `compile_wrapper`
    does so in a forward pass, the training loop in a backward pass.

    >>> programs = Programs()  # the blocks are not compiled
    >>> programs.used, programs.record
    (False, {'blocks': False})
    """

    def __init__(self, settings: CompileConfig | None = None) -> None:
        """settings: None where the blocks are not compiled."""
        self.record = {"blocks": settings is not None}
        """The entry for a checkpoint. It changes when the programs are given up."""

        self.on_stop: list[Callable[[], None]] = []
        """Functions that are called once when the programs are given up. They repeat
        decisions that were made for compiled blocks."""

        self.increase_checkpointing: Callable[[], bool] = lambda: False
        """Set to `BlockRunner.increase_checkpointing`: uncompiled blocks may need more
        memory."""

        self.failure = ""
        """The reason why the programs were given up."""

        self.sizes: set[tuple[torch.Size | None, ...]] = set()
        """Sizes of a block's inputs in every call with gradients so far."""

        self._settings = settings
        self._begun = CompileTime()
        if settings:
            _clock.listen()
            self._begun = _clock.total

    @property
    def used(self) -> bool:
        """Whether blocks run compiled."""
        return self.record["blocks"]

    @property
    def may_stop(self) -> bool:
        """Whether all programs are given up once one fails."""
        return (
            self.used
            and self._settings is not None
            and self._settings.enabled == "auto"
        )

    @property
    def tried(self) -> tuple[int, int]:
        """A value that changes where a pass may have run a new program, or a program at
        a new size."""
        return self.took.programs, len(self.sizes)

    @property
    def took(self) -> CompileTime:
        """Programs and time of compiling so far."""
        return _clock.total.since(self._begun) if self._settings else CompileTime()

    def may_replace(self, error: Exception) -> bool:
        """Whether a pass that failed with this error is repeated without the programs."""
        return (
            self.may_stop
            and not is_out_of_memory(error)
            and not isinstance(error, RunError | UserError)
        )

    def stop(self) -> None:
        """Makes the blocks run uncompiled from now on."""
        if self.used:
            self.record["blocks"] = False
            for adapt in self.on_stop:
                adapt()

    def save_memory(self) -> bool:
        """Lowers the memory of a pass that no longer fits since the programs were given
        up; False where it cannot."""
        return (
            self._settings is not None
            and not self.used
            and self.increase_checkpointing()
        )

    def report(self, reason: str) -> None:
        """Logs once why the programs were given up. reason: `failure` of the error;
        empty where it is reported already."""
        if reason and self._settings is not None:
            self.failure = reason
            place = self._settings.place
            logger.warning(
                f"{place} auto: a compiled block failed, all run uncompiled from here on ({reason})"
            )

    def whole(self, compute: Callable[..., T], *arguments: Any) -> T:
        """`compute(*arguments)`, repeated where the programs are given up in the call,
        so that the result comes from blocks of one kind."""
        compiled = self.used
        result = compute(*arguments)
        if compiled and not self.used:
            return compute(*arguments)
        return result


def failure(error: Exception) -> str:
    """An error of a compiled program in one line.

    >>> failure(RuntimeError("no kernel image\\nis available"))
    'RuntimeError: no kernel image'
    """
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0].removesuffix(
        ": "
    )


def compile_wrapper(
    settings: CompileConfig, programs: Programs | None = None
) -> BlockWrapper:
    """A wrapper that compiles the forward of a block, once for each new kind of inputs.

    With `auto`, where a program fails and the block itself does not, that call and all
    later ones run uncompiled (`programs`). Otherwise the wrapped function raises
    RunError where a compiler is missing, or `fullgraph` exceeds the recompile limit.
    """

    programs = programs or Programs(settings)
    _keep_quiet()
    if settings.backend == "inductor":
        from torch._inductor.decomposition import decompositions

        # it sees a copy, which it removes
        decompositions.setdefault(with_gradient, lambda x_MI, y_MO, *_: y_MO.clone())

    def wrap(run: BlockForward) -> BlockForward:
        limit = settings.cache_size_limit or DEFAULT_RECOMPILE_LIMIT
        torch._dynamo.config.recompile_limit = limit
        # Scales and rates never change. `dynamic` would make a symbol of each, and
        # PyTorch 2.11 cannot compile one that scales a product.
        torch._dynamo.config.specialize_float = True
        # A block sets its adapters' cast matrices (`BlockCasts`) in a checkpoint, and
        # has none afterwards: there is no side effect to repeat.
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        if settings.backend == "inductor":
            from toolkit.memory.unfused_sums import UnfusedSums

            torch._inductor.config.post_grad_custom_post_pass = UnfusedSums()
        # Compiles the backward pass together with the forward pass, so that errors are
        # raised there.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        program: BlockForward = torch.compile(
            run,
            fullgraph=settings.fullgraph,
            backend=settings.backend,
            mode=WITHOUT_GRAPHS.get(settings.mode, settings.mode)
            if settings.backend == "inductor"
            else None,
            dynamic=None if settings.dynamic == "auto" else settings.dynamic,
        )

        def run_program(
            block: nn.Module, *tensors: Tensor | None
        ) -> tuple[Tensor, ...]:
            if not programs.used:
                return run(block, *tensors)
            if torch.is_grad_enabled():
                programs.sizes.add(
                    tuple(getattr(tensor, "shape", None) for tensor in tensors)
                )
            try:
                return program(
                    block, *(_as_stream(tensor, settings) for tensor in tensors)
                )
            except Exception as error:
                if not programs.may_replace(error):
                    message = _user_message(error, limit, settings.place)
                    if message:
                        raise RunError(message) from error
                    raise
                # the block runs below: inside the handler the error still holds memory
                reason = failure(error)
            # where this fails too, the compiler is not the cause
            outputs = run(block, *tensors)
            programs.stop()
            programs.report(reason)
            return outputs

        return run_program

    return wrap


def _as_stream(tensor: Any, settings: CompileConfig) -> Any:
    """An input of a block; a stream [B, S, D] in the form in which one program serves
    all blocks."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.dim() != 3
        or not tensor.is_floating_point()
    ):
        return tensor
    if not tensor.requires_grad:
        # The streams of the first block need no gradient, and without gradients they
        # are views of a layer's output. A program would be compiled for it alone; the
        # gradient is a hundredth of a model's backward pass, and compiling takes as
        # long as ten steps.
        tensor = tensor.detach().requires_grad_(torch.is_grad_enabled())
    if settings.dynamic is True:
        # The width never changes, and checkpointing needs its value.
        torch._dynamo.mark_static(tensor, 2)
    return tensor


def _keep_quiet() -> None:
    """Silences warnings of PyTorch that every compiled job gets and that users cannot
    act on."""
    # The frequencies of a rotary embedding are complex numbers, which a compiled block
    # only takes apart.
    warnings.filterwarnings(
        "ignore", "Torchinductor does not support code generation for complex operators"
    )
    for name in _REMINDERS:
        logging.getLogger(name).addFilter(_is_no_reminder)


_REMINDERS = {
    # of in-place operations with selective checkpointing: ours change no kept tensor
    "torch._higher_order_ops.wrap": "Detected that context_fn is passed to torch.utils.checkpoint",
    # a term that is left as it is, in programs for control images of unlike sizes
    "torch.fx.experimental.symbolic_shapes": "RecursionError in ",
}
"""Logger of PyTorch 2.13 -> words of what it warns of."""


def _is_no_reminder(record: logging.LogRecord) -> bool:
    return _REMINDERS[record.name] not in record.getMessage()


def _user_message(error: Exception, limit: int, place: str) -> str | None:
    """The message for an error that a change of the job or the machine can fix; None
    for a defect."""
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch._inductor.exc import (
        GPUTooOldForTriton,
        InvalidCxxCompiler,
        TritonMissing,
    )

    if isinstance(error, FailOnRecompileLimitHit):
        return (
            f"{place}: more than {limit} programs are wanted of one code, and 'fullgraph: true' lets nothing run "
            "uncompiled. Raise cache_size_limit, or write fullgraph: false."
        )
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, InvalidCxxCompiler | GPUTooOldForTriton | TritonMissing):
        reason = str(cause).splitlines()[0]
        return f"{place}: inductor cannot compile here ({reason}). Write enabled: false, or fix that."
    return None

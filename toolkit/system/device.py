"""Which device the work runs on, its memory, and the dtypes that configs name.

The functions for memory treat CUDA, MPS and the CPU alike where the device has the
number. This module imports torch; `nvidia` gives the reasons without it, so that a dry
run can report them too. `jobs.process.trainer` picks the device of a training run.
Called by nearly every room that computes: models, training, memory, networks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.shortage import MEMORY, is_short_of
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import (
    NO_MPS,
    last_device,
    likely_cause,
    read_facts,
    why_no_device,
)

logger = logging.getLogger(__name__)


def pick_device(wanted: str, quiet: bool = False) -> torch.device:
    """The device named by the config: `cuda:0`, `cpu`, `mps`, or `auto` for the best
    one of this machine.

    Raises UserError where the chosen device cannot be used. Instead of `cuda:0`
    (`ANY_DEVICE`) it then returns the CPU, with one warning (none if `quiet`);
    `check_device` refuses that for a large model.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    check_device(wanted, 0)
    if wanted == "auto":
        other = "mps" if _has_mps() else "cpu"
        wanted = "cuda:0" if torch.cuda.is_available() else other
    if _is_there(wanted):
        return torch.device(wanted)
    if not quiet:
        logger.warning(
            f"device: {wanted} is not available ({torch.cuda.device_count()} CUDA devices); using the CPU."
        )
    return torch.device("cpu")


def check_device(wanted: str, model_bytes: int) -> None:
    """Raises UserError where the job's device cannot be used. The message has the
    likely cause.

    A small model may then be trained on the CPU where the job names a device of
    `ANY_DEVICE`; a model above `ACCIDENTAL_CPU_LIMIT` may not.
    wanted: the config's `device`. model_bytes: of all parts of the model; 0: not known.
    """
    if wanted == "auto":
        is_usable = torch.cuda.is_available() or _has_mps()
    else:
        is_usable = _is_there(wanted)
    if is_usable:
        return
    message = why_no_device(
        wanted, model_bytes, NO_MPS if wanted == "mps" else _no_cuda(wanted)
    )
    if message:
        raise UserError(message)


def _is_there(wanted: str) -> bool:
    """Whether PyTorch can use the device of this name."""
    device = torch.device(wanted)
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or _has_mps()


def _no_cuda(wanted: str) -> str:
    """Why the wanted CUDA device cannot be used: the cause that the system shows, or
    else PyTorch's error."""
    count = torch.cuda.device_count()
    if count:
        return last_device(wanted, count)
    cause = likely_cause(read_facts())
    if cause:
        return cause
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"CUDA cannot be started: {' '.join(str(error).split())}"
    return "CUDA cannot be started: see what `nvidia-smi` says."


def use_device(device: torch.device) -> torch.device:
    """Makes a CUDA device PyTorch's current one, and returns it.

    Otherwise pinned memory, and libraries that name no device, would create a context
    on the first GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def to_device(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`tensor.to(device, dtype)`; from the CPU to CUDA through pinned memory.

    A copy from ordinary memory would make the host wait for all work that the device
    has been given.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        host = tensor.to(dtype or tensor.dtype)
        waiting = pinned(lambda pin_memory: host.pin_memory() if pin_memory else host)
        return waiting.to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def begin_copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begins to copy a tensor; what it returns waits until the copy is in main memory,
    and gives it. From CUDA the host works on meanwhile; any other device is waited for.
    """
    if tensor.device.type != "cuda":
        copy = tensor.to("cpu", copy=True)
        return lambda: copy
    host = pinned(partial(torch.empty_like, tensor, device="cpu"))
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> torch.Tensor:
        event.synchronize()
        return host

    return arrived


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the device's, pinned memory, or the machine's.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    True
    """
    return is_short_of(error) is MEMORY


def pinned(make: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The CPU tensor of `make(pin_memory=True)`, which a GPU copies from and to while
    the host works on.

    Where the system pins no more memory (WSL2 and containers limit it), it returns an
    ordinary tensor, and logs a warning once.
    """
    try:
        return make(pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _warn_unpinned()
    return make(pin_memory=False)


@cache
def _warn_unpinned() -> None:
    logger.warning(
        "the system pins no more memory (WSL2 and containers limit it): copies to the GPU are slower from here on. "
        "Smaller model.blocks_to_swap, or gradient_checkpointing: full, needs less of it."
    )


def free_memory(device: torch.device) -> int:
    """Bytes that tensors can still take on the device. They include the memory that
    PyTorch holds and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_host_memory()


def total_memory(device: torch.device) -> int:
    """Bytes of all memory of a CUDA device."""
    return torch.cuda.get_device_properties(device).total_memory


FLOPS_PER_CYCLE = {(8, 0): 2048, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192}
"""Operations of bf16 matrix products per cycle and multiprocessor, by compute
capability; 512 for all others. Source: NVIDIA's architecture papers (A100 312, H100 989,
B200 2250, RTX 4090 165 TFLOP/s, dense)."""

CYCLES = 1.7e9
"""Clock cycles per second, about."""


def peak_flops(device: torch.device) -> float:
    """An upper bound of the bf16 matrix operations that a CUDA device does per second,
    roughly."""
    properties = torch.cuda.get_device_properties(device)
    per_cycle = FLOPS_PER_CYCLE.get((properties.major, properties.minor), 512)
    return CYCLES * per_cycle * properties.multi_processor_count


def configure_cuda(
    device: torch.device, allow_tf32: bool, cudnn_benchmark: bool
) -> None:
    """Sets PyTorch's switches of these names for the rest of the process. On another
    device than CUDA it only logs that they have no effect."""
    wanted = {"cuda_allow_tf32": allow_tf32, "cuda_cudnn_benchmark": cudnn_benchmark}
    given = [f"train.{key}" for key, value in wanted.items() if value]
    if given and device.type != "cuda":
        logger.warning(f"{' and '.join(given)}: no effect on {device}.")
        return
    if allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""Normalised name of `train.dtype` (computing) or `save.dtype` (files) -> dtype."""


def to_cpu_copies(
    tensors: Mapping[str, Tensor], dtype: str | None = None
) -> dict[str, Tensor]:
    """Copies in CPU memory, which training does not change. dtype: a key of DTYPES;
    None keeps that of each."""
    in_dtype = DTYPES[dtype] if dtype else None
    return {
        name: tensor.detach().to("cpu", in_dtype, copy=True).contiguous()
        for name, tensor in tensors.items()
    }
